//! The quantization kernels against the CPU: codes, scales and zero points bit for bit.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::checkpoint::quant_args::Strategy as By;
use crate::device::cuda::test_device::device;
use crate::device::cuda::{CudaError, Device, DeviceBuffer, Stream};
use crate::ops::dequantize::Global;
use crate::ops::quantize_weight::tests::{layout, odd_values, scheme};
use crate::ops::quantize_weight::{Arithmetic, QuantizeWeightError, Tile, WeightQuantizer};
use crate::ops::weight_layout::WeightLayout;

/// Schemes whose kernels differ, at least one for each element, scale, packing and shape of groups.
const SCHEMES: [&str; 17] = [
    "fp8_channel",
    "fp8_tensor",
    "fp8_block",
    "int8_channel",
    "int8_g32",
    "int4_channel",
    "int4_g32",
    "int4_g32_asym",
    "int2_g32",
    "int3_g32",
    "int5_g32",
    "int6_g32",
    "int7_g32_asym",
    "nvfp4",
    "mxfp4",
    "mxfp6",
    "mxfp8",
];

/// Ordinary weights.
fn weights(count: usize, seed: u32, dtype: FloatDtype) -> Vec<u8> {
    let mut data = Vec::new();
    for i in 0..count as u32 {
        let x = (i.wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(40_503)).wrapping_mul(2_246_822_519);
        dtype.write(
            ((x >> 8) as f32 / (1 << 23) as f32 - 1.0) * 0.07 * (1.0 + (i % 97) as f32 * 0.03),
            &mut data,
        );
    }
    data
}

/// One weight as the CPU and as the device quantize it.
struct Both {
    device: Arc<Device>,
    lane: Lane,
}

impl Both {
    fn new(device: Arc<Device>) -> Self {
        let lane = Lane::new(&device, 64).unwrap();
        Self { device, lane }
    }

    /// Compares the tile, or the error; `false` where the device leaves the layout to the CPU.
    fn compare(
        &mut self,
        name: &str,
        layout: &WeightLayout,
        (dtype, arithmetic): (FloatDtype, Arithmetic),
        shape: [usize; 2],
        data: &[u8],
    ) -> bool {
        let quantizer = WeightQuantizer::new(shape, dtype, layout, arithmetic, dtype.amax(data));
        let Some(on_device) = CudaQuantizer::new(&self.device, quantizer).unwrap() else { return false };
        let (mut expected, mut found) = (Tile::default(), Tile::default());
        let on_cpu = quantizer.quantize(0, data, &mut expected);
        self.lane.input.ensure(data.len()).unwrap();
        self.lane.input[..data.len()].copy_from_slice(data);
        let on_gpu = on_device.quantize(&mut self.lane, 0, data.len(), &mut found);
        match (on_cpu, on_gpu) {
            (Ok(()), Ok(())) => {}
            (
                Err(QuantizeWeightError::NonFinite { row, column, .. }),
                Err(CudaQuantizeError::Weight(QuantizeWeightError::NonFinite { row: r, column: c, .. })),
            ) => {
                assert_eq!((row, column), (r, c));
                return true;
            }
            (on_cpu, on_gpu) => {
                panic!("{name} {dtype:?} {shape:?}: {on_cpu:?} on the CPU, {on_gpu:?} on the GPU")
            }
        }
        let what = format!("{name} {dtype:?} {arithmetic:?} {shape:?}");
        assert!(found.scales == expected.scales, "{what}: scales {:?} {:?}", found.scales, expected.scales);
        assert!(found.zero_points == expected.zero_points, "{what}: zero points");
        for (i, (found, expected)) in found.codes.iter().zip(&expected.codes).enumerate() {
            assert_eq!(found, expected, "{what}: byte {i} of the codes");
        }
        assert_eq!(found.codes.len(), expected.codes.len(), "{what}");
        on_device.check(&self.device, 0, data, &found).unwrap();
        // The device adds squares of a warp in f32, where sums of the largest ones overflow.
        let near = |a: f64, b: f64| {
            (a - b).abs() <= 1e-5 * b.abs() || !b.is_finite() || (a == f64::INFINITY && b > 1e38)
        };
        assert!(near(found.signal, expected.signal), "{what}: {} {}", found.signal, expected.signal);
        assert!(near(found.noise, expected.noise), "{what}: {} {}", found.noise, expected.noise);
        found.codes[0] ^= 1;
        let differs = on_device.check(&self.device, 0, data, &found);
        assert!(matches!(differs, Err(CudaQuantizeError::Differs { what: "codes", .. })), "{differs:?}");
        true
    }
}

/// Each scheme in bf16, over shapes with ragged rows, rectangles and tails.
#[test]
fn every_scheme_has_the_bytes_of_the_cpu() {
    let Some(device) = device() else { return };
    let mut both = Both::new(device);
    for name in SCHEMES {
        let layout = layout(name);
        let grouped = layout.group_size().is_some();
        let shapes: &[[usize; 2]] = if grouped {
            &[[40, 96], [1, 32], [3, 1024]]
        } else {
            &[[40, 96], [33, 101], [1, 1], [70, 130], [2, 5000]]
        };
        for (seed, shape) in shapes.iter().enumerate() {
            let data = weights(shape[0] * shape[1], seed as u32, FloatDtype::Bf16);
            let bf16 = (FloatDtype::Bf16, Arithmetic::F32);
            assert!(both.compare(name, &layout, bf16, *shape, &data), "{name} {shape:?} is left to the CPU");
        }
    }
}

/// The other float types, and quotients rounded to them.
#[test]
fn every_dtype_and_arithmetic_has_the_bytes_of_the_cpu() {
    let Some(device) = device() else { return };
    let mut both = Both::new(device);
    let (f16, f32) = (FloatDtype::F16, FloatDtype::F32);
    let (exact, rounded) = (Arithmetic::F32, Arithmetic::WeightDtype);
    for (name, dtype, arithmetic) in [
        ("fp8_channel", f16, exact),
        ("int4_g32_asym", f16, rounded),
        ("nvfp4", f16, exact),
        ("fp8_block", f32, exact),
        ("int4_g32_asym", f32, rounded),
        ("nvfp4", f32, rounded),
        ("mxfp4", f32, exact),
        ("int8_channel", FloatDtype::Bf16, rounded),
        ("int4_g32_asym", FloatDtype::Bf16, rounded),
    ] {
        for shape in [[40, 96], [5, 160]] {
            let data = weights(shape[0] * shape[1], 3, dtype);
            assert!(both.compare(name, &layout(name), (dtype, arithmetic), shape, &data));
        }
    }
}

/// Zeros of both signs, subnormals, huge numbers, NaN and infinity: the same bytes, or the same element is named.
#[test]
fn odd_values_are_treated_alike() {
    let Some(device) = device() else { return };
    let both = std::cell::RefCell::new(Both::new(device));
    let config = Config { cases: 60, failure_persistence: None, ..Config::default() };
    let bits = proptest::collection::vec(any::<u32>(), 64);
    let names = ["fp8_channel", "int4_g32_asym", "nvfp4", "mxfp4"];
    TestRunner::new(config)
        .run(&(bits, 0..names.len(), 1usize..4, 1usize..4), |(bits, scheme, rows, groups)| {
            let shape = [rows, groups * 32];
            let data = odd_values(&bits, shape[0] * shape[1], FloatDtype::Bf16);
            let (name, bf16) = (names[scheme], (FloatDtype::Bf16, Arithmetic::F32));
            // An infinite amax is refused before any weight is quantized.
            if layout(name).needs_tensor_amax() && !FloatDtype::Bf16.amax(&data).is_finite() {
                return Ok(());
            }
            prop_assert!(both.borrow_mut().compare(name, &layout(name), bf16, shape, &data));
            Ok(())
        })
        .unwrap();
}

#[test]
fn groups_that_split_steps_are_left_to_the_cpu() {
    let Some(device) = device() else { return };
    let (mut args, format) = scheme("int4_g32");
    for (group, on_device) in [(40, false), (8, false), (48, true), (80, true), (128, true)] {
        args.group_size = Some(group);
        let layout = WeightLayout::new(&args, format).unwrap();
        let data = weights(3 * 960, 1, FloatDtype::Bf16);
        let shape = [3, 960 / group * group];
        let data = &data[..shape[0] * shape[1] * 2];
        let mut both = Both::new(Arc::clone(&device));
        let bf16 = (FloatDtype::Bf16, Arithmetic::F32);
        assert_eq!(both.compare("int4", &layout, bf16, shape, data), on_device, "group {group}");
    }
}

/// What was compared with the CPU is known by all that decides the code that ran.
#[test]
fn schemes_tell_kernels_and_rectangles_apart() {
    let Some(device) = device() else { return };
    let (mut args, format) = scheme("int4_g32");
    let mut scheme_of = |group: usize| {
        args.group_size = Some(group);
        let layout = WeightLayout::new(&args, format).unwrap();
        let quantizer = WeightQuantizer::new([4, 96], FloatDtype::Bf16, &layout, Arithmetic::F32, 0.0);
        CudaQuantizer::new(&device, quantizer).unwrap().unwrap().scheme()
    };
    let schemes = [16, 32, 48].map(&mut scheme_of);
    assert!(schemes[0].starts_with("quantize_groups of 1 × 16 by quantize.cu DTYPE=BF16"), "{schemes:?}");
    assert!(schemes[1].starts_with("quantize_groups of 1 × 32"), "{schemes:?}");
    assert!(schemes[2].starts_with("quantize_rectangles of 1 × 48"), "{schemes:?}");
}

#[test]
fn wrong_tiles_are_refused() {
    let Some(device) = device() else { return };
    let mut lane = Lane::new(&device, 256).unwrap();
    let quantizer =
        WeightQuantizer::new([2, 32], FloatDtype::Bf16, &layout("fp8_channel"), Arithmetic::F32, 0.0);
    let on_device = CudaQuantizer::new(&device, quantizer).unwrap().unwrap();
    let mut tile = Tile::default();
    for bytes in [63, 65, 4096] {
        let refused = on_device.quantize(&mut lane, 0, bytes, &mut tile);
        assert!(
            matches!(refused, Err(CudaQuantizeError::Device(CudaError::Argument { .. }))),
            "{bytes}: {refused:?}"
        );
    }
    on_device.quantize(&mut lane, 0, 0, &mut tile).unwrap();
    assert!(tile.codes.is_empty());
}

#[test]
fn amax_is_that_of_the_cpu() {
    let Some(device) = device() else { return };
    let stream = Stream::new(&device).unwrap();
    let bits = DeviceBuffer::new(&device, 4).unwrap();
    let amax = |dtype: FloatDtype, x: &DeviceBuffer, count: usize| {
        // SAFETY: buffers live until the download has synchronized the stream.
        unsafe { launch_amax(&stream, dtype, x, count, &bits)? };
        Ok::<_, CudaError>(amax_of_bits(dtype, &stream.download(&bits, 4)?))
    };
    for dtype in [FloatDtype::Bf16, FloatDtype::F16, FloatDtype::F32] {
        for count in [1, 15, 16, 17, 5000, 40_001] {
            let mut data = weights(count, 9, dtype);
            let buffer = stream.upload(&data).unwrap();
            let found = amax(dtype, &buffer, count).unwrap();
            assert_eq!(found.to_bits(), dtype.amax(&data).to_bits(), "{dtype:?} {count}");
            assert!(amax(dtype, &buffer, count + 1).is_err() && amax(dtype, &buffer, usize::MAX).is_err());
            let mut bad = Vec::new();
            dtype.write(f32::NAN, &mut bad);
            let at = count / 2 * dtype.size();
            data[at..at + dtype.size()].copy_from_slice(&bad);
            let buffer = stream.upload(&data).unwrap();
            assert!(!amax(dtype, &buffer, count).unwrap().is_finite());
        }
    }
}

/// Codes of the CPU dequantized on the device: (code − zero point) · scale to the bit, rounded once for bf16.
#[test]
fn dequantized_weights_are_those_of_the_cpu() {
    let Some(device) = device() else { return };
    let stream = Stream::new(&device).unwrap();
    for name in SCHEMES {
        let layout = layout(name);
        let shape = if layout.group_size().is_some() { [5, 96] } else { [40, 101] };
        let data = weights(shape[0] * shape[1], 4, FloatDtype::Bf16);
        let amax = FloatDtype::Bf16.amax(&data);
        let quantizer = WeightQuantizer::new(shape, FloatDtype::Bf16, &layout, Arithmetic::F32, amax);
        let mut tile = Tile::default();
        quantizer.quantize(0, &data, &mut tile).unwrap();
        let mut collected = crate::ops::quantize_weight::Collected::default();
        collected.add(&tile);
        let zero_points: Vec<u8> = tile.zero_points.iter().map(|z| *z as u8).collect();
        let rest = quantizer.finish(collected);
        let tensor =
            |suffix: &str| rest.tensors.iter().find(|(s, _)| *s == suffix).map(|(_, bytes)| bytes.clone());
        let divisor = tensor("weight_global_scale").map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        let scale_bytes = tensor("weight_scale").unwrap();
        let codes = stream.upload(&tile.codes).unwrap();
        let scales = stream.upload(&scale_bytes).unwrap();
        let zero_points = stream.upload(&zero_points).unwrap();
        // A global scale divides, or multiplies as ModelOpt's does.
        let divided = divisor.map(Global::Divisor);
        let multiplied = divisor.map(|divisor| Global::Multiplier(1.0 / divisor));
        for (output, global) in [(Act::F32, divided), (Act::Bf16, divided), (Act::F32, multiplied)] {
            let of_rows = if output == Act::F32 { 0..shape[0] } else { 2..shape[0] };
            let expected = dense(&layout, shape, &tile.codes, &scale_bytes, &tile.zero_points, global);
            let out = DeviceBuffer::new(&device, expected.len() * output.size()).unwrap();
            let weight = DeviceWeight {
                coding: layout.coding(FloatDtype::Bf16),
                shape,
                block: layout.block(shape),
                global,
                codes: &codes,
                scales: &scales,
                zero_points: Some(&zero_points),
            };
            // SAFETY: the buffers live until the download has synchronized the stream.
            unsafe { dequantize(&stream, output, &weight, of_rows.clone(), (&out).into()).unwrap() };
            let expected = &expected[of_rows.start * shape[1]..];
            let bytes = stream.download(&out, expected.len() * output.size()).unwrap();
            let mut found = vec![0.0; expected.len()];
            let dtype = if output == Act::F32 { FloatDtype::F32 } else { FloatDtype::Bf16 };
            dtype.decode(&bytes, &mut found);
            for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                assert_eq!(found.to_bits(), dtype.round(*expected).to_bits(), "{name} element {i}");
            }
            let small = DeviceWeight { shape: [shape[0] + 100, shape[1]], ..weight };
            // SAFETY: refused before anything is launched.
            assert!(unsafe { dequantize(&stream, output, &small, 0..1, (&out).into()) }.is_err());
            // SAFETY: as above.
            assert!(unsafe { dequantize(&stream, output, &weight, 0..shape[0] + 1, (&out).into()) }.is_err());
        }
    }
}

/// The dense weight by the reference of each part.
fn dense(
    layout: &WeightLayout,
    [n, k]: [usize; 2],
    codes: &[u8],
    scales: &[u8],
    zero_points: &[i8],
    global: Option<Global>,
) -> Vec<f32> {
    use crate::ops::{e8m0, fp4, fp6, fp8, int_pack};
    let row_bytes = layout.codes([1, k]).num_bytes() as usize;
    let [band, columns] = layout.block([n, k]);
    let groups = k.div_ceil(columns);
    let scale = |group: usize| match layout.scale {
        ScaleKind::Float => {
            let mut value = [0.0];
            FloatDtype::Bf16.decode(&scales[2 * group..2 * group + 2], &mut value);
            value[0]
        }
        ScaleKind::E4m3UnderGlobal => match global.unwrap() {
            Global::Divisor(global) => fp8::e4m3_to_f32(scales[group]) / global,
            Global::Multiplier(global) => fp8::e4m3_to_f32(scales[group]) * global,
        },
        ScaleKind::E8m0 => e8m0::e8m0_to_f32(scales[group]),
    };
    let mut dense = Vec::new();
    for row in 0..n {
        let bytes = &codes[row * row_bytes..][..row_bytes];
        let values: Vec<f32> = match (layout.element, layout.is_packed_in_words()) {
            (Element::Int(bits), true) => {
                let mut codes = vec![0; k];
                int_pack::unpack_row(bytes, bits, &mut codes);
                codes.iter().map(|q| f32::from(*q)).collect()
            }
            (Element::Int(_), false) => bytes.iter().map(|q| f32::from(*q as i8)).collect(),
            (Element::E4m3, _) => bytes.iter().map(|q| fp8::e4m3_to_f32(*q)).collect(),
            (Element::E2m1, _) => (0..k).map(|i| fp4::e2m1_to_f32(bytes[i / 2] >> (i % 2 * 4))).collect(),
            (Element::E2m3, _) => {
                let mut codes = vec![0; k];
                fp6::unpack(bytes, &mut codes);
                codes.iter().map(|q| fp6::e2m3_to_f32(*q)).collect()
            }
        };
        for (column, value) in values.iter().enumerate() {
            let group =
                if layout.strategy == By::Tensor { 0 } else { row / band * groups + column / columns };
            let zero_point = zero_points.get(group).map_or(0.0, |z| f32::from(*z));
            dense.push((value - zero_point) * scale(group));
        }
    }
    dense
}
