//! Matrix products: cuBLASLt's in every kind, and weight-only layers over packed weights.

use day0::device::cuda::{CudaError, DeviceBuffer, Operand, Product, ProductKind, Products, Stream};
use day0::ops::cuda::{Act, Columns, linear_quantized, scale_product};

use super::measure::Bench;
use super::weights::{layouts, scales, weight};

/// The rate of bf16 products of random numbers, with which everything is compared, then the other kinds.
pub fn run(bench: &mut Bench) -> Result<(), CudaError> {
    let side = bench.size(8192, 64);
    let products = Products::new(bench.device())?;
    let flop = 2.0 * (side as f64).powi(3);
    let x_scales = bench.f32(side)?;
    let w_scales = bench.f32(side)?;
    let y = bench.room(4 * side * side)?;
    let operands = |bench: &Bench, bytes: usize| -> Result<[DeviceBuffer; 2], CudaError> {
        let of = || if bytes == 2 { bench.bf16(side * side) } else { bench.codes(side * side) };
        Ok([of()?, of()?])
    };
    for kind in [
        ProductKind::Bf16,
        ProductKind::Bf16ToF32,
        ProductKind::Fp8ToF32,
        ProductKind::Fp8ScaledToBf16,
        ProductKind::Int8ToInt32,
    ] {
        let [x, w] = operands(bench, kind.sizes()[0])?;
        let scales = kind.is_scaled().then(|| [&x_scales, &w_scales].map(Operand::from));
        let (shape, stride) = ([side; 3], side);
        let product = Product { kind, x: (&x).into(), w: (&w).into(), y: (&y).into(), shape, stride, scales };
        // SAFETY: all buffers live until the end, and each run waits for the stream.
        let rate =
            bench.flop(&format!("{kind:?}"), flop, &|stream| unsafe { products.run(stream, &product) });
        match rate {
            Err(CudaError::NoProduct { .. }) => println!("{kind:?}: no kernel on this device"),
            Err(error) => return Err(error),
            Ok(rate) if kind == ProductKind::Bf16 => bench.products = rate,
            Ok(_) => {}
        }
    }
    let scaled = bench.room(2 * side * side)?;
    bench.bytes("scale_product", 6 * side * side, &|stream| {
        let columns = Columns { act: Act::Bf16, at: (&scaled).into(), rows: side, n: side, stride: side };
        // SAFETY: as above.
        unsafe { scale_product(stream, (&y, true), [(&x_scales).into(), (&w_scales).into()], columns) }
    })?;
    packed(bench)
}

/// Weight-only layers of few rows, which read the weight, and of many, which multiply.
fn packed(bench: &Bench) -> Result<(), CudaError> {
    let shape = [bench.size(8192, 128), bench.size(8192, 128)];
    for (name, layout) in layouts() {
        if !["int4_g128", "nvfp4", "fp8_channel"].contains(&name) {
            continue;
        }
        let (bytes, (scale_bytes, _)) = (layout.codes(shape).num_bytes() as usize, scales(&layout, shape));
        let (codes, scales) = (bench.codes(bytes)?, bench.bf16(scale_bytes)?);
        let weight = weight(&layout, shape, (&codes, &scales, None));
        for rows in [1, 64, bench.size(4096, 70)] {
            let (x, y) = (bench.bf16(rows * shape[1])?, bench.room(2 * rows * shape[0])?);
            let at = Operand::from(&y);
            let columns = Columns { act: Act::Bf16, at, rows, n: shape[0], stride: shape[0] };
            let launch = |stream: &Stream| {
                // SAFETY: all buffers live until the end, and each run waits for the stream.
                unsafe { linear_quantized(stream, &x, (&weight, 0), columns) }
            };
            let name = format!("linear {name} of {rows}");
            if rows <= 64 {
                bench.bytes(&name, bytes + scale_bytes + 2 * rows * (shape[0] + shape[1]), &launch)?;
            } else {
                bench.flop(&name, 2.0 * (rows * shape[0] * shape[1]) as f64, &launch)?;
            }
        }
    }
    Ok(())
}
