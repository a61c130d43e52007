use proptest::prelude::*;

use super::*;
use crate::checkpoint::quant_args::{Format, QuantType, QuantizationArgs, Strategy};
use crate::ops::golden;
use crate::ops::weight_layout::tests::args;

/// The schemes of `weights.json` by name: arguments and format.
pub(crate) fn scheme(name: &str) -> (QuantizationArgs, Format) {
    use QuantType::{Float, Int};
    use Strategy::{Block, Channel, Group, Tensor, TensorGroup};
    let (qtype, bits, strategy, group, format) = match name {
        "fp8_channel" => (Float, 8, Channel, None, Format::FloatQuantized),
        "fp8_tensor" => (Float, 8, Tensor, None, Format::FloatQuantized),
        "fp8_block" => (Float, 8, Block, None, Format::FloatQuantized),
        "int8_channel" => (Int, 8, Channel, None, Format::IntQuantized),
        "int4_channel" => (Int, 4, Channel, None, Format::PackQuantized),
        "nvfp4" => (Float, 4, TensorGroup, Some(16), Format::Nvfp4PackQuantized),
        "mxfp4" => (Float, 4, Group, Some(32), Format::Mxfp4PackQuantized),
        "mxfp6" => (Float, 6, Group, Some(32), Format::Mxfp6PackQuantized),
        "mxfp8" => (Float, 8, Group, Some(32), Format::Mxfp8Quantized),
        grouped => {
            let bits = grouped.as_bytes()[3] - b'0';
            (Int, bits, Group, Some(32), Format::PackQuantized)
        }
    };
    let mut args = args(qtype, bits, strategy, group);
    args.symmetric = !name.ends_with("_asym");
    if strategy == Block {
        args.block_structure = Some([32, 64]);
    }
    (args, format)
}

pub(crate) fn layout(name: &str) -> WeightLayout {
    let (args, format) = scheme(name);
    WeightLayout::new(&args, format).unwrap()
}

/// All tensors of a quantized weight by suffix.
pub(crate) fn quantize(
    weight: Weight<'_>,
    layout: &WeightLayout,
    arithmetic: Arithmetic,
) -> Vec<(&'static str, Vec<u8>)> {
    let shared = if layout.needs_tensor_amax() { amax(weight).unwrap() } else { 0.0 };
    tensors_of(weight, layout, |sink| quantize_weight(weight, layout, arithmetic, shared, sink))
}

/// All tensors that `run` makes, checked against the layout.
pub(crate) fn tensors_of(
    weight: Weight<'_>,
    layout: &WeightLayout,
    run: impl FnOnce(&mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<Quantized, QuantizeWeightError>,
) -> Vec<(&'static str, Vec<u8>)> {
    let mut codes = Vec::new();
    let rest = run(&mut |bytes| {
        codes.extend_from_slice(bytes);
        Ok(())
    })
    .unwrap();
    let mut tensors = vec![(layout.codes(weight.shape).suffix, codes)];
    tensors.extend(rest.tensors);
    for (spec, (suffix, bytes)) in layout.tensors(weight.shape, weight.dtype.dtype()).iter().zip(&tensors) {
        assert_eq!((spec.suffix, spec.num_bytes()), (*suffix, bytes.len() as u64));
    }
    tensors
}

/// Every scheme against compressed-tensors itself; with f32 weights both arithmetics are the same.
#[test]
fn every_scheme_as_compressed_tensors() {
    for (dtype, name) in [(FloatDtype::Bf16, "bfloat16"), (FloatDtype::F32, "float32")] {
        let all = golden::weights();
        let data = golden::from_hex(all[name]["weight"].as_str().unwrap());
        let weight = Weight { data: &data, dtype, shape: [40, 96] };
        for (scheme_name, expected) in all[name].as_object().unwrap() {
            let Some(expected) = expected.as_object().filter(|_| !scheme_name.ends_with("_mse")) else {
                continue;
            };
            let tensors = quantize(weight, &layout(scheme_name), Arithmetic::WeightDtype);
            assert_eq!(tensors.len() + 1, expected.len(), "{scheme_name}");
            for (suffix, bytes) in tensors {
                assert_eq!(golden::sha256(&bytes), expected[suffix], "{name} {scheme_name} {suffix}");
            }
        }
    }
}

/// The vector of checkpoint-formats §1.5: w[i] = bf16((i − 15) / 16 · 0.1), made with compressed-tensors 0.20.
#[test]
fn golden_vector() {
    let mut data = Vec::new();
    for i in 0..32 {
        FloatDtype::Bf16.write(((f64::from(i) - 15.0) / 16.0 * 0.1) as f32, &mut data);
    }
    let weight = Weight { data: &data, dtype: FloatDtype::Bf16, shape: [1, 32] };
    let words = |text: &str| -> Vec<u8> {
        text.split_whitespace().flat_map(|w| u32::from_str_radix(w, 16).unwrap().to_le_bytes()).collect()
    };
    let check = |name: &str, codes: Vec<u8>, scale: &str| {
        let tensors = quantize(weight, &layout(name), Arithmetic::WeightDtype);
        assert_eq!(tensors[0].1, codes, "{name}");
        assert_eq!(tensors[1].1, golden::from_hex(scale), "{name} scale");
        tensors
    };
    let fp8 =
        "fd fc fb fa fa f9 f8 f6 f4 f2 f1 ee ea e6 de 00 5e 66 6a 6e 71 72 74 76 78 79 7a 7a 7b 7c 7d 7e";
    check("fp8_channel", golden::from_hex(fp8), "6a39");
    let int8 =
        "88 91 99 a0 a8 b0 b8 c0 c8 d0 d8 e0 e8 f0 f8 00 08 10 18 20 28 30 38 40 48 50 58 60 67 6f 78 7f";
    check("int8_channel", golden::from_hex(int8), "4e3a");
    check("int4_g32", words("44332211 88776655 cbbaa998 fffeeddc"), "5b3c");
    let asymmetric = check("int4_g32_asym", words("33221100 77665544 baa99887 feeddccb"), "533c");
    assert_eq!(asymmetric[2], ("weight_zero_point", words("00000007")));
    let int8_words = "20191108 40383028 60585048 80787068 a0989088 c0b8b0a8 e0d8d0c8 fff8efe7";
    check("int8_g32", words(int8_words), "4e3a");
    let nvfp4 = check("nvfp4", golden::from_hex("ff ef ee de cd bc aa 09 21 32 44 55 65 66 76 77"), "7d7e");
    assert_eq!(nvfp4[2].1, 26880f32.to_le_bytes());
    check("mxfp4", golden::from_hex("ff ef ee de cd bc aa 09 21 32 44 55 66 66 77 77"), "79");
    let mxfp8 =
        "fc fb fa fa f9 f8 f6 f5 f3 f2 f0 ed ea e5 dd 00 5d 65 6a 6d 70 72 73 75 76 78 79 7a 7a 7b 7c 7d";
    check("mxfp8", golden::from_hex(mxfp8), "73");
    let mxfp6 = "fc ae eb 39 6e d7 b3 0c b7 aa 39 02 83 a1 34 90 34 55 16 96 69 da c6 75";
    check("mxfp6", golden::from_hex(mxfp6), "79");
}

/// f32 division differs from the bf16 one in codes, never in scales, and is the more accurate.
#[test]
fn f32_division_is_closer() {
    let all = golden::weights();
    let data = golden::from_hex(all["bfloat16"]["weight"].as_str().unwrap());
    let weight = Weight { data: &data, dtype: FloatDtype::Bf16, shape: [40, 96] };
    for name in ["fp8_channel", "int8_channel", "int4_g32"] {
        let run = |arithmetic| {
            let rest = quantize_weight(weight, &layout(name), arithmetic, 0.0, &mut |_| Ok(())).unwrap();
            (rest.tensors.clone(), rest.noise)
        };
        let (exact, rounded) = (run(Arithmetic::F32), run(Arithmetic::WeightDtype));
        assert_eq!(exact.0, rounded.0, "{name}");
        assert!(exact.1 < rounded.1, "{name}: {} {}", exact.1, rounded.1);
    }
}

#[test]
fn non_finite_elements_are_named() {
    for dtype in [FloatDtype::Bf16, FloatDtype::F16, FloatDtype::F32] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut data = Vec::new();
            for i in 0..3 * 32 {
                dtype.write(if i == 70 { bad } else { 0.5 }, &mut data);
            }
            let weight = Weight { data: &data, dtype, shape: [3, 32] };
            for name in ["fp8_channel", "fp8_tensor", "int4_g32", "nvfp4", "mxfp4"] {
                let layout = layout(name);
                let result = if layout.needs_tensor_amax() {
                    amax(weight).map(|_| ())
                } else {
                    quantize_weight(weight, &layout, Arithmetic::F32, 0.0, &mut |_| Ok(())).map(|_| ())
                };
                let Err(QuantizeWeightError::NonFinite { row: 2, column: 6, .. }) = result else {
                    panic!("{name}: {result:?}");
                };
            }
        }
    }
}

#[test]
fn same_bytes_for_any_number_of_threads() {
    let data: Vec<u8> = (0..700u32 * 1024)
        .flat_map(|i| half::bf16::from_f32((i as f32 * 0.37).sin() * 0.1).to_le_bytes())
        .collect();
    let weight = Weight { data: &data, dtype: FloatDtype::Bf16, shape: [700, 1024] };
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut codes = Vec::new();
            let rest = quantize_weight(weight, &layout("nvfp4"), Arithmetic::F32, 0.1, &mut |bytes| {
                codes.extend_from_slice(bytes);
                Ok(())
            });
            (codes, rest.unwrap())
        })
    };
    assert_eq!(run(1), run(3));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every scheme stays within half a step of its own scale (a whole one where scales are rounded), for any shape.
    #[test]
    fn error_is_bounded_by_the_step(rows in 1usize..5, groups in 1usize..5, seed in any::<u32>(), magnitude in -20i32..10) {
        let k = groups * 32;
        let values: Vec<f32> = (0..rows * k)
            .map(|i| ((i as f32 + seed as f32 * 1e-3) * 1.7).sin() * 2f32.powi(magnitude))
            .collect();
        let mut data = Vec::new();
        for x in &values {
 FloatDtype::F32.write(*x, &mut data);
 }
        let weight = Weight { data: &data, dtype: FloatDtype::F32, shape: [rows, k] };
        for (name, relative) in [("fp8_channel", 0.04), ("int8_channel", 0.006), ("int4_g32", 0.1), ("mxfp4", 0.3), ("mxfp6", 0.08), ("mxfp8", 0.05)] {
            let rest = quantize_weight(weight, &layout(name), Arithmetic::F32, 0.0, &mut |_| Ok(())).unwrap();
            prop_assert!(rest.noise <= relative * relative * rest.signal, "{name} {:?}", rest.sqnr_db());
        }
    }

    /// Every path of this machine gives the same bytes and the same sums, for every scheme, shape and kind of value.
    #[test]
    fn paths_agree(
        rows in 1usize..6,
        groups in 1usize..4,
        extra in 0usize..40,
        scheme in 0usize..PATH_SCHEMES.len(),
        dtype in 0usize..3,
        rounded in any::<bool>(),
        bits in proptest::collection::vec(any::<u32>(), 64),
    ) {
        let dtype = [FloatDtype::Bf16, FloatDtype::F16, FloatDtype::F32][dtype];
        let layout = layout(PATH_SCHEMES[scheme]);
        // Groups divide a row, a scale per row or block does not mind.
        let k = groups * 32 + if layout.group_size().is_some() { 0 } else { extra };
        let data = odd_values(&bits, rows * k, dtype);
        let weight = Weight { data: &data, dtype, shape: [rows, k] };
        let shared = dtype.amax(&data);
        let arithmetic = if rounded { Arithmetic::WeightDtype } else { Arithmetic::F32 };
        let on = |path| {
            let mut quantizer = WeightQuantizer::new(weight.shape, dtype, &layout, arithmetic, shared);
            quantizer.path = path;
            let mut tile = Tile::default();
            let finite = quantizer.quantize(0, &data, &mut tile).is_ok();
            let sums = [tile.signal.to_bits(), tile.noise.to_bits()];
            finite.then_some((tile.codes, tile.scales, tile.zero_points, sums))
        };
        let reference = on(KernelPath::portable());
        prop_assert_eq!(reference.is_some(), shared.is_finite());
        for path in KernelPath::available() {
            prop_assert_eq!(&on(path), &reference, "{} on {}", PATH_SCHEMES[scheme], path.name());
        }
    }
}

/// Schemes whose loops differ.
const PATH_SCHEMES: [&str; 15] = [
    "fp8_channel",
    "fp8_tensor",
    "fp8_block",
    "int8_channel",
    "int8_g32",
    "int4_channel",
    "int4_g32",
    "int4_g32_asym",
    "int3_g32",
    "int2_g32",
    "int7_g32_asym",
    "nvfp4",
    "mxfp4",
    "mxfp6",
    "mxfp8",
];

/// Elements of all kinds: ordinary weights, any bit pattern (NaN and infinity seldom), subnormals, zeros of both signs.
pub(crate) fn odd_values(bits: &[u32], count: usize, dtype: FloatDtype) -> Vec<u8> {
    let mut data = Vec::new();
    for i in 0..count {
        let seed = bits[i % bits.len()].rotate_left(i as u32 / 7);
        let value = match seed % 16 {
            0 => 0.0,
            1 => -0.0,
            // Subnormal in every type: the smallest magnitudes of f16 are 6e-8, of bf16 and f32 1e-45.
            2 => (seed >> 8) as f32 * if dtype == FloatDtype::F16 { 3e-12 } else { 1e-45 },
            3 => f32::from_bits(seed),
            _ => ((seed >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.1,
        };
        dtype.write(value, &mut data);
    }
    data
}
