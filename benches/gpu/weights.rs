//! Weights: amax, quantization and packing of every scheme, and back.

use day0::checkpoint::quant_args::{Dynamic, Format, Observer, QuantType, QuantizationArgs, Strategy};
use day0::device::cuda::{CudaError, DeviceBuffer};
use day0::ops::cuda::{Act, CudaQuantizer, DeviceWeight, dequantize, launch_amax};
use day0::ops::dequantize::Global;
use day0::ops::float_dtype::FloatDtype;
use day0::ops::quantize_weight::{Arithmetic, WeightQuantizer};
use day0::ops::weight_layout::{ScaleKind, WeightLayout};

use super::measure::Bench;

/// The schemes by a name.
pub fn layouts() -> Vec<(&'static str, WeightLayout)> {
    use QuantType::{Float, Int};
    use Strategy::{Block, Channel, Group, Tensor, TensorGroup};
    [
        ("fp8_tensor", Float, 8, Tensor, None, Format::FloatQuantized),
        ("fp8_channel", Float, 8, Channel, None, Format::FloatQuantized),
        ("fp8_block", Float, 8, Block, None, Format::FloatQuantized),
        ("int8_channel", Int, 8, Channel, None, Format::IntQuantized),
        ("int4_g128", Int, 4, Group, Some(128), Format::PackQuantized),
        ("int4_g128_asym", Int, 4, Group, Some(128), Format::PackQuantized),
        ("int3_g128", Int, 3, Group, Some(128), Format::PackQuantized),
        ("nvfp4", Float, 4, TensorGroup, Some(16), Format::Nvfp4PackQuantized),
        ("mxfp4", Float, 4, Group, Some(32), Format::Mxfp4PackQuantized),
        ("mxfp6", Float, 6, Group, Some(32), Format::Mxfp6PackQuantized),
        ("mxfp8", Float, 8, Group, Some(32), Format::Mxfp8Quantized),
    ]
    .into_iter()
    .map(|(name, qtype, num_bits, strategy, group_size, format)| {
        let args = QuantizationArgs {
            num_bits,
            qtype,
            symmetric: !name.ends_with("_asym"),
            strategy,
            group_size,
            block_structure: (strategy == Block).then_some([128, 128]),
            dynamic: Dynamic::No,
            scale_dtype: None,
            observer: Observer::MinMax,
            amax: None,
        };
        (name, WeightLayout::new(&args, format).expect("a layout that exists"))
    })
    .collect()
}

/// Bytes of the scales of a weight, and their number.
pub fn scales(layout: &WeightLayout, shape: [usize; 2]) -> (usize, usize) {
    let [band, columns] = layout.block(shape);
    let count = shape[0].div_ceil(band) * shape[1].div_ceil(columns);
    (count * if layout.scale == ScaleKind::Float { 2 } else { 1 }, count)
}

/// A weight of codes, scales and zero points that stand for nothing.
pub fn weight<'a>(
    layout: &WeightLayout,
    shape: [usize; 2],
    (codes, scales, zero_points): (&'a DeviceBuffer, &'a DeviceBuffer, Option<&'a DeviceBuffer>),
) -> DeviceWeight<'a> {
    DeviceWeight {
        coding: layout.coding(FloatDtype::Bf16),
        shape,
        block: layout.block(shape),
        global: (layout.scale == ScaleKind::E4m3UnderGlobal).then_some(Global::Divisor(1.0)),
        codes,
        scales,
        zero_points,
    }
}

pub fn run(bench: &Bench) -> Result<(), CudaError> {
    // 1 GiB of bf16.
    let shape = [bench.size(1 << 15, 256), bench.size(1 << 14, 256)];
    let count = shape[0] * shape[1];
    let (x, results, amax) = (bench.bf16(count)?, bench.room(2 * count)?, bench.room(4)?);
    bench.bytes("amax", 2 * count, &|stream| {
        // SAFETY: all buffers live until the end, and each run waits for the stream.
        unsafe { launch_amax(stream, FloatDtype::Bf16, &x, count, &amax) }
    })?;
    for (name, layout) in layouts() {
        let quantizer = WeightQuantizer::new(shape, FloatDtype::Bf16, &layout, Arithmetic::F32, 1.0);
        let Some(kernel) = CudaQuantizer::new(bench.device(), quantizer)? else { continue };
        let codes = kernel.result_bytes(shape[0]);
        bench.bytes(&format!("quantize {name}"), 2 * count + codes, &|stream| {
            // SAFETY: as above.
            unsafe { kernel.launch(stream, shape[0], &x, &results) }
        })?;
    }
    drop(results);
    for (name, layout) in layouts() {
        // What codes and scales stand for does not matter for the time.
        let (bytes, (scale_bytes, groups)) =
            (layout.codes(shape).num_bytes() as usize, scales(&layout, shape));
        let (codes, scales, zero_points) =
            (bench.codes(bytes)?, bench.bf16(scale_bytes)?, bench.room(groups)?);
        let weight = weight(&layout, shape, (&codes, &scales, Some(&zero_points)));
        bench.bytes(&format!("dequantize {name}"), bytes + scale_bytes + 2 * count, &|stream| {
            // SAFETY: as above.
            unsafe { dequantize(stream, Act::Bf16, &weight, 0..shape[0], (&x).into()) }
        })?;
    }
    Ok(())
}
