//! Integers of 2 to 8 bits packed densely into little-endian 32-bit words.
//!
//! A row of codes q ∈ [−2^(b−1), 2^(b−1)) is stored as u = q + 2^(b−1); element i occupies bits [i·b, (i+1)·b) of a
//! bit stream, least significant bit first, that is padded with zero bits to a whole word. Since the words are
//! little-endian, the stream's bytes are the file's bytes. Source: compressed-tensors' `pack_to_int32` since #732
//! (before it, 3-, 5-, 6- and 7-bit values did not straddle words; 2, 4 and 8 bits are unchanged).

#![expect(clippy::inline_always, reason = "inlined into loops that are compiled once more for wider vectors")]

/// Bytes of a packed row of `len` codes: whole words.
pub fn packed_bytes(len: usize, bits: u8) -> usize {
    packed_words(len, bits) * 4
}

/// 32-bit words of a packed row of `len` codes.
pub fn packed_words(len: usize, bits: u8) -> usize {
    (len * bits as usize).div_ceil(32)
}

/// Packs one row of two's-complement codes; `packed` has [`packed_bytes`] of them.
#[inline(always)]
pub fn pack_row(codes: &[u8], bits: u8, packed: &mut [u8]) {
    match bits {
        8 => {
            let (whole, padding) = packed.split_at_mut(codes.len());
            for (byte, q) in whole.iter_mut().zip(codes) {
                *byte = q ^ 0x80;
            }
            padding.fill(0);
        }
        // q + 8 modulo 16 is q with its top bit flipped.
        4 => {
            let (pairs, rest) = codes.as_chunks::<2>();
            let (whole, padding) = packed.split_at_mut(pairs.len());
            for (byte, pair) in whole.iter_mut().zip(pairs) {
                let pair = u16::from_le_bytes(*pair) & 0x0f0f;
                *byte = (pair | (pair >> 4)) as u8 ^ 0x88;
            }
            padding.fill(0);
            if let ([last], [byte, ..]) = (rest, padding) {
                *byte = (last & 15) ^ 8;
            }
        }
        _ => pack_narrow(codes, bits, packed),
    }
}

/// Packs codes of fewer than eight bits, eight at a time: pairs of fields are moved together three times.
#[inline(always)]
fn pack_narrow(codes: &[u8], bits: u8, packed: &mut [u8]) {
    let offset = u64::from_ne_bytes([1 << (bits - 1); 8]);
    let mask = u64::from_ne_bytes([(1 << bits) - 1; 8]);
    let b = u32::from(bits);
    let pack = |codes: [u8; 8]| {
        // q + 2^(b−1) modulo 2^b is q with its top bit flipped.
        let x = (u64::from_le_bytes(codes) & mask) ^ offset;
        let x = (x & 0x00ff_00ff_00ff_00ff) | ((x & 0xff00_ff00_ff00_ff00) >> (8 - b));
        let x = (x & 0x0000_ffff_0000_ffff) | ((x & 0xffff_0000_ffff_0000) >> (16 - 2 * b));
        (x & 0x0000_0000_ffff_ffff) | ((x & 0xffff_ffff_0000_0000) >> (32 - 4 * b))
    };
    let (eights, rest) = codes.as_chunks::<8>();
    let mut at = 0;
    for codes in eights {
        packed[at..at + bits as usize].copy_from_slice(&pack(*codes).to_le_bytes()[..bits as usize]);
        at += bits as usize;
    }
    packed[at..].fill(0);
    if !rest.is_empty() {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        // Fields beyond the row are padding: zero bits, not the code 0.
        let used = rest.len() * bits as usize;
        let bytes = (pack(last) & ((1 << used) - 1)).to_le_bytes();
        let used_bytes = used.div_ceil(8);
        packed[at..at + used_bytes].copy_from_slice(&bytes[..used_bytes]);
    }
}

/// Unpacks one row into codes. `packed` holds at least [`packed_bytes`] of them.
pub fn unpack_row(packed: &[u8], bits: u8, codes: &mut [i8]) {
    let offset = 1i16 << (bits - 1);
    let mask = (1u64 << bits) - 1;
    let mut words = packed.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]));
    let (mut stream, mut filled) = (0u64, 0u32);
    for code in codes {
        if filled < u32::from(bits) {
            stream |= u64::from(words.next().unwrap_or(0)) << filled;
            filled += 32;
        }
        *code = ((stream & mask) as i16 - offset) as i8;
        stream >>= bits;
        filled -= u32::from(bits);
    }
}

/// Packs zero points [N, G] (row-major) along N: the words [ceil(N·b/32), G] of `weight_zero_point`, as bytes.
pub fn pack_columns(codes: &[i8], columns: usize, bits: u8) -> Vec<u8> {
    let rows = codes.len().checked_div(columns).unwrap_or(0);
    let words = packed_words(rows, bits);
    let mut packed = vec![0; words * columns * 4];
    let mut stream = vec![0; words * 4];
    for column in 0..columns {
        let column_codes: Vec<u8> = (0..rows).map(|row| codes[row * columns + column] as u8).collect();
        pack_row(&column_codes, bits, &mut stream);
        for (word, bytes) in stream.chunks_exact(4).enumerate() {
            let at = (word * columns + column) * 4;
            packed[at..at + 4].copy_from_slice(bytes);
        }
    }
    packed
}

/// Unpacks [`pack_columns`] into zero points [N, G]. `packed` holds the words of N rows.
pub fn unpack_columns(packed: &[u8], rows: usize, columns: usize, bits: u8) -> Vec<i8> {
    let words = packed_words(rows, bits);
    let mut codes = vec![0; rows * columns];
    let (mut stream, mut column_codes) = (vec![0; words * 4], vec![0; rows]);
    for column in 0..columns {
        for (word, bytes) in stream.chunks_exact_mut(4).enumerate() {
            let at = (word * columns + column) * 4;
            bytes.copy_from_slice(&packed[at..at + 4]);
        }
        unpack_row(&stream, bits, &mut column_codes);
        for (row, code) in column_codes.iter().enumerate() {
            codes[row * columns + column] = *code;
        }
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(codes: &[i8], bits: u8) -> Vec<u32> {
        let mut packed = vec![0xff; packed_bytes(codes.len(), bits)];
        let codes: Vec<u8> = codes.iter().map(|q| *q as u8).collect();
        pack_row(&codes, bits, &mut packed);
        packed.chunks_exact(4).map(|w| u32::from_le_bytes(w.try_into().unwrap())).collect()
    }

    /// Golden words of compressed-tensors 0.20 (checkpoint-formats §1.3).
    #[test]
    fn golden_words() {
        let cycle: Vec<i8> = (0..32).map(|i| i % 8 - 4).collect();
        assert_eq!(words(&[-8, -7, -6, -5, -4, -3, -2, -1], 4), [0x7654_3210]);
        assert_eq!(words(&[0, 1, 2, 3, 4, 5, 6, 7], 4), [0xfedc_ba98]);
        assert_eq!(words(&[-128, -1, 0, 127], 8), [0xff80_7f00]);
        assert_eq!(words(&cycle, 3), [0x88fa_c688, 0xc688_fac6, 0xfac6_88fa]);
        assert_eq!(words(&[0; 10], 4), [0x8888_8888, 0x0000_0088]);
    }

    /// Golden words: zero points [8, 2] = −8..7.
    #[test]
    fn golden_zero_points() {
        let zero_points: Vec<i8> = (-8..8).collect();
        let packed = pack_columns(&zero_points, 2, 4);
        let words: Vec<u32> =
            packed.chunks_exact(4).map(|w| u32::from_le_bytes(w.try_into().unwrap())).collect();
        assert_eq!(words, [0xeca8_6420, 0xfdb9_7531]);
        assert_eq!(unpack_columns(&packed, 8, 2, 4), zero_points);
    }

    proptest! {
        #[test]
        fn rows_round_trip(bits in 2u8..=8, seed in proptest::collection::vec(any::<i8>(), 0..100)) {
            // Arithmetic shift down to the width keeps every code in range.
            let codes: Vec<i8> = seed.iter().map(|q| q >> (8 - bits)).collect();
            let mut packed = vec![0xff; packed_bytes(codes.len(), bits)];
            pack_row(&codes.iter().map(|q| *q as u8).collect::<Vec<_>>(), bits, &mut packed);
            let mut back = vec![0; codes.len()];
            unpack_row(&packed, bits, &mut back);
            prop_assert_eq!(back, codes);
        }

        #[test]
        fn columns_round_trip(bits in 2u8..=8, columns in 1usize..5, rows in 0usize..40, seed in any::<u64>()) {
            let codes: Vec<i8> = (0..rows * columns)
                .map(|i| (seed.rotate_left(i as u32 * 7) as i8) >> (8 - bits))
                .collect();
            let packed = pack_columns(&codes, columns, bits);
            prop_assert_eq!(unpack_columns(&packed, rows, columns, bits), codes);
        }
    }
}
