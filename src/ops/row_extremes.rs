//! Extremes of 32 elements of 16 bits in vector instructions. Written out, because what compilers make of the loop over
//! lanes ([`super::row_kernels`]) differs from build to build by a factor of ten.

use std::arch::x86_64::{
    __m256i, _mm_extract_epi16, _mm_max_epi16, _mm_minpos_epu16, _mm_set1_epi16, _mm_xor_si128,
    _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_loadu_si256, _mm256_max_epi16,
    _mm256_set1_epi16, _mm256_setzero_si256, _mm256_xor_si256,
};

/// Bits of the largest magnitudes of negative and of positive elements; 0 where there is none.
///
/// # Safety
/// The processor has AVX2.
#[inline]
#[target_feature(enable = "avx2")]
#[expect(clippy::cast_ptr_alignment, reason = "the loads need no alignment")]
pub(super) unsafe fn extremes_of_32(elements: &[u8; 64]) -> (i32, i32) {
    let halves = elements.as_ptr().cast::<__m256i>();
    // SAFETY: 64 bytes are two vectors; the loads need no alignment.
    let (a, b) = unsafe { (_mm256_loadu_si256(halves), _mm256_loadu_si256(halves.add(1))) };
    let sign = _mm256_set1_epi16(i16::MIN);
    let negated = _mm256_max_epi16(_mm256_xor_si256(a, sign), _mm256_xor_si256(b, sign));
    (largest(negated), largest(_mm256_max_epi16(a, b)))
}

/// The largest of 16 numbers and 0.
#[inline]
#[target_feature(enable = "avx2")]
fn largest(lanes: __m256i) -> i32 {
    let lanes = _mm256_max_epi16(lanes, _mm256_setzero_si256());
    let eight = _mm_max_epi16(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256::<1>(lanes));
    // The instruction that finds the smallest of eight: the order of x is the reverse of that of 2¹⁵ − 1 − x.
    let reversed = _mm_xor_si128(eight, _mm_set1_epi16(i16::MAX));
    i32::from(i16::MAX) - _mm_extract_epi16::<0>(_mm_minpos_epu16(reversed))
}
