use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::*;
use crate::base::atomic;
use crate::base::digest::Digest;
use crate::checkpoint::quant_args::Dialect;
use crate::model::tokenizer::Tokenizer;
use crate::recipe::assignment::{Assignment, TensorDecl};
use crate::recipe::{file, load};
use crate::record::SCHEMA_VERSION;
use crate::record::calibration::{CalibrationRecord, ObservedInputs};
use crate::record::{Classified, FailureClass};

fn tokenizer() -> (tempfile::TempDir, Tokenizer) {
    let dir = tempfile::tempdir().unwrap();
    let model = crate::checkpoint::source::resolve("day0-tiny", dir.path()).unwrap();
    let tokenizer = Tokenizer::load(&model.dir).unwrap();
    (dir, tokenizer)
}

fn text(dir: &Path, content: &[u8]) -> PathBuf {
    let path = dir.join("text.txt");
    atomic::write(&path, content).unwrap();
    path
}

#[test]
fn samples_are_whole_lines_of_equal_stretches() {
    let (dir, tokenizer) = tokenizer();
    let content = "one two\nthree four\nfive six\nseven eight é\n";
    let text = CalibrationText::file(&text(dir.path(), content.as_bytes())).unwrap();
    assert_eq!(text.digest(), &Digest::of(content.as_bytes()));
    let sample = |i, n, len| tokenizer.decode(&text.sample(i, n, len, &tokenizer).unwrap()).unwrap();
    assert_eq!(sample(0, 1, 1000), content);
    // 43 bytes: the second half begins within "five six".
    assert_eq!(sample(0, 2, 1000), "one two\nthree four\nfi");
    assert_eq!(sample(1, 2, 1000), "seven eight é\n");
    assert_eq!(text.sample(1, 2, 3, &tokenizer).unwrap().len(), 3);
    // More samples than there is text for.
    let found: Vec<_> = (0..100).map(|i| text.sample(i, 100, 8, &tokenizer).unwrap()).collect();
    assert!(found.iter().any(Vec::is_empty) && found.iter().any(|s| !s.is_empty()));
}

#[test]
fn characters_are_never_cut() {
    let (dir, tokenizer) = tokenizer();
    let content = "日本語のテキスト".repeat(40);
    let text = CalibrationText::file(&text(dir.path(), content.as_bytes())).unwrap();
    for i in 0..7 {
        let sample = text.sample(i, 7, 4096, &tokenizer).unwrap();
        assert!(!tokenizer.decode(&sample).unwrap().contains('\u{fffd}'));
    }
}

#[test]
fn texts_that_cannot_be_used_are_named() {
    let (dir, tokenizer) = tokenizer();
    let missing = CalibrationText::file(&dir.path().join("none.txt")).unwrap_err();
    assert!(missing.to_string().contains("none.txt"), "{missing}");
    let empty = CalibrationText::file(&text(dir.path(), b"")).unwrap_err();
    assert!(empty.to_string().contains("no text in it"), "{empty}");
    let path = text(dir.path(), b"good\nbad \xff byte\n");
    let error = CalibrationText::file(&path).unwrap().sample(0, 1, 100, &tokenizer).unwrap_err();
    assert!(error.to_string().contains("byte 9 is not UTF-8"), "{error}");
    for error in [missing, empty, error] {
        assert_eq!(error.failure_class(), FailureClass::UserConfigError);
        assert!(error.hint().unwrap().contains("--calibration"));
    }
}

#[test]
fn the_embedded_text_has_the_default_number_of_samples() {
    let (_dir, tokenizer) = tokenizer();
    let config = CalibrationConfig::default();
    let settled = config.settle([load("nvfp4").unwrap()].iter(), 256).unwrap();
    assert_eq!((settled.samples, settled.sequence_length), (64, 256));
    for i in 0..settled.samples {
        let sample = settled.text.sample(i, settled.samples, settled.sequence_length, &tokenizer).unwrap();
        assert_eq!(sample.len(), 256, "sample {i}");
    }
}

#[test]
fn flags_come_before_the_recipe_before_the_defaults() {
    let recipe = |keys: &str| {
        let text = format!(
            "name: r\nversion: 1\ndescription: d\ncalibration: {keys}\ngroups:\n  - targets: [Linear]\n    weights: \
             {{num_bits: 8, type: float, strategy: tensor}}\n"
        );
        file::parse("r.yaml", &text)
    };
    let (a, b) = (recipe("{samples: 8}").unwrap(), recipe("{samples: 3, sequence_length: 99}").unwrap());
    assert_ne!(a.digest, b.digest);
    let settle = |config: CalibrationConfig| {
        let settled = config.settle([&a, &b].into_iter(), 4096).unwrap();
        (settled.samples, settled.sequence_length)
    };
    assert_eq!(settle(CalibrationConfig::default()), (8, 99));
    let config = CalibrationConfig { samples: Some(2), ..CalibrationConfig::default() };
    assert_eq!(settle(config.clone()), (2, 99));
    let over = CalibrationConfig { sequence_length: Some(7), ..CalibrationConfig::default() };
    assert_eq!(settle(config.overridden_by(over)), (2, 7));
    let zero = CalibrationConfig { samples: Some(0), ..CalibrationConfig::default() };
    assert!(zero.settle(std::iter::empty(), 1).unwrap_err().to_string().contains("samples is 0"));
    for (keys, problem) in [("{samples: 0}", "integer `0`"), ("{sample: 1}", "did you mean 'samples'?")] {
        let error = recipe(keys).unwrap_err().to_string();
        assert!(error.contains("r.yaml:4") && error.contains(problem), "{error}");
    }
}

/// One attention layer and two experts, as names and shapes.
fn assignment(recipe: &crate::recipe::Recipe) -> Assignment {
    let names = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "mlp.experts.0.gate_proj",
        "mlp.experts.0.up_proj",
        "mlp.experts.0.down_proj",
        "mlp.experts.1.gate_proj",
        "mlp.experts.1.up_proj",
        "mlp.experts.1.down_proj",
    ];
    let names: Vec<String> = names.iter().map(|n| format!("model.layers.0.{n}.weight")).collect();
    let decls: Vec<TensorDecl<'_>> = names
        .iter()
        .map(|name| TensorDecl { name, dtype: safetensors::Dtype::BF16, shape: &[128, 128] })
        .collect();
    Assignment::new(&decls, &json!({}), recipe).unwrap()
}

fn seen(amax: &[(&str, f32)]) -> CalibrationRecord {
    let amax: BTreeMap<String, f32> =
        amax.iter().map(|(name, amax)| (format!("model.layers.0.{name}"), *amax)).collect();
    CalibrationRecord {
        schema_version: SCHEMA_VERSION,
        data: CalibrationConfig::default().settle(std::iter::empty(), 64).unwrap().data(),
        inputs: ObservedInputs { samples: 1, tokens: 5, amax, unseen: BTreeSet::new(), not_finite: None },
        kernel_path: "test".to_owned(),
    }
}

#[test]
fn fused_layers_share_and_unseen_experts_take_the_largest_of_their_siblings() {
    let recipe = load("nvfp4").unwrap();
    let record = seen(&[
        ("self_attn.q_proj", 1.0),
        ("self_attn.k_proj", 4.0),
        ("self_attn.v_proj", 2.0),
        ("mlp.experts.1.gate_up_proj", 8.0),
        ("mlp.experts.1.down_proj", 0.0),
    ]);
    let scales = InputScales::new(&assignment(&recipe), &recipe, &record).unwrap();
    let of = |module: &str| scales.values[&format!("model.layers.0.{module}.input_global_scale")];
    for module in ["q_proj", "k_proj", "v_proj"] {
        assert_eq!(of(&format!("self_attn.{module}")), 2688.0 / 4.0);
    }
    for module in ["0.gate_proj", "0.up_proj", "1.gate_proj", "1.up_proj"] {
        assert_eq!(of(&format!("mlp.experts.{module}")), 2688.0 / 8.0);
    }
    assert_eq!(of("mlp.experts.1.down_proj"), 1.0, "an input of zeros has no scale");
    let summary = scales.summary.unwrap();
    let named = |modules: &[&str]| {
        modules.iter().map(|m| format!("model.layers.0.mlp.experts.{m}")).collect::<Vec<_>>()
    };
    assert_eq!(summary.filled, named(&["0.down_proj", "0.gate_proj", "0.up_proj"]));
    assert_eq!(summary.all_zero, named(&["1.down_proj"]));
    assert_eq!((summary.scales, summary.tokens), (9, 5));
}

#[test]
fn both_layouts_say_the_same() {
    let amax = [
        ("self_attn.q_proj", 3.0),
        ("self_attn.k_proj", 3.0),
        ("self_attn.v_proj", 3.0),
        ("mlp.experts.0.gate_proj", 1.0),
        ("mlp.experts.0.up_proj", 1.0),
        ("mlp.experts.0.down_proj", 7.0),
    ];
    for (name, ours, theirs) in [("nvfp4", 2688.0 / 7.0, 7.0 / 2688.0), ("fp8_static", 0.015625, 0.015625f32)]
    {
        let recipe = load(name).unwrap();
        let modelopt = recipe.clone().in_dialect(Dialect::Modelopt).unwrap();
        let value = |recipe: &crate::recipe::Recipe| {
            let scales = InputScales::new(&assignment(recipe), recipe, &seen(&amax)).unwrap();
            let of = |(name, _): &(&String, &f32)| name.contains("experts.0.down_proj");
            let (name, value) = scales.values.iter().find(of).map(|(n, v)| (n.clone(), *v)).unwrap();
            (name.rsplit('.').next().unwrap().to_owned(), value)
        };
        let ours_name = if name == "nvfp4" { "input_global_scale" } else { "input_scale" };
        assert_eq!(value(&recipe), (ours_name.to_owned(), ours));
        assert_eq!(value(&modelopt), ("input_scale".to_owned(), theirs));
    }
}

#[test]
fn what_calibration_did_not_see_is_not_made_up() {
    let recipe = load("nvfp4").unwrap();
    let scales = |record: &CalibrationRecord| InputScales::new(&assignment(&recipe), &recipe, record);
    let error = scales(&seen(&[("self_attn.q_proj", 1.0)])).unwrap_err();
    assert!(error.to_string().contains("mlp.experts.0.down_proj"), "{error}");
    assert_eq!(error.failure_class(), FailureClass::ModelUnsupported);
    let mut record = seen(&[]);
    record.inputs.not_finite = Some("model.layers.3.mlp.down_proj".to_owned());
    let error = scales(&record).unwrap_err();
    assert!(error.to_string().contains("layers.3.mlp.down_proj are NaN or infinite"), "{error}");
    let mut record = seen(&[]);
    record.inputs.tokens = 0;
    assert!(matches!(scales(&record), Err(CalibrationError::Empty { .. })));
}
