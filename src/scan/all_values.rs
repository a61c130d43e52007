//! `--values`: every value of every tensor, on all cores. NaN and infinity are defects wherever they lie.
//!
//! Tensors are cut into pieces that are read by position, so memory is one piece a thread, whatever their size.

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

use super::Findings;
use super::table::Table;
use super::values::is_scale;
use crate::base::progress::Progress;
use crate::record::FailureClass;
use crate::record::scan::ValuesScan;

/// Bytes read at once; a multiple of every element's size.
const PIECE_BYTES: u64 = 4 << 20;

/// What the pieces of one tensor held.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    not_finite: u64,
    /// Element number of the first NaN or infinity.
    first: Option<u64>,
    largest: f32,
    elements: u64,
}

impl Seen {
    fn and(self, other: Self) -> Self {
        let first = [self.first, other.first].into_iter().flatten().min();
        Self {
            not_finite: self.not_finite + other.not_finite,
            first,
            largest: self.largest.max(other.largest),
            elements: self.elements + other.elements,
        }
    }
}

/// Reads everything; defects go to `findings`.
pub(super) fn read(table: &Table<'_>, findings: &mut Findings) -> ValuesScan {
    let floats: Vec<(&str, Dtype, u64)> = table
        .tensors
        .values()
        .filter(|t| element_bytes(t.dtype).is_some())
        .map(|t| (t.name.as_str(), t.dtype, t.num_bytes()))
        .collect();
    let bytes = floats.iter().map(|(_, _, bytes)| bytes).sum();
    let progress = Progress::new("values", bytes, "B");
    let seen: Vec<Seen> = floats
        .par_iter()
        .map(|(name, dtype, bytes)| {
            let pieces: Vec<u64> = (0..*bytes).step_by(PIECE_BYTES as usize).collect();
            let look = |offset: &u64| {
                let count = PIECE_BYTES.min(bytes - offset);
                progress.inc(count);
                let size = element_bytes(*dtype).unwrap_or(1);
                table.bytes(name, *offset, count).map_or_else(Seen::default, |data| {
                    let seen = look(*dtype, &data);
                    Seen { first: seen.first.map(|at| at + offset / size), ..seen }
                })
            };
            pieces.par_iter().map(look).reduce(Seen::default, Seen::and)
        })
        .collect();
    // Nobody can do anything with a source that is damaged itself.
    let is_quantized = table.declared().is_some();
    let mut scan = ValuesScan { tensors: floats.len(), bytes, ..ValuesScan::default() };
    for ((name, dtype, _), seen) in floats.iter().zip(seen) {
        // Scales have a check of their own, which also refuses zero and negative ones.
        if is_scale(name) {
            continue;
        }
        if let Some(first) = seen.first {
            let observed = format!(
                "{} of {} values are NaN or infinite, the first is element {first}",
                seen.not_finite, seen.elements
            );
            findings.defect("values", *name, observed, "finite values");
            if let (false, Some(defect)) = (is_quantized, findings.defects.last_mut()) {
                defect.failure_class = FailureClass::ModelUnsupported;
            }
        } else if seen.elements > 0 && seen.largest == 0.0 {
            scan.zero_tensors.push((*name).to_owned());
        }
        let is_weight = element_bytes(*dtype).is_some_and(|size| size > 1);
        if is_weight && scan.largest.as_ref().is_none_or(|(_, largest)| seen.largest > *largest) {
            scan.largest = Some(((*name).to_owned(), seen.largest));
        }
    }
    scan
}

/// Bytes of an element, of the dtypes that have NaN or infinity.
fn element_bytes(dtype: Dtype) -> Option<u64> {
    match dtype {
        Dtype::F64 => Some(8),
        Dtype::F32 => Some(4),
        Dtype::F16 | Dtype::BF16 => Some(2),
        Dtype::F8_E4M3 | Dtype::F8_E5M2 => Some(1),
        _ => None,
    }
}

/// One piece. Magnitudes are ordered as their bits are, and NaN and infinity come last.
fn look(dtype: Dtype, data: &[u8]) -> Seen {
    match dtype {
        // Beyond the range of f32 the largest magnitude is only said to be f32's largest.
        Dtype::F64 => fold(
            data,
            |b| u64::from_le_bytes(b) << 1 >> 1,
            0x7ff0 << 48,
            |m| (f64::from_bits(m) as f32).min(f32::MAX),
        ),
        Dtype::F32 => fold(data, |b| u32::from_le_bytes(b) & 0x7fff_ffff, 0x7f80_0000, f32::from_bits),
        Dtype::F16 => fold(data, |b| u16::from_le_bytes(b) & 0x7fff, 0x7c00, |m| f16::from_bits(m).to_f32()),
        Dtype::BF16 => {
            fold(data, |b| u16::from_le_bytes(b) & 0x7fff, 0x7f80, |m| bf16::from_bits(m).to_f32())
        }
        // E4M3 (fn) has no infinity: all ones is NaN. E5M2 has both in its largest exponent. Here codes stand for
        // themselves: the weight's magnitude is known only after scaling.
        Dtype::F8_E4M3 => fold(data, |[b]: [u8; 1]| b & 0x7f, 0x7f, f32::from),
        _ => fold(data, |[b]: [u8; 1]| b & 0x7f, 0x7c, f32::from),
    }
}

/// One pass over sound data; a second one counts what is `limit` or more.
fn fold<const SIZE: usize, M: Ord + Copy>(
    data: &[u8],
    magnitude: impl Fn([u8; SIZE]) -> M,
    limit: M,
    value: impl Fn(M) -> f32,
) -> Seen {
    let elements = data.as_chunks::<SIZE>().0;
    let seen = Seen { elements: elements.len() as u64, ..Seen::default() };
    let all = || elements.iter().map(|bytes| magnitude(*bytes));
    match all().max() {
        None => seen,
        Some(largest) if largest < limit => Seen { largest: value(largest), ..seen },
        Some(_) => Seen {
            not_finite: all().filter(|m| *m >= limit).count() as u64,
            first: all().position(|m| m >= limit).map(|at| at as u64),
            largest: all().filter(|m| *m < limit).max().map_or(0.0, value),
            ..seen
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_finite_values_of_every_dtype() {
        let bf16s: Vec<u8> = [1.0, f32::NAN, -3.0, f32::INFINITY]
            .iter()
            .flat_map(|x| bf16::from_f32(*x).to_le_bytes())
            .collect();
        let seen = look(Dtype::BF16, &bf16s);
        assert_eq!((seen.not_finite, seen.first, seen.largest, seen.elements), (2, Some(1), 3.0, 4));
        let f16s: Vec<u8> =
            [0.0, 0.0, f32::NEG_INFINITY].iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
        assert_eq!(look(Dtype::F16, &f16s).first, Some(2));
        assert_eq!(look(Dtype::F32, &f32::NAN.to_le_bytes()).not_finite, 1);
        assert_eq!(look(Dtype::F64, &f64::MAX.to_le_bytes()).not_finite, 0, "beyond f32, but finite");
        assert_eq!(look(Dtype::F8_E4M3, &[0x7e, 0xff, 0x00, 0x7f]).not_finite, 2);
        assert_eq!(look(Dtype::F8_E5M2, &[0x7b, 0x7c, 0xfd]).not_finite, 2);
        assert_eq!(look(Dtype::F32, &[]).largest, 0.0);
    }
}
