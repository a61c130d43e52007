//! The kernels' headers, compiled by the system's C++ compiler, against the Rust reference: bit for bit, over every bf16,
//! every f16, every code, and random numbers.

use std::path::Path;
use std::process::Command;

use half::{bf16, f16};
use libloading::Library;
use rand::{Rng, SeedableRng};

use crate::device::cuda::test_device::emulator;
use crate::ops::float_dtype::{FloatDtype, round_bf16};
use crate::ops::weight_layout::Element;
use crate::ops::{e8m0, fp4, fp6, fp8, int_pack, qparams};

const DTYPES: [FloatDtype; 3] = [FloatDtype::Bf16, FloatDtype::F16, FloatDtype::F32];

/// The headers as a shared library; `None` without a C++ compiler.
fn library() -> Option<Library> {
    let Some(cxx) = emulator::cxx() else {
        eprintln!("skipped: no C++ compiler that could build the kernels' headers for the host");
        return None;
    };
    let dir = tempfile::tempdir().unwrap();
    let (root, out) = (Path::new(env!("CARGO_MANIFEST_DIR")), dir.path().join("numeric.so"));
    let output = Command::new(cxx)
        .args(["-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas"])
        .arg("-I")
        .arg(root.join("kernels"))
        .arg("-o")
        .args([&out, &root.join("tests/cuda/numeric.cpp")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // SAFETY: our own code, without initializers; it stays mapped after the file is gone.
    Some(unsafe { Library::new(out.as_os_str()) }.unwrap())
}

/// Code and value bits of each input, by the host's compilation of function `op`.
fn apply(library: &Library, op: i32, inputs: &[u32]) -> Vec<(u32, u32)> {
    type Numeric = unsafe extern "C" fn(i32, *const u32, *mut u32, u64);
    let mut out = vec![[0u32; 2]; inputs.len()];
    // SAFETY: the signature is that of tests/cuda/numeric.cpp; the arrays have the announced lengths.
    unsafe {
        let function = library.get::<Numeric>(b"numeric").unwrap();
        function(op, inputs.as_ptr(), out.as_mut_ptr().cast(), inputs.len() as u64);
    }
    out.into_iter().map(|[code, value]| (code, value)).collect()
}

/// Every bf16 and f16 as f32, and random f32 of all magnitudes.
fn inputs() -> Vec<u32> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(6);
    let narrow = (0..=u16::MAX)
        .flat_map(|bits| [bf16::from_bits(bits).to_f32().to_bits(), f16::from_bits(bits).to_f32().to_bits()]);
    narrow.chain((0..500_000).map(|_| rng.random())).collect()
}

fn same(what: &str, inputs: &[u32], found: &[(u32, u32)], expected: impl Fn(u32) -> (u32, u32)) {
    for (bits, found) in inputs.iter().zip(found) {
        assert_eq!(*found, expected(*bits), "{what} of {bits:#010x} ({})", f32::from_bits(*bits));
    }
}

#[test]
fn rounding_of_floats() {
    let Some(library) = library() else { return };
    let all = inputs();
    let numbers: Vec<u32> = all.iter().copied().filter(|b| !f32::from_bits(*b).is_nan()).collect();
    let pair = |(code, value): (u8, f32)| (u32::from(code), value.to_bits());
    let x = f32::from_bits;
    same("E4M3", &all, &apply(&library, 0, &all), |b| pair(fp8::e4m3_code_and_value(x(b))));
    same("E4M3 of numbers", &numbers, &apply(&library, 1, &numbers), |b| {
        pair(fp8::e4m3_code_and_value(x(b)))
    });
    same("E2M3", &numbers, &apply(&library, 2, &numbers), |b| pair(fp6::e2m3_code_and_value(x(b))));
    same("E2M1", &numbers, &apply(&library, 3, &numbers), |b| pair(fp4::e2m1_code_and_value(x(b))));
    same("bf16", &all, &apply(&library, 4, &all), |b| {
        let rounded = bf16::from_f32(x(b));
        (u32::from(rounded.to_bits()), rounded.to_f32().to_bits())
    });
    same("f16", &all, &apply(&library, 5, &all), |b| {
        let rounded = f16::from_f32(x(b));
        (u32::from(rounded.to_bits()), rounded.to_f32().to_bits())
    });
    same("bf16 in place", &numbers, &apply(&library, 6, &numbers), |b| (0, round_bf16(x(b)).to_bits()));
    same("INT8", &numbers, &apply(&library, 12, &numbers), |b| {
        let value = x(b).clamp(-128.0, 127.0).round_ties_even();
        // The magic number loses the sign of zero.
        (u32::from(value as i8 as u8), (value + 0.0).to_bits())
    });
}

#[test]
fn values_of_codes() {
    let Some(library) = library() else { return };
    let codes = |bits: u32| (0..1u32 << bits).collect::<Vec<u32>>();
    let value = |x: f32| (0, x.to_bits());
    let eight = codes(8);
    same("E4M3", &eight, &apply(&library, 7, &eight), |c| {
        // Every NaN of the kernels is the canonical one of its sign.
        let x = fp8::e4m3_to_f32(c as u8);
        if x.is_nan() { (0, 0x7fc0_0000 | (c & 0x80) << 24) } else { value(x) }
    });
    same("E2M3", &codes(6), &apply(&library, 8, &codes(6)), |c| value(fp6::e2m3_to_f32(c as u8)));
    same("E2M1", &codes(4), &apply(&library, 9, &codes(4)), |c| value(fp4::e2m1_to_f32(c as u8)));
    same("E8M0", &eight, &apply(&library, 10, &eight), |c| {
        let x = e8m0::e8m0_to_f32(c as u8);
        if x.is_nan() { (0, 0x7fc0_0000) } else { value(x) }
    });
    // `half` makes signalling NaN quiet.
    let of_f16 = |bits: u32| {
        let x = f16::from_bits(bits as u16);
        if x.is_nan() {
            (0, 0x7f80_0000 | (bits & 0x8000) << 16 | (bits & 0x3ff) << 13)
        } else {
            value(x.to_f32())
        }
    };
    same("E5M2", &eight, &apply(&library, 11, &eight), |c| of_f16(c << 8));
    let sixteen = codes(16);
    same("f16", &sixteen, &apply(&library, 13, &sixteen), of_f16);
}

/// Bits of scales and of zero points or stored bytes, by the host's compilation.
fn scales(
    library: &Library,
    (element, dtype, kind): (Element, FloatDtype, i32),
    extents: &[(f32, f32)],
    global: f32,
) -> Vec<(u32, f32)> {
    type Scales = unsafe extern "C" fn(i32, i32, i32, i32, *const f32, *const f32, f32, *mut u32, u64);
    let (min, max): (Vec<f32>, Vec<f32>) = extents.iter().copied().unzip();
    let (number, bits) = match element {
        Element::Int(bits) => (0, i32::from(bits)),
        Element::E4m3 => (1, 8),
        Element::E2m3 => (2, 6),
        Element::E2m1 => (3, 4),
    };
    let mut out = vec![[0u32; 2]; min.len()];
    let (to, len) = (out.as_mut_ptr().cast(), min.len() as u64);
    // SAFETY: as in `apply`.
    unsafe {
        let function = library.get::<Scales>(b"scales").unwrap();
        function(number, bits, dtype as i32, kind, min.as_ptr(), max.as_ptr(), global, to, len);
    }
    out.into_iter().map(|[scale, other]| (scale, f32::from_bits(other))).collect()
}

/// Extents of groups whose elements have `dtype`: amax of all magnitudes for the symmetric kinds, min and max otherwise.
fn extents(dtype: FloatDtype) -> Vec<(f32, f32)> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let finite = |bits: u32| {
        let x = match dtype {
            FloatDtype::Bf16 => bf16::from_bits(bits as u16).to_f32(),
            FloatDtype::F16 => f16::from_bits(bits as u16).to_f32(),
            FloatDtype::F32 => f32::from_bits(bits),
        };
        if x.is_finite() { x } else { 0.0 }
    };
    let every = (0..=u32::from(u16::MAX)).map(|b| if dtype == FloatDtype::F32 { b << 16 } else { b });
    let mut found: Vec<(f32, f32)> = every.map(|b| (-finite(b).abs() / 2.0, finite(b).abs())).collect();
    found.extend((0..50_000).map(|_| {
        let (a, b) = (finite(rng.random()), finite(rng.random()));
        (a.min(b), a.max(b))
    }));
    // What a float type cannot hold was made by halving.
    found.iter().map(|(min, max)| (dtype.round(*min), *max)).collect()
}

#[test]
fn scales_and_zero_points() {
    let Some(library) = library() else { return };
    for dtype in DTYPES {
        let all = extents(dtype);
        let magnitudes: Vec<(f32, f32)> = all.iter().map(|(_, max)| (0.0, max.abs())).collect();
        let elements = [Element::E4m3, Element::E2m3, Element::E2m1];
        for element in elements.into_iter().chain((2..=8).map(Element::Int)) {
            let found = scales(&library, (element, dtype, 0), &magnitudes, 0.0);
            for ((_, amax), (bits, _)) in magnitudes.iter().zip(found) {
                let expected = qparams::symmetric_scale(*amax, element, dtype);
                assert_eq!(bits, expected.to_bits(), "{element:?} {dtype:?} amax {amax}");
            }
        }
        for bits in 2..=8 {
            let element = Element::Int(bits);
            for ((min, max), found) in all.iter().zip(scales(&library, (element, dtype, 1), &all, 0.0)) {
                let (scale, zero_point) = qparams::asymmetric_qparams(*min, *max, element, dtype);
                // A range beyond the type's largest number has no scale; weights with one are refused nowhere, so the
                // bits of an infinite scale agree as well.
                let expected = (scale.to_bits(), zero_point);
                assert_eq!(found, expected, "{element:?} {dtype:?} [{min}, {max}]");
            }
        }
        for global in [1.0, 26880.0, 3.7e-3, 2.5e30] {
            let found = scales(&library, (Element::E2m1, dtype, 2), &magnitudes, global);
            for ((_, amax), (scale, byte)) in magnitudes.iter().zip(found) {
                let expected = qparams::nvfp4_local_scale(*amax, global, dtype);
                assert_eq!(
                    (byte, scale),
                    (f32::from(expected.0), expected.1.to_bits()),
                    "{dtype:?} {amax} / {global}"
                );
            }
        }
        for element in [Element::E4m3, Element::E2m3, Element::E2m1] {
            for ((_, amax), (_, byte)) in
                magnitudes.iter().zip(scales(&library, (element, dtype, 3), &magnitudes, 0.0))
            {
                assert_eq!(byte, f32::from(qparams::mx_scale(*amax, element)), "{element:?} {amax}");
            }
        }
    }
}

/// Two corrections give the division's bits for any normal quotient; one gives its codes for 16-bit floats: all pairs of
/// mantissas of bf16, random ones of f16.
#[test]
fn quotients_are_those_of_division() {
    type Quotients = unsafe extern "C" fn(i32, *const f32, *const f32, *mut f32, u64);
    let Some(library) = library() else { return };
    let run = |corrections: i32, x: &[f32], scale: &[f32]| {
        let mut out = vec![0.0; x.len()];
        // SAFETY: as in `apply`.
        unsafe {
            let function = library.get::<Quotients>(b"quotients").unwrap();
            function(corrections, x.as_ptr(), scale.as_ptr(), out.as_mut_ptr(), x.len() as u64);
        }
        out
    };
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(8);
    let mut number = |exponents: std::ops::Range<u32>| {
        f32::from_bits(rng.random::<u32>() & 0x807f_ffff | (rng.random_range(exponents) << 23))
    };
    let x: Vec<f32> = (0..300_000).map(|_| number(90..160)).collect();
    let scale: Vec<f32> = x.iter().map(|_| number(70..180).abs()).collect();
    for ((found, x), scale) in run(2, &x, &scale).iter().zip(&x).zip(&scale) {
        assert_eq!(found.to_bits(), (x / scale).to_bits(), "{x} / {scale}");
    }
    for corrections in [1, 2] {
        let zeros = run(corrections, &[0.0, -0.0], &[0.5, 0.5]);
        assert_eq!([zeros[0].to_bits(), zeros[1].to_bits()], [0, 1 << 31], "zeros keep their signs");
    }
    let mut x = Vec::new();
    let mut scale = Vec::new();
    for exponent in -12i32..10 {
        for (a, b) in (0..128u32).flat_map(|a| (0..128u32).map(move |b| (a, b))) {
            x.push(f32::from_bits(((127 + exponent) as u32) << 23 | a << 16));
            scale.push(f32::from_bits(127 << 23 | b << 16));
        }
        for _ in 0..10_000 {
            let half = |bits: u16| f16::from_bits(bits).to_f32();
            x.push(half(rng.random::<u16>() & 0x3ff | 0x3c00) * 2f32.powi(exponent));
            scale.push(half(rng.random::<u16>() & 0x3ff | 0x3c00));
        }
    }
    for ((found, x), scale) in run(1, &x, &scale).iter().zip(&x).zip(&scale) {
        let exact = x / scale;
        assert_eq!(fp8::e4m3_from_f32(*found), fp8::e4m3_from_f32(exact), "{x} / {scale}");
        assert_eq!(found.round_ties_even(), exact.round_ties_even(), "{x} / {scale}");
        assert_eq!(fp4::e2m1_from_f32(*found), fp4::e2m1_from_f32(exact), "{x} / {scale}");
    }
}

#[test]
fn packing_and_back() {
    type Pack = unsafe extern "C" fn(i32, *const u8, *mut u8, *mut u8);
    let Some(library) = library() else { return };
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(9);
    for bits in 2..=8u8 {
        for _ in 0..200 {
            let codes: [u8; 16] = std::array::from_fn(|_| rng.random::<u8>() >> (8 - bits));
            let (mut packed, mut back) = ([0u8; 16], [0u8; 16]);
            // SAFETY: as in `apply`; sixteen codes and at most sixteen bytes.
            unsafe {
                let function = library.get::<Pack>(b"pack").unwrap();
                function(i32::from(bits), codes.as_ptr(), packed.as_mut_ptr(), back.as_mut_ptr());
            }
            assert_eq!(back, codes, "{bits} bits");
            // The reference offsets integers by half their range; the stream is the same.
            let offset = 1u8 << (bits - 1);
            let mut expected = vec![0; int_pack::packed_bytes(16, bits)];
            int_pack::pack_row(&codes.map(|c| c ^ offset), bits, &mut expected);
            assert_eq!(packed[..2 * bits as usize], expected[..2 * bits as usize], "{bits} bits");
        }
    }
    let codes: [u8; 16] = std::array::from_fn(|i| (i * 5 % 64) as u8);
    let mut sextets = [0; 12];
    fp6::pack(&codes, &mut sextets);
    let mut nibbles = [0; 8];
    fp4::pack(&codes.map(|c| c & 15), &mut nibbles);
    for (bits, codes, expected) in [(6, codes, &sextets[..]), (4, codes.map(|c| c & 15), &nibbles[..])] {
        let (mut packed, mut back) = ([0u8; 16], [0u8; 16]);
        // SAFETY: as above.
        unsafe {
            let function = library.get::<Pack>(b"pack").unwrap();
            function(bits, codes.as_ptr(), packed.as_mut_ptr(), back.as_mut_ptr());
        }
        assert_eq!(&packed[..2 * bits as usize], expected);
    }
}
