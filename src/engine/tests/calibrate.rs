//! Calibration sees what the graph computes, whatever the batch.

use std::sync::Arc;

use super::fixture::{MAX_LEN, Model, VOCAB, checkpoint, options};
use super::golden::Golden;
use crate::base::threads::detect;
use crate::checkpoint::Checkpoint;
use crate::engine::{Engine, EngineError};
use crate::quantize::calibration::CalibrationConfig;
use crate::quantize::{Arithmetic, QuantizePlan};
use crate::recipe::load;
use crate::record::calibration::{CalibrationRecord, ObservedInputs};
use crate::record::score::ScoreRequest;
use crate::record::{Provenance, SCHEMA_VERSION};

const PLAIN: Model = Model { tied: false, quantized: None, wide: false };

fn samples() -> Vec<Vec<u32>> {
    let token = |s: usize, i: usize| ((s * 7 + i * i * 3 + i) % VOCAB) as u32;
    [1, MAX_LEN, 17, 2, 40, 33]
        .iter()
        .enumerate()
        .map(|(s, n)| (0..*n).map(|i| token(s, i)).collect())
        .collect()
}

fn observe(checkpoint: &Checkpoint, threads: usize, rows: usize) -> ObservedInputs {
    let engine = Engine::load(checkpoint, &options(threads, rows)).unwrap();
    engine.observe_inputs(&samples(), &|_| ()).unwrap()
}

#[test]
fn batches_threads_and_parts_show_the_same() {
    let (_dir, checkpoint) = checkpoint(PLAIN, 3);
    let whole = observe(&checkpoint, 1, 4096);
    assert_eq!((whole.samples, whole.tokens), (6, 1 + MAX_LEN + 17 + 2 + 40 + 33));
    assert_eq!(whole.amax.len(), 15, "seven modules a layer, and the head");
    assert!(whole.unseen.is_empty() && whole.not_finite.is_none());
    assert_eq!(observe(&checkpoint, 2, 50), whole);
    let engine = Engine::load(&checkpoint, &options(2, 512)).unwrap();
    let mut parts = ObservedInputs::default();
    for sample in samples() {
        parts.merge(engine.observe_inputs(&[sample], &|_| ()).unwrap());
    }
    assert_eq!(parts, whole);
}

/// The first layer's q, k and v read the normalized embedding, which needs no graph to compute.
#[test]
fn inputs_of_the_first_layer_are_the_normalized_embedding() {
    let (_dir, checkpoint) = checkpoint(PLAIN, 4);
    let seen = observe(&checkpoint, 2, 512);
    let table = checkpoint.require_f32("model.embed_tokens.weight").unwrap();
    let norm = checkpoint.require_f32("model.layers.0.input_layernorm.weight").unwrap();
    let mut expected = 0.0f64;
    for token in samples().concat() {
        let row = &table[token as usize * norm.len()..][..norm.len()];
        let mean = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / norm.len() as f64;
        for (x, w) in row.iter().zip(&norm) {
            expected = expected.max((f64::from(*x) * f64::from(*w) / (mean + 1e-5).sqrt()).abs());
        }
    }
    for module in ["q_proj", "k_proj", "v_proj"] {
        let amax = f64::from(seen.amax[&format!("model.layers.0.self_attn.{module}")]);
        assert!((amax / expected - 1.0).abs() < 2e-6, "{module}: {amax}, expected {expected}");
    }
}

#[test]
fn nothing_is_observed_afterwards() {
    let (_dir, checkpoint) = checkpoint(PLAIN, 5);
    let engine = Engine::load(&checkpoint, &options(1, 512)).unwrap();
    engine.observe_inputs(&samples(), &|_| ()).unwrap();
    engine.prompt_logprobs(&[1, 2, 3], 0).unwrap();
    assert!(engine.decoder().unwrap().take_input_amax().iter().all(|(_, amax)| amax.is_none()));
}

#[test]
fn samples_that_the_model_cannot_take_are_refused() {
    let (_dir, checkpoint) = checkpoint(PLAIN, 6);
    let engine = Engine::load(&checkpoint, &options(1, 512)).unwrap();
    for bad in [vec![], vec![VOCAB as u32], vec![0; MAX_LEN + 1]] {
        let error = engine.observe_inputs(&[vec![1], bad], &|_| ()).unwrap_err();
        assert!(matches!(error, EngineError::Request { index: 1, .. }), "{error}");
    }
}

/// One token reaches two of the four experts in each of the two mixtures. The others are named, take the largest input
/// of their siblings, and the checkpoint runs.
#[test]
fn experts_that_no_token_reached_are_named_and_filled() {
    let golden = Golden::load();
    let case = golden.cases().find(|case| case.name == "qwen3-moe").unwrap();
    let (_dir, checkpoint) = case.checkpoint(&case.config);
    let engine = Engine::load(&checkpoint, &options(1, 512)).unwrap();
    let inputs = engine.observe_inputs(&[vec![golden.tokens[0]]], &|_| ()).unwrap();
    assert_eq!(inputs.unseen.len(), 2 * 2 * 3, "three modules an expert: {:?}", inputs.unseen);
    assert!(inputs.unseen.iter().all(|module| module.contains(".mlp.experts.")));

    let record = CalibrationRecord {
        schema_version: SCHEMA_VERSION,
        data: CalibrationConfig::default().settle(std::iter::empty(), 64).unwrap().data(),
        inputs: inputs.clone(),
        kernel_path: engine.identity().kernel_path.clone(),
    };
    let plan = QuantizePlan::new(Arc::new(checkpoint), load("nvfp4").unwrap(), Arithmetic::F32).unwrap();
    plan.calibrate(&record).unwrap();
    let out = tempfile::tempdir().unwrap();
    let shards = (0..plan.num_shards()).map(|i| plan.write_shard(i, out.path(), &|_| ()).unwrap()).collect();
    let written = plan.finish(out.path(), shards, Provenance::new(detect(Some(1)))).unwrap();
    assert!(written.calibration.unwrap().filled.iter().eq(&inputs.unseen));

    let opened = Checkpoint::open(out.path()).unwrap();
    for module in &inputs.unseen {
        let (layer, expert) = module.split_once(".experts.").unwrap();
        let projection = expert.split_once('.').unwrap().1;
        let is_sibling =
            |name: &str| name.starts_with(&format!("{layer}.experts.")) && name.ends_with(projection);
        let siblings = inputs.amax.iter().filter(|(name, _)| is_sibling(name));
        let amax = siblings.map(|(_, amax)| *amax).fold(0.0, f32::max);
        let scale = opened.require_f32(&format!("{module}.input_global_scale")).unwrap();
        assert_eq!(scale, [448.0 * 6.0 / amax], "{module}");
    }
    let engine = Engine::load(&opened, &options(1, 512)).unwrap();
    let request = ScoreRequest { tokens: golden.tokens[..20].to_vec(), context_len: 1 };
    let scored = engine.score(&[request], &|_| ()).unwrap();
    assert!(scored[0].token_logprobs.iter().all(|l| l.is_finite()));
}
