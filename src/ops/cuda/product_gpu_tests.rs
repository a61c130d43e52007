//! Matrix products and what surrounds them, against formulas in f64 or the CPU's operations.

use super::engine_gpu_tests::{ACTS, close, get, noise, put, room};
use super::*;
use crate::checkpoint::quant_args::Amax;
use crate::device::cuda::test_device::device;
use crate::device::cuda::{CudaError, Operand, Product, ProductKind, Products, Stream};
use crate::ops::activation_quant::ActivationElement::{self, Fp4, Fp8, Int8};
use crate::ops::activation_quant::ActivationQuant;
use crate::ops::fp8;
use crate::ops::kernel_path::KernelPath;

const KINDS: [ProductKind; 7] = [
    ProductKind::F32,
    ProductKind::Bf16,
    ProductKind::Bf16ToF32,
    ProductKind::Fp8ToF32,
    ProductKind::Fp8ScaledToF32,
    ProductKind::Fp8ScaledToBf16,
    ProductKind::Int8ToInt32,
];

/// Elements of x and w on the device, and the numbers they stand for.
fn operand(stream: &Stream, kind: ProductKind, len: usize, seed: u32) -> (DeviceBuffer, Vec<f32>) {
    match kind {
        ProductKind::F32 => {
            let x = noise(len, seed, Act::F32);
            (put(stream, Act::F32, &x), x)
        }
        ProductKind::Bf16 | ProductKind::Bf16ToF32 => {
            let x = noise(len, seed, Act::Bf16);
            (put(stream, Act::Bf16, &x), x)
        }
        ProductKind::Fp8ToF32
        | ProductKind::Fp8ScaledToF32
        | ProductKind::Fp8ScaledToBf16
        | ProductKind::Int8ToInt32 => {
            let bytes: Vec<u8> = noise(len, seed, Act::F32).iter().map(|x| (x * 119.0) as i8 as u8).collect();
            let number = |code: &u8| match kind {
                ProductKind::Int8ToInt32 => f32::from(*code as i8),
                _ => fp8::e4m3_to_f32(*code),
            };
            // −1 as a byte is the one NaN of its sign.
            let codes: Vec<u8> = bytes.into_iter().map(|b| if b == 0xff { 0 } else { b }).collect();
            let numbers = codes.iter().map(number).collect();
            (stream.upload(&codes).unwrap(), numbers)
        }
    }
}

/// Sums in f64, times a scale, in the columns from 8 on of rows of `stride`.
fn expected_product(
    [m, n, k]: [usize; 3],
    stride: usize,
    (x, w): (&[f32], &[f32]),
    scale: impl Fn(usize, usize) -> f32,
) -> Vec<f32> {
    let mut expected = vec![0.0; m * stride];
    for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
        let products =
            x[row * k..][..k].iter().zip(&w[column * k..]).map(|(x, w)| f64::from(*x) * f64::from(*w));
        expected[row * stride + 8 + column] = products.sum::<f64>() as f32 * scale(row, column);
    }
    expected
}

/// Every kind, at an offset and between other columns, for one row and for many.
#[test]
fn products_are_sums_of_products() {
    let Some(device) = device() else { return };
    let stream = Stream::new(&device).unwrap();
    let products = Products::new(&device).unwrap();
    for kind in KINDS {
        let ([n, k], [input, output]) = ([32, 48], kind.sizes());
        let (w, w_numbers) = operand(&stream, kind, n * k, 1);
        for m in [1, 21] {
            let scales = [noise(m, 8, Act::F32), noise(n, 9, Act::F32)];
            let on_device = scales.each_ref().map(|scales| put(&stream, Act::F32, scales));
            // A row before x, and eight columns on either side of y.
            let (x, x_numbers) = operand(&stream, kind, (m + 1) * k, 2);
            let (stride, y) = (n + 16, room(&stream, m * (n + 16) * output));
            let product = Product {
                kind,
                x: Operand { buffer: &x, offset: k * input },
                w: (&w).into(),
                y: Operand { buffer: &y, offset: 8 * output },
                shape: [m, n, k],
                stride,
                scales: kind.is_scaled().then(|| on_device.each_ref().map(Operand::from)),
            };
            let other_scales = if kind.is_scaled() { None } else { Some([(&w).into(); 2]) };
            // Compute capabilities without such kernels are told so, and nothing is queued.
            // SAFETY: buffers live until the downloads have synchronized the stream.
            match unsafe { products.run(&stream, &product) } {
                Err(CudaError::NoProduct { .. }) if kind.is_scaled() && device.capability() != (9, 0) => {
                    continue;
                }
                queued => queued.unwrap(),
            }
            // SAFETY: as above.
            unsafe {
                stream.fill(&y, 0, y.len(), 0).unwrap();
                products.run(&stream, &product).unwrap();
                let wrong = [
                    Product { shape: [m + 1, n, k], ..product },
                    Product { shape: [m, n + 16, k], stride: n + 32, ..product },
                    Product { stride: n - 1, ..product },
                    Product { shape: [m, 0, k], ..product },
                    Product { scales: other_scales, ..product },
                ];
                for wrong in wrong {
                    assert!(products.run(&stream, &wrong).is_err());
                }
                products.run(&stream, &Product { shape: [0, n, k], ..product }).unwrap();
            }
            let act = if output == 2 { Act::Bf16 } else { Act::F32 };
            let mut found = get(&stream, act, &y, m * stride);
            if kind == ProductKind::Int8ToInt32 {
                for x in &mut found {
                    *x = x.to_bits() as i32 as f32;
                }
            }
            let expected =
                expected_product([m, n, k], stride, (&x_numbers[k..], &w_numbers), |row, column| {
                    if kind.is_scaled() { scales[0][row] * scales[1][column] } else { 1.0 }
                });
            let scale = expected.iter().fold(0f32, |a, x| a.max(x.abs())).max(1.0);
            let relative = |x: &[f32]| x.iter().map(|x| x / scale).collect::<Vec<_>>();
            // Tensor cores keep few bits of FP8 sums (about 14 on sm_90), and cut sums of bf16 products off.
            let tolerance = match kind {
                ProductKind::Fp8ToF32 | ProductKind::Fp8ScaledToF32 | ProductKind::Fp8ScaledToBf16 => 1e-3,
                ProductKind::Bf16 | ProductKind::Bf16ToF32 => 1e-5,
                ProductKind::F32 | ProductKind::Int8ToInt32 => 2e-6,
            };
            close(&format!("{kind:?}"), act, &relative(&found), &relative(&expected), tolerance);
        }
    }
}

/// The CPU's numbers to the bit in f32, and rounded to it in bf16.
#[test]
fn activations_are_quantized_and_back_as_on_the_cpu() {
    let Some(device) = device() else { return };
    let stream = Stream::new(&device).unwrap();
    let (rows, k) = (5, 128);
    let stored = |value: f32| Some(Amax::try_from(value).unwrap());
    let of = |element: ActivationElement, group_size, mx, stored| ActivationQuant {
        element,
        group_size,
        mx,
        stored,
    };
    let kinds = [
        of(Fp8, None, false, None),
        of(Int8, None, false, None),
        of(Fp8, Some(64), false, None),
        of(Fp8, None, false, stored(0.003)),
        of(Int8, None, false, stored(0.004)),
        of(Fp4, Some(16), false, stored(400.0)),
        of(Fp8, Some(32), true, None),
        of(Fp4, Some(32), true, None),
    ];
    for act in ACTS {
        let mut x = noise(rows * k, 3, act);
        x[k..2 * k].fill(0.0);
        x[2 * k + 3] = f32::INFINITY;
        x[3 * k + 40] = f32::NAN;
        let (on_x, out) = (put(&stream, act, &x), room(&stream, rows * k * act.size()));
        for quant in kinds {
            // SAFETY: buffers live until the download has synchronized the stream.
            unsafe { fake_quantize(&stream, (act, quant), &on_x, &out, [rows, k]).unwrap() };
            let mut expected = vec![0.0; rows * k];
            let path = KernelPath::portable();
            crate::ops::activation_quant::fake_quantize(path, quant, &x, k, &mut expected);
            for (i, (found, expected)) in get(&stream, act, &out, rows * k).iter().zip(expected).enumerate() {
                let expected = if act == Act::Bf16 { FloatDtype::Bf16.round(expected) } else { expected };
                // Beside an infinity codes of FP4 have some sign.
                let same =
                    found.to_bits() == expected.to_bits() || !found.is_finite() && !expected.is_finite();
                assert!(same, "{quant:?} {i}: {found}, expected {expected}");
            }
        }
        let ragged = of(Fp8, Some(24), false, None);
        // SAFETY: refused.
        assert!(unsafe { fake_quantize(&stream, (act, ragged), &on_x, &out, [rows, k]) }.is_err());
    }
}

#[test]
fn products_of_codes_are_scaled_and_biases_added() {
    let Some(device) = device() else { return };
    let stream = Stream::new(&device).unwrap();
    let (rows, n, stride) = (3, 20, 26);
    let sums: Vec<f32> = noise(rows * n, 4, Act::F32).iter().map(|x| (x * 1000.0).round()).collect();
    let (row_scales, column_scales) = (noise(rows, 5, Act::F32), noise(n, 6, Act::F32));
    let bias = noise(n, 7, Act::F32);
    let scales = [&row_scales, &column_scales].map(|s| put(&stream, Act::F32, s));
    let on_bias = put(&stream, Act::F32, &bias);
    for (act, integers) in ACTS.into_iter().flat_map(|act| [(act, true), (act, false)]) {
        let bytes: Vec<u8> = sums
            .iter()
            .flat_map(|x| if integers { (*x as i32).to_le_bytes() } else { x.to_le_bytes() })
            .collect();
        let (on_sums, y) = (stream.upload(&bytes).unwrap(), room(&stream, rows * stride * act.size()));
        let at = Operand { buffer: &y, offset: 4 * act.size() };
        let columns = Columns { act, at, rows, n, stride };
        // SAFETY: buffers live until the download has synchronized the stream.
        unsafe {
            stream.fill(&y, 0, y.len(), 0).unwrap();
            scale_product(&stream, (&on_sums, integers), [(&scales[0]).into(), (&scales[1]).into()], columns)
                .unwrap();
            add_bias(&stream, &on_bias, columns).unwrap();
            let wide = Columns { stride: stride + 10, ..columns };
            assert!(add_bias(&stream, &on_bias, wide).is_err());
            assert!(add_bias(&stream, &scales[0], columns).is_err());
        }
        let found = get(&stream, act, &y, rows * stride);
        let mut expected = vec![0.0; rows * stride];
        for (i, sum) in sums.iter().enumerate() {
            let (row, column) = (i / n, i % n);
            expected[row * stride + 4 + column] =
                sum * row_scales[row] * column_scales[column] + bias[column];
        }
        close("scaled", act, &found, &expected, 1e-6);
    }
}
