//! Weight-only checkpoints on a GPU: weights stay packed, and results are those of the dequantized ones.

use std::sync::Arc;

use safetensors::Dtype;

use super::fixture::{Tensor, options, quantized, write};
use super::golden::{Case, Golden};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::declaration::Declaration;
use crate::device::cuda::Device;
use crate::device::cuda::test_device::device;
use crate::engine::{Engine, EngineOptions, EnginePlace};
use crate::ops::dequantize::StoredWeight;
use crate::ops::float_dtype::FloatDtype;
use crate::ops::kernel_path::ComputeDtype;
use crate::record::score::ScoreRequest;

/// Groups of 16 divide every width of the models.
const SCHEMES: [(&str, &str); 6] = [
    ("int4", "{num_bits: 4, type: int, strategy: group, group_size: 16}"),
    ("int4_asym", "{num_bits: 4, type: int, strategy: group, group_size: 16, symmetric: false}"),
    ("int8", "{num_bits: 8, type: int, strategy: channel}"),
    ("nvfp4", "{num_bits: 4, type: float, strategy: tensor_group, group_size: 16}"),
    ("fp8", "{num_bits: 8, type: float, strategy: channel}"),
    ("fp8_block", "{num_bits: 8, type: float, strategy: block, block_structure: [16, 16]}"),
];

/// A checkpoint quantized by a scheme, and one of its dequantized weights, rounded to bf16.
struct Pair {
    _dirs: [tempfile::TempDir; 2],
    packed: Checkpoint,
    dense: Checkpoint,
    /// Bytes of packed weights less those of dense ones in bf16.
    difference: i64,
}

impl Pair {
    fn new(case: &Case, weights: &str) -> Self {
        let (_source_dir, source) = case.checkpoint(&case.config);
        let recipe = format!(
            "name: test\nversion: 1\ndescription: test\ngroups:\n  - targets: [Linear]\n    weights: {weights}\n"
        );
        let (packed_dir, packed) = quantized(source, &recipe);
        let Some(Declaration::Groups(config)) = packed.declaration().unwrap() else {
            panic!("nothing is declared")
        };
        let (mut tensors, mut difference) = (Vec::<Tensor>::new(), 0);
        for (name, dtype, shape, data) in &case.tensors {
            let module = name.strip_suffix(".weight").unwrap();
            let mut tensor = (name.clone(), *dtype, shape.clone(), data.clone());
            // Groups name linear modules, as embeddings and norms are not.
            let is_quantized = packed.info(&format!("{module}.weight_scale")).is_some();
            if let Some(group) = config.scheme_for(module).filter(|_| is_quantized) {
                let stored = StoredWeight::declared(&packed, module, group).unwrap();
                let on_file = stored.packed(&packed).unwrap();
                let zero_points = on_file.zero_points.map_or(0, <[i8]>::len);
                difference += (on_file.codes.len() + on_file.scales.len() + zero_points) as i64;
                let weight = stored.dense(&packed).unwrap().data;
                difference -= 2 * weight.len() as i64;
                let bytes = weight.iter().flat_map(|w| FloatDtype::Bf16.round(*w).to_le_bytes());
                tensor = (tensor.0, Dtype::F32, tensor.2, bytes.collect());
            }
            tensors.push(tensor);
        }
        let dense_dir = tempfile::tempdir().unwrap();
        write(dense_dir.path(), &case.config, &tensors);
        let dense = Checkpoint::open(dense_dir.path()).unwrap();
        Self { _dirs: [packed_dir, dense_dir], packed, dense, difference }
    }
}

mod gpu_tests {
    use super::*;

    fn bf16(rows: usize) -> EngineOptions {
        EngineOptions { dtype: ComputeDtype::Bf16, ..options(2, rows) }
    }

    fn load(checkpoint: &Checkpoint, device: &Arc<Device>, options: &EngineOptions) -> Engine {
        let place = EnginePlace::on(vec![Arc::clone(device)]).unwrap();
        Engine::load_at(checkpoint, options, &place).unwrap()
    }

    fn logprobs(engine: &Engine, golden: &Golden) -> Vec<f32> {
        let request = ScoreRequest { tokens: golden.tokens.clone(), context_len: 1 };
        engine.score(&[request], &|_| ()).unwrap().remove(0).token_logprobs
    }

    fn largest(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        // NaN is above all numbers.
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).max_by(f32::total_cmp).unwrap()
    }

    fn case(name: &str) -> Case {
        Golden::load().cases().find(|case| case.name == name).unwrap()
    }

    /// Many rows have the bits of the dense product; few rows are summed in another order. Memory is that of the packed
    /// weights.
    #[test]
    fn packed_weights_compute_as_dense_ones_in_less_memory() {
        let Some(_) = device() else { return };
        let (golden, case) = (Golden::load(), case("llama-v5"));
        for (name, weights) in SCHEMES {
            let pair = Pair::new(&case, weights);
            let of = |checkpoint: &Checkpoint, rows: usize| {
                let device = device().unwrap();
                let before = device.allocated_bytes().0;
                let engine = load(checkpoint, &device, &bf16(rows));
                ((device.allocated_bytes().0 - before) as i64, logprobs(&engine, &golden))
            };
            let (packed_bytes, packed) = of(&pair.packed, 512);
            let (dense_bytes, dense) = of(&pair.dense, 512);
            assert_eq!(packed_bytes - dense_bytes, pair.difference, "{name}");
            assert!(pair.difference < 0, "{name}: {}", pair.difference);
            assert_eq!(packed.len(), 70, "more than the kernel for few rows takes");
            assert_eq!(packed, dense, "{name}");
            let (_, few) = of(&pair.packed, 40);
            let difference = largest(&few, &dense);
            println!("{name}: {packed_bytes} bytes for {dense_bytes}, few rows within {difference:.1e}");
            assert!(difference < 0.1, "{name}: {difference}");
        }
    }

    /// f32 mode has f32 weights, and the log-probabilities of the CPU.
    #[test]
    fn f32_mode_has_the_dequantized_weights() {
        let Some(device) = device() else { return };
        let (golden, case) = (Golden::load(), case("llama"));
        let pair = Pair::new(&case, SCHEMES[1].1);
        let cpu = Engine::load(&pair.packed, &options(2, 512)).unwrap();
        let found = logprobs(&load(&pair.packed, &device, &options(2, 512)), &golden);
        let difference = largest(&found, &logprobs(&cpu, &golden));
        assert!(difference < 1e-4, "{difference}");
    }

    /// Experts are packed too; each takes few rows.
    #[test]
    fn packed_experts_compute_as_dense_ones_in_less_memory() {
        let Some(device) = device() else { return };
        let golden = Golden::load();
        for (name, scheme) in [("qwen3-moe", SCHEMES[0]), ("mixtral", SCHEMES[3])] {
            let pair = Pair::new(&case(name), scheme.1);
            let before = device.allocated_bytes().0;
            let engines = [&pair.packed, &pair.dense].map(|of| load(of, &device, &bf16(512)));
            let saved = pair.difference;
            assert!(saved < 0 && device.allocated_bytes().0 > before, "{name}: {saved}");
            let [packed, dense] = engines.map(|engine| logprobs(&engine, &golden));
            let difference = largest(&packed, &dense);
            println!("{name} {}: {saved} bytes, within {difference:.1e}", scheme.0);
            assert!(difference < 0.1, "{name}: {difference}");
        }
    }
}
