//! Generation on a GPU whose steps are recorded: the tokens and log-probabilities of steps that are launched kernel by kernel.

use std::sync::Arc;

use super::fixture::{Model, VOCAB, checkpoint, options, quantized};
use super::golden::Golden;
use crate::checkpoint::Checkpoint;
use crate::device::cuda::test_device::device;
use crate::device::cuda::{Device, DeviceCounts};
use crate::engine::{Engine, EngineOptions, EnginePlace, GenerateRequest, GeneratorOptions, Sampling};
use crate::model::RaggedBatch;
use crate::ops::kernel_path::ComputeDtype;

mod gpu_tests {
    use super::*;

    fn load(
        checkpoint: &Checkpoint,
        device: &Arc<Device>,
        dtype: ComputeDtype,
        records_steps: bool,
    ) -> Engine {
        let place = EnginePlace::on(vec![Arc::clone(device)]).unwrap();
        let options = EngineOptions { dtype, records_steps, ..options(2, 64) };
        Engine::load_at(checkpoint, &options, &place).unwrap()
    }

    fn request(prompt: Vec<u32>, n: usize, max_tokens: usize, temperature: f64) -> GenerateRequest {
        let sampling = Sampling { temperature, seed: 7, ..Sampling::default() };
        GenerateRequest { prompt, n, max_tokens, sampling, top_n: 2, ..GenerateRequest::default() }
    }

    /// Requests that join and leave, so that steps have 1 to 6 rows and prompts come between them.
    fn few(vocab: usize) -> Vec<GenerateRequest> {
        let prompt = |len: usize, by: usize| (0..len).map(|i| ((i * by + 3) % vocab) as u32).collect();
        vec![
            request(prompt(3, 5), 1, 30, 0.0),
            request(prompt(20, 7), 2, 12, 0.8),
            request(prompt(1, 1), 1, 9, 0.0),
            request(prompt(33, 11), 2, 15, 0.0),
        ]
    }

    /// Requests whose choices end at different times: steps of 16, 12 and 9 rows, and of 32, 23, 20 and 17, each more than
    /// once, so that a recording of one number is repeated for others.
    fn many() -> [Vec<GenerateRequest>; 2] {
        let of = |prompt: [u32; 2], n: usize, tokens: usize| request(prompt.to_vec(), n, tokens, 0.8);
        [
            vec![of([1, 2], 9, 15), of([3, 4], 3, 9), of([5, 6], 4, 3)],
            vec![of([1, 2], 17, 21), of([3, 4], 3, 15), of([5, 6], 3, 9), of([7, 8], 9, 3)],
        ]
    }

    /// Tokens of requests that join at every fourth step, by request and choice, with the bits of their log-probabilities.
    fn generate(engine: &Engine, requests: Vec<GenerateRequest>) -> Vec<(u64, usize, u32, Vec<u32>)> {
        let expected: usize = requests.iter().map(|request| request.n * request.max_tokens).sum();
        let mut generator = engine.generator(GeneratorOptions::default());
        let (mut waiting, mut generated) = ((1u64..).zip(requests), Vec::new());
        let mut steps = 0;
        loop {
            if steps % 4 == 0
                && let Some((id, request)) = waiting.next()
            {
                generator.add(id, request).unwrap();
            }
            if generator.is_idle() {
                break;
            }
            steps += 1;
            for token in generator.step().unwrap() {
                let top = token.token.top.iter().flat_map(|(token, logprob)| [*token, logprob.to_bits()]);
                let bits = [token.token.logprob.to_bits()].into_iter().chain(top).collect();
                generated.push((token.request, token.choice, token.token.token, bits));
            }
        }
        generated.sort_by_key(|(request, choice, ..)| (*request, *choice));
        assert_eq!(generated.len(), expected);
        generated
    }

    fn compare(name: &str, checkpoint: &Checkpoint, dtype: ComputeDtype, requests: &[GenerateRequest]) {
        let device = device().unwrap();
        let engines = [true, false].map(|records| load(checkpoint, &device, dtype, records));
        let [recorded, launched] = engines.map(|engine| generate(&engine, requests.to_vec()));
        // With padding the library may take sums in another order; the emulated one does not.
        if device.name() == "emulated device" {
            assert_eq!(recorded, launched, "{name} {dtype:?}");
        }
        for (a, b) in recorded.iter().zip(&launched) {
            let difference = (f32::from_bits(a.3[0]) - f32::from_bits(b.3[0])).abs();
            assert!(a.2 == b.2 && difference < 0.05, "{name} {dtype:?}: {a:?} {b:?}");
        }
    }

    #[test]
    fn recorded_steps_give_the_same_tokens() {
        if device().is_none() {
            return;
        }
        let model = Model { tied: true, quantized: None, wide: true };
        let (_dir, plain) = checkpoint(model, 1);
        let [sixteen, thirty_two] = many();
        for dtype in [ComputeDtype::F32, ComputeDtype::Bf16] {
            compare("llama", &plain, dtype, &few(VOCAB));
            compare("llama", &plain, dtype, &sixteen);
        }
        compare("llama", &plain, ComputeDtype::F32, &thirty_two);
        let (_dir, int8) = checkpoint(Model { quantized: Some("int"), ..model }, 1);
        compare("int8", &int8, ComputeDtype::Bf16, &few(VOCAB));
        let golden = Golden::load();
        for name in ["gemma3", "qwen3-moe", "phi3-longrope", "mistral-tile"] {
            let case = golden.cases().find(|case| case.name == name).unwrap();
            let (_dir, checkpoint) = case.checkpoint(&case.config);
            compare(name, &checkpoint, ComputeDtype::F32, &few(golden.vocab));
        }
        let case = golden.cases().find(|case| case.name == "llama-v5").unwrap();
        let (_dir, source) = case.checkpoint(&case.config);
        let recipe = "name: test\nversion: 1\ndescription: test\ngroups:\n  - targets: [Linear]\n    weights: {num_bits: 4, type: int, strategy: group, group_size: 16}\n";
        let (_dir, packed) = quantized(source, recipe);
        compare("int4", &packed, ComputeDtype::Bf16, &few(golden.vocab));
    }

    /// What a step asks of the device once its shape was recorded, and where it is not.
    #[test]
    fn a_recorded_step_is_one_launch() {
        let Some(device) = device() else { return };
        let (_dir, checkpoint) = checkpoint(Model { tied: true, quantized: None, wide: true }, 1);
        for records in [true, false] {
            let engine = load(&checkpoint, &device, ComputeDtype::Bf16, records);
            let mut generator = engine.generator(GeneratorOptions::default());
            for (id, prompt) in [(1, vec![1, 2, 3]), (2, vec![4, 5])] {
                generator.add(id, GenerateRequest { top_n: 0, ..request(prompt, 1, 12, 0.0) }).unwrap();
            }
            let mut asked = Vec::new();
            while !generator.is_idle() {
                let before = device.counts();
                assert_eq!(generator.step().unwrap().len(), 2);
                asked.push(device.counts() - before);
            }
            // The product and the scan of the head, the lists of pass and head, the head's rows, its answers, and a wait for
            // them. Kernel by kernel: the embedding, ten kernels in each of two layers, two that gather the rows asked for,
            // and the last norm.
            let launches = if records { 1 + 2 } else { 1 + 2 * 10 + 2 + 1 + 2 };
            let expected = DeviceCounts { launches, copies: 4, waits: 1, allocations: 0 };
            assert_eq!(asked[4..11], vec![expected; 7], "{records}");
        }
    }

    /// Memory of a session goes after the work that it queued.
    #[test]
    fn a_session_waits_before_it_is_cleared() {
        let Some(device) = device() else { return };
        let (_dir, checkpoint) = checkpoint(Model { tied: true, quantized: None, wide: true }, 1);
        let engine = load(&checkpoint, &device, ComputeDtype::F32, true);
        let mut session = engine.replicas[0].backend.session();
        for clears in [true, false] {
            session.forward(&RaggedBatch::default()).unwrap();
            let before = device.counts().waits;
            if clears {
                session.clear();
            } else {
                drop(std::mem::replace(&mut session, engine.replicas[0].backend.session()));
            }
            assert_eq!(device.counts().waits, before + 1);
        }
    }

    /// Memory that is taken meanwhile, here by another call, makes recordings anew; results stay.
    #[test]
    fn recordings_are_made_anew_where_memory_moved() {
        let Some(device) = device() else { return };
        let (_dir, checkpoint) = checkpoint(Model { tied: true, quantized: None, wide: true }, 1);
        let engine = load(&checkpoint, &device, ComputeDtype::F32, true);
        let alone = engine.generate_greedy(&[1, 2, 3], 20, &[], 1).unwrap();
        let mut generator = engine.generator(GeneratorOptions::default());
        generator.add(1, request(vec![1, 2, 3], 1, 20, 0.0)).unwrap();
        let mut tokens = Vec::new();
        while !generator.is_idle() {
            tokens.extend(generator.step().unwrap().into_iter().map(|g| (g.token.token, g.token.logprob)));
            if tokens.len() % 5 == 0 {
                engine.prompt_logprobs(&vec![7; 30 + tokens.len()], 1).unwrap();
            }
        }
        let alone: Vec<_> = alone.iter().map(|t| (t.token, t.logprob)).collect();
        assert_eq!(tokens, alone);
    }
}
