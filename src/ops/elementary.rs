//! Elementary functions and reductions over fixed lanes: the same bits for an element wherever it stands in a vector.

#![expect(clippy::inline_always, reason = "inlined into loops that are compiled once more for wider vectors")]

use super::kernel_path::per_path;

/// Lanes of every reduction; element i belongs to lane i mod 16.
pub const LANES: usize = 16;

/// a·b + c, rounded once where the path has fused multiply-add.
#[inline(always)]
pub(super) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Sum of 16 lanes, halves added pairwise.
#[inline(always)]
pub(super) fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// e^x to about 1 ULP for x in [-87.3, 88.3]; 0 below, about 2^127.5 above, NaN for NaN.
///
/// x = n·ln 2 + r, e^r by a polynomial of degree 7 (Cephes `expf.c`, S. Moshier), times 2^n by its exponent bits.
#[inline(always)]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    /// 1.5·2^23: adding it rounds to the nearest integer, which then stands in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    /// Below it e^x is no normal number.
    const MIN: f32 = -87.33654;
    const MAX: f32 = 88.37626;
    // ln 2 in two parts, so that n·LN2_HI is exact.
    const LN2_HI: f32 = 355.0 / 512.0;
    const LN2_LO: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(MIN, MAX);
    let shifted = fma::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -LN2_LO, fma::<FMA>(n, -LN2_HI, clamped));
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = fma::<FMA>(p, r, c);
    }
    let e_r = fma::<FMA>(p, r * r, r) + 1.0;
    let two_n = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    let value = e_r * two_n;
    if x < MIN { 0.0 } else { value }
}

/// tanh x to about 2 ULP: an odd polynomial of degree 11 below 0.625 (Cephes `tanhf.c`, S. Moshier), 1 − 2/(e^2x + 1)
/// above.
#[inline(always)]
pub(super) fn tanh<const FMA: bool>(x: f32) -> f32 {
    let z = x * x;
    let mut p = -5.704_988_7e-3;
    for c in [2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
        p = fma::<FMA>(p, z, c);
    }
    let small = fma::<FMA>(p * z, x, x);
    let large = (1.0 - 2.0 / (exp::<FMA>(2.0 * x.abs()) + 1.0)).copysign(x);
    if x.abs() < 0.625 { small } else { large }
}

#[inline(always)]
fn softcap_body<const FMA: bool>(xs: &mut [f32], cap: f32) {
    for x in xs {
        *x = tanh::<FMA>(*x / cap) * cap;
    }
}

per_path! {
    /// x ← cap · tanh(x / cap) in place.
    pub fn softcap(xs: &mut [f32], cap: f32) = softcap_body
}

#[inline(always)]
fn max_body<const FMA: bool>(xs: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, tail) = xs.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = lane.max(*x);
        }
    }
    lanes.into_iter().chain(tail.iter().copied()).fold(f32::NEG_INFINITY, f32::max)
}

per_path! {
    /// Largest element; NaN is ignored, −inf for no elements.
    pub fn max(xs: &[f32]) -> f32 = max_body
}

#[inline(always)]
fn exp_sub_sum_body<const FMA: bool>(xs: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, tail) = xs.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *x = exp::<FMA>(*x - shift);
            *lane += *x;
        }
    }
    for (lane, x) in lanes.iter_mut().zip(tail) {
        *x = exp::<FMA>(*x - shift);
        *lane += *x;
    }
    sum_lanes(lanes)
}

per_path! {
    /// x ← e^(x − shift) in place; returns the sum.
    pub fn exp_sub_sum(xs: &mut [f32], shift: f32) -> f32 = exp_sub_sum_body
}

#[inline(always)]
fn add_body<const FMA: bool>(xs: &mut [f32], ys: &[f32]) {
    for (x, y) in xs.iter_mut().zip(ys) {
        *x += *y;
    }
}

per_path! {
    /// x ← x + y in place.
    pub fn add(xs: &mut [f32], ys: &[f32]) = add_body
}

#[inline(always)]
fn add_scaled_body<const FMA: bool>(xs: &mut [f32], ys: &[f32], factor: f32) {
    for (x, y) in xs.iter_mut().zip(ys) {
        *x += *y * factor;
    }
}

per_path! {
    /// x ← x + y·factor in place; product and sum are rounded apart.
    pub fn add_scaled(xs: &mut [f32], ys: &[f32], factor: f32) = add_scaled_body
}

#[inline(always)]
fn scale_body<const FMA: bool>(xs: &mut [f32], factor: f32) {
    for x in xs {
        *x *= factor;
    }
}

per_path! {
    /// x ← x·factor in place.
    pub fn scale(xs: &mut [f32], factor: f32) = scale_body
}

#[cfg(test)]
mod tests {
    use super::super::kernel_path::KernelPath;
    use super::*;

    fn exp1(path: KernelPath, x: f32) -> f32 {
        exp_sub_sum(path, &mut [x], 0.0)
    }

    #[test]
    fn exp_is_within_two_ulp() {
        for path in KernelPath::available() {
            let mut x = -87.3f32;
            while x < 88.0 {
                let (got, want) = (f64::from(exp1(path, x)), f64::from(x).exp());
                assert!((got / want - 1.0).abs() < 2.0 * 1.2e-7, "{path:?} exp({x}) = {got}, not {want}");
                x += 0.037;
            }
        }
    }

    #[test]
    fn exp_at_the_edges() {
        for path in KernelPath::available() {
            assert_eq!(exp1(path, 0.0), 1.0);
            assert_eq!(exp1(path, -200.0), 0.0);
            assert_eq!(exp1(path, f32::NEG_INFINITY), 0.0);
            assert!(exp1(path, f32::INFINITY) > 1e38);
            assert!(exp1(path, f32::NAN).is_nan());
        }
    }

    #[test]
    fn softcap_is_accurate_for_small_and_large() {
        for path in KernelPath::available() {
            let mut x = -30.0f32;
            while x < 30.0 {
                let mut got = [x, x * 1e-4];
                softcap(path, &mut got, 2.5);
                for (got, x) in got.into_iter().zip([x, x * 1e-4]) {
                    let want = 2.5 * (f64::from(x) / 2.5).tanh();
                    assert!(
                        (f64::from(got) - want).abs() <= 4.0 * 1.2e-7 * want.abs(),
                        "{path:?} {x}: {got}, not {want}"
                    );
                }
                x += 0.0371;
            }
            let mut edges = [f32::INFINITY, f32::NEG_INFINITY, 0.0, f32::NAN];
            softcap(path, &mut edges, 2.5);
            assert_eq!(edges[..3], [2.5, -2.5, 0.0]);
            assert!(edges[3].is_nan());
        }
    }

    /// The tail is computed as the vectors are.
    #[test]
    fn position_in_the_vector_does_not_matter() {
        for path in KernelPath::available() {
            let mut xs: Vec<f32> = (0..37).map(|i| (i as f32) * 0.31 - 7.0).collect();
            let alone: Vec<f32> = xs.iter().map(|x| exp1(path, *x)).collect();
            exp_sub_sum(path, &mut xs, 0.0);
            assert_eq!(xs, alone);
            assert_eq!(max(path, &xs), xs[36]);
        }
    }
}
