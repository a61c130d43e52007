//! Each quantized linear against transformers: fed transformers' own input, the same activation codes and outputs.
//! Reference: `tests/oracle/layer_io.py`, which writes `target/oracle/layers/*.safetensors`.

use std::path::Path;

use safetensors::SafeTensors;

use super::Decoder;
use crate::checkpoint::Checkpoint;
use crate::ops::activation_quant::{self, ActivationQuant};
use crate::ops::kernel_path::KernelPath;

fn floats(tensors: &SafeTensors<'_>, name: &str) -> (Vec<f32>, usize) {
    let view = tensors.tensor(name).unwrap();
    let values = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    (values, *view.shape().last().unwrap())
}

/// Codes may differ only at a tie: they are neighbours, and x / scale lies within 1e-5 of the middle between them.
fn is_tie(quotient: f32, a: f32, b: f32) -> bool {
    let middle = f32::midpoint(a, b);
    (quotient - middle).abs() <= 1e-5 * middle.abs().max(1.0) && (a - b).abs() <= 0.126 * a.abs().max(8.0)
}

#[test]
fn quantized_linears_equal_transformers() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/oracle/layers");
    let Ok(files) = std::fs::read_dir(&dir) else {
        println!("skipped: target/oracle/layers is not there");
        return;
    };
    for file in files {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let source = &header.metadata().as_ref().unwrap()["checkpoint"];
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let checkpoint = Checkpoint::open(Path::new(source)).unwrap();
        for path in KernelPath::available() {
            compare(&tensors, &Decoder::load(&checkpoint, path).unwrap(), source);
        }
    }
}

fn compare(tensors: &SafeTensors<'_>, decoder: &Decoder, source: &str) {
    let path = decoder.path();
    let (mut modules, mut codes, mut ties, mut worst) = (0, 0usize, 0usize, 0.0f32);
    for name in tensors.names().iter().filter_map(|n| n.strip_suffix(".input")) {
        let group = decoder.linear(name).unwrap();
        let kind: ActivationQuant = group.input_quant(name).unwrap();
        let (input, k) = floats(tensors, &format!("{name}.input"));
        let (want_codes, _) = floats(tensors, &format!("{name}.codes"));
        let (want_scales, groups) = floats(tensors, &format!("{name}.scale"));
        let (want, n) = floats(tensors, &format!("{name}.output"));
        let rows = input.len() / k;
        for (row, x) in input.chunks_exact(k).enumerate() {
            let (got, scales) = activation_quant::codes(path, kind, x);
            assert_eq!(scales, want_scales[row * groups..][..groups], "{name}: scales of row {row}");
            for (i, (got, want)) in got.iter().zip(&want_codes[row * k..]).enumerate() {
                codes += 1;
                if got != want {
                    ties += 1;
                    assert!(
                        is_tie(x[i] / scales[i * groups / k], *got, *want),
                        "{name} [{row}, {i}]: {got}, not {want}"
                    );
                }
            }
        }
        let mut scratch = vec![0.0; rows * k];
        let mut out = vec![0.0; rows * group.n()];
        group.forward(path, &input, rows, &mut scratch, &mut out);
        let columns = group.columns(name).unwrap();
        for (row, want) in want.chunks_exact(n).enumerate() {
            let got = &out[row * group.n()..][columns.clone()];
            let size = want.iter().map(|y| y * y).sum::<f32>().sqrt();
            let difference = got.iter().zip(want).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt();
            worst = worst.max(difference / size);
        }
        modules += 1;
    }
    println!(
        "{source}, {}: {modules} linears, {codes} activation codes of which {ties} differ (ties); \
         outputs differ by at most {worst:.1e} of a row's norm",
        path.name()
    );
    assert!(modules > 0 && worst < 1e-5, "{worst}");
}
