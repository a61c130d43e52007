//! The engine on a GPU against the CPU's and against transformers.

use std::sync::Arc;

use super::fixture::{Model, options, two_hundred};
use super::golden::{Golden, TOLERANCE, shared};
use crate::checkpoint::Checkpoint;
use crate::device::cuda::test_device::device;
use crate::device::cuda::{CubinCache, Device};
use crate::engine::{Engine, EngineOptions, EnginePlace, GenerateRequest, GeneratorOptions, PromptQuery};
use crate::ops::kernel_path::ComputeDtype;
use crate::record::score::{ScoreRequest, ScoreResult};

mod gpu_tests {
    use super::*;

    /// A few items of the task, among them long contexts.
    fn requests() -> Vec<ScoreRequest> {
        two_hundred().into_iter().take(12).collect()
    }

    fn on(checkpoint: &Checkpoint, device: &Arc<Device>, options: &EngineOptions) -> Engine {
        Engine::load_at(checkpoint, options, &at(device)).unwrap()
    }

    fn at(device: &Arc<Device>) -> EnginePlace {
        EnginePlace::on(vec![Arc::clone(device)]).unwrap()
    }

    fn bf16(rows: usize) -> EngineOptions {
        EngineOptions { dtype: ComputeDtype::Bf16, ..options(2, rows) }
    }

    fn score(engine: &Engine, requests: &[ScoreRequest]) -> Vec<ScoreResult> {
        engine.score(requests, &|_| ()).unwrap()
    }

    /// Mean and largest difference of log-probabilities; NaN if one is.
    fn differences(found: &[ScoreResult], expected: &[ScoreResult]) -> [f32; 2] {
        let all = |results: &[ScoreResult]| -> Vec<f32> {
            results.iter().flat_map(|r| r.token_logprobs.iter().copied()).collect()
        };
        let differences: Vec<f32> =
            all(found).iter().zip(all(expected)).map(|(a, b)| (a - b).abs()).collect();
        let largest = differences.iter().copied().max_by(f32::total_cmp).unwrap();
        [differences.iter().sum::<f32>() / differences.len() as f32, largest]
    }

    const MODELS: [Model; 4] = [
        Model { tied: true, quantized: None, wide: true },
        Model { tied: false, quantized: None, wide: false },
        Model { tied: true, quantized: Some("float"), wide: true },
        Model { tied: false, quantized: Some("int"), wide: true },
    ];

    /// f32 within 1e-4 nats of the CPU's (quantized inputs: mean 2e-3), whatever is in a batch and in the cache; bf16 within
    /// its rounding.
    #[test]
    fn scores_are_those_of_the_cpu() {
        let Some(device) = device() else { return };
        let requests = requests();
        for model in MODELS {
            let (_dir, checkpoint) = super::super::fixture::checkpoint(model, 1);
            let cpu = Engine::load(&checkpoint, &options(2, 512)).unwrap();
            let expected = score(&cpu, &requests);
            let large = on(&checkpoint, &device, &options(2, 512));
            let found = score(&large, &requests);
            let [mean, largest] = differences(&found, &expected);
            println!("{model:?} f32: mean {mean:.2e}, largest {largest:.2e}");
            // A step of the grid of quantized inputs may go the other way.
            let allowed = if model.quantized.is_some() { [2e-3, 0.1] } else { [1e-5, 1e-4] };
            assert!(mean <= allowed[0] && largest <= allowed[1], "{model:?}: {mean} {largest}");
            // What the first call left is found; small batches continue in the cache.
            let again = differences(&score(&large, &requests), &found);
            let small = on(&checkpoint, &device, &options(2, 40));
            let in_parts = differences(&score(&small, &requests), &found);
            let is_near = again[1] <= allowed[1] && in_parts[1] <= allowed[1];
            assert!(is_near, "{model:?}: {again:?} {in_parts:?}");
            let of_cpu = Engine::load(&checkpoint, &bf16(512)).unwrap();
            let [mean, largest] = differences(
                &score(&on(&checkpoint, &device, &bf16(512)), &requests),
                &score(&of_cpu, &requests),
            );
            println!("{model:?} bf16: mean {mean:.2e}, largest {largest:.2e}");
            assert!(mean <= 0.06 && largest <= 0.5, "{model:?}: {mean} {largest}");
        }
    }

    /// One for each architecture, and those that compute otherwise; the rest differ in what the configuration's parser makes
    /// of them.
    const CASES: [&str; 18] = [
        "llama",
        "llama-biases",
        "llama-longrope",
        "mistral",
        "mixtral",
        "mixtral-fused",
        "qwen2",
        "qwen2-moe",
        "qwen3",
        "qwen3-moe",
        "gemma2",
        "gemma3",
        "phi3",
        "phi3-longrope",
        "phi3-partial",
        "olmo2",
        "granite",
        "smollm3",
    ];

    /// Every architecture has the log-probabilities of transformers.
    #[test]
    fn logprobs_of_transformers() {
        let Some(device) = device() else { return };
        let golden = Golden::load();
        let mut wrong = Vec::new();
        for case in golden.cases().filter(|case| CASES.contains(&case.name.as_str())) {
            let (_dir, checkpoint) = case.checkpoint(&case.config);
            let engine = on(&checkpoint, &device, &options(2, 512));
            let difference = shared(&golden, &case, &engine);
            println!("{:28} {difference:.2e}", case.name);
            if difference.is_nan() || difference > TOLERANCE {
                wrong.push(format!("{}: {difference}", case.name));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn tokens_ranks_and_the_likeliest_are_those_of_the_cpu() {
        let Some(device) = device() else { return };
        let (_dir, checkpoint) = super::super::fixture::checkpoint(MODELS[1], 1);
        let cpu = Engine::load(&checkpoint, &options(2, 512)).unwrap();
        let gpu = on(&checkpoint, &device, &options(2, 512));
        let prompt = two_hundred()[0].tokens.clone();
        let query = PromptQuery { tokens: prompt.clone(), first: 20, top_n: 3, with_ranks: true };
        let answer = |engine: &Engine| {
            let mut entries = Vec::new();
            engine.score_prompts(std::slice::from_ref(&query), &mut |_, found| entries = found).unwrap();
            entries
        };
        let (found, expected) = (answer(&gpu), answer(&cpu));
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found.rank, expected.rank);
            let tokens = |top: &[(u32, f32)]| top.iter().map(|(token, _)| *token).collect::<Vec<_>>();
            assert_eq!(tokens(&found.top), tokens(&expected.top));
            assert!((found.logprob - expected.logprob).abs() < 1e-4);
        }
        let generate = |engine: &Engine| {
            let tokens = engine.generate_greedy(&prompt, 12, &[], 0).unwrap();
            tokens.iter().map(|t| t.token).collect::<Vec<_>>()
        };
        assert_eq!(generate(&gpu), generate(&cpu));
    }

    /// Two devices share the requests; results are those of one.
    #[test]
    fn replicas_give_the_results_of_one() {
        let Some(first) = device() else { return };
        let cache = CubinCache::new(first.kernel_cache().dir().to_path_buf());
        let Ok(second) = Device::open_with_cache(1, cache) else {
            println!("skipped: one device");
            return;
        };
        let requests = requests();
        let (_dir, checkpoint) = super::super::fixture::checkpoint(MODELS[0], 1);
        let one = on(&checkpoint, &first, &bf16(64));
        let place = EnginePlace::on(vec![first, Arc::clone(&second)]).unwrap();
        let [of_baseline, of_candidate] = place.halves();
        assert!(of_baseline.is_apart_from(&of_candidate) && !place.is_apart_from(&of_candidate));
        assert_eq!(place.flag().unwrap(), "--device cuda:0,1");
        let both = Engine::load_at(&checkpoint, &bf16(64), &place).unwrap();
        let done = std::sync::atomic::AtomicUsize::new(0);
        let count = |now| {
            done.fetch_max(now, std::sync::atomic::Ordering::Relaxed);
        };
        let found = both.score(&requests, &count).unwrap();
        assert_eq!(done.into_inner(), requests.len());
        let [_, largest] = differences(&found, &score(&one, &requests));
        // In other batches rows are rounded to bf16 from sums in another order, on a real device.
        assert!(largest <= 0.1, "{largest}");

        let generate = |engine: &Engine| {
            let mut generator = engine.generator(GeneratorOptions::default());
            for id in 1..5 {
                let prompt = vec![id as u32, 7, 9];
                let request = GenerateRequest { prompt, n: 1, max_tokens: 8, ..GenerateRequest::default() };
                generator.add(id, request).unwrap();
            }
            let mut tokens = Vec::new();
            while !generator.is_idle() {
                tokens.extend(generator.step().unwrap().into_iter().map(|g| (g.request, g.token.token)));
            }
            tokens.sort_by_key(|(request, _)| *request);
            tokens
        };
        let expected = generate(&one);
        let before = second.counts();
        assert_eq!(generate(&both), expected);
        assert!((second.counts() - before).launches > 8, "the other device generates too");
    }
}
