//! The weight of a linear layer as its kernels read it: panels of 32 output features, packed once at load in place of
//! the stored tensor.
//!
//! A panel is a sequence of rows of 128 bytes, one for each *unit* of consecutive inputs k: 32 columns (output features)
//! of 4 bytes that hold one f32, two bf16 or four int8 numbers. Panels of narrow numbers are padded with zeros to 16
//! units, the depth of a matrix tile ([`super::amx`]).

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::buffer::Buffer;
use super::coded::{CodedPanels, GroupedRows};
use super::kernel_path::{ComputeDtype, KernelPath};
use super::microkernel::NR;
use crate::checkpoint::CheckpointError;

/// Units to which narrow panels are padded.
pub(super) const UNIT_PAD: usize = 16;

/// Rows of a weight \[N, K\], decoded when asked for.
pub trait WeightRows: Sync {
    /// N.
    fn count(&self) -> usize;

    /// Decodes `rows` into `out` \[rows, K\].
    fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), CheckpointError>;
}

/// What codes are, for products that are taken of them before their scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeKind {
    /// Integers in −128..=127.
    Int8,
    /// FP8 E4M3, each exactly a bf16 number.
    Fp8,
}

/// Rows of a weight w\[n, k\] = code\[n, k\] · scale\[n\].
pub trait CodeRows: Sync {
    /// N.
    fn count(&self) -> usize;

    /// Writes the codes of `rows` as numbers into `out` \[rows, K\].
    fn codes(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), CheckpointError>;

    /// The scale of each row: \[N\].
    fn scales(&self) -> Result<Vec<f32>, CheckpointError>;
}

/// A row-major matrix \[N, K\] in memory.
pub struct DenseRows<'a> {
    /// The numbers.
    pub data: &'a [f32],
    /// K.
    pub k: usize,
}

impl WeightRows for DenseRows<'_> {
    fn count(&self) -> usize {
        self.data.len() / self.k
    }

    fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), CheckpointError> {
        out.copy_from_slice(&self.data[rows.start * self.k..rows.end * self.k]);
        Ok(())
    }
}

/// W in panels of 32 rows: \[N/32\]\[units\]\[32\], the last panel padded with zeros.
pub struct PackedMatrix {
    pub(super) panels: Panels,
    n: usize,
    k: usize,
}

/// What a packed matrix holds.
pub(super) enum Panels {
    /// One number in a unit.
    F32(Buffer),
    /// Two.
    Bf16(Buffer),
    /// Codes, four int8 or two FP8 as bf16, below a scale for each output feature.
    Codes(CodePanels),
    /// Codes of a weight-only scheme, decoded to bf16 when they are multiplied.
    Coded(CodedPanels),
}

/// Codes of w\[n, k\] = code\[n, k\] · scale\[n\].
pub(super) struct CodePanels {
    pub kind: CodeKind,
    pub codes: Buffer,
    /// \[N\].
    pub scales: Vec<f32>,
    /// Sum of the int8 codes of each output feature: \[N\].
    pub sums: Vec<i32>,
}

impl CodeKind {
    /// Codes in a unit.
    fn per_unit(self) -> usize {
        match self {
            Self::Int8 => 4,
            Self::Fp8 => 2,
        }
    }
}

/// Units of a row of `k` numbers of which a unit holds `per_unit`.
pub(super) fn padded_units(k: usize, per_unit: usize) -> usize {
    k.div_ceil(per_unit).next_multiple_of(UNIT_PAD)
}

impl PackedMatrix {
    /// Largest K for which sums of int8 products fit 32 bits, also with inputs moved to 0..=255.
    pub const MAX_INT8_K: usize = i32::MAX as usize / (255 * 128);

    /// Packs matrices \[N_i, K\], one below the other, for products of this type.
    pub fn pack(dtype: ComputeDtype, parts: &[&dyn WeightRows], k: usize) -> Result<Self, CheckpointError> {
        assert!(k > 0, "a weight has columns");
        let counts: Vec<usize> = parts.iter().map(|part| part.count()).collect();
        let n = counts.iter().sum::<usize>();
        let units = match dtype {
            ComputeDtype::F32 => k,
            ComputeDtype::Bf16 => padded_units(k, 2),
        };
        let mut data = Buffer::zeros(n.div_ceil(NR) * NR * units);
        let read = |part: usize, rows: Range<usize>, out: &mut [f32]| parts[part].read(rows, out);
        let write = match dtype {
            ComputeDtype::F32 => f32_column,
            ComputeDtype::Bf16 => bf16_column,
        };
        fill_panels(data.units_mut(), NR * units, &counts, k, &read, &write)?;
        let panels = match dtype {
            ComputeDtype::F32 => Panels::F32(data),
            ComputeDtype::Bf16 => Panels::Bf16(data),
        };
        Ok(Self { panels, n, k })
    }

    /// Packs matrices of codes \[N_i, K\], one below the other. K is at most [`Self::MAX_INT8_K`] for int8.
    pub fn pack_codes(kind: CodeKind, parts: &[&dyn CodeRows], k: usize) -> Result<Self, CheckpointError> {
        assert!(k > 0 && (kind != CodeKind::Int8 || k <= Self::MAX_INT8_K), "sums of products fit 32 bits");
        let counts: Vec<usize> = parts.iter().map(|part| part.count()).collect();
        let n = counts.iter().sum::<usize>();
        let units = padded_units(k, kind.per_unit());
        let mut codes = Buffer::zeros(n.div_ceil(NR) * NR * units);
        let read = |part: usize, rows: Range<usize>, out: &mut [f32]| parts[part].codes(rows, out);
        let write = match kind {
            CodeKind::Int8 => int8_column,
            CodeKind::Fp8 => bf16_column,
        };
        fill_panels(codes.units_mut(), NR * units, &counts, k, &read, &write)?;
        let mut sums = vec![0; n];
        if kind == CodeKind::Int8 {
            for (panel, sums) in codes.units().chunks_exact(NR * units).zip(sums.chunks_mut(NR)) {
                for row in panel.chunks_exact(NR) {
                    for (sum, unit) in sums.iter_mut().zip(row) {
                        *sum += unit.to_le_bytes().iter().map(|byte| i32::from(*byte as i8)).sum::<i32>();
                    }
                }
            }
        }
        let mut scales = Vec::with_capacity(n);
        for part in parts {
            scales.extend(part.scales()?);
        }
        assert_eq!(scales.len(), n, "a scale for each output feature");
        Ok(Self { panels: Panels::Codes(CodePanels { kind, codes, scales, sums }), n, k })
    }

    /// Packs matrices of a weight-only scheme for bf16 products, keeping their codes. `None` if a code is no number.
    pub fn pack_grouped(parts: &[&dyn GroupedRows], k: usize) -> Result<Option<Self>, CheckpointError> {
        let n = parts.iter().map(|part| part.count()).sum();
        Ok(CodedPanels::pack(parts, k)?.map(|panels| Self { panels: Panels::Coded(panels), n, k }))
    }

    /// Packs matrices that are in memory, row-major.
    ///
    /// # Panics
    /// If the length of a part is no multiple of `k`.
    pub fn dense(dtype: ComputeDtype, parts: &[&[f32]], k: usize) -> Self {
        assert!(k > 0 && parts.iter().all(|part| part.len() % k == 0), "every part has rows of {k}");
        let rows: Vec<DenseRows<'_>> = parts.iter().map(|data| DenseRows { data, k }).collect();
        let rows: Vec<&dyn WeightRows> = rows.iter().map(|r| r as &dyn WeightRows).collect();
        Self::pack(dtype, &rows, k).unwrap_or_else(|_| unreachable!("memory can be read"))
    }

    /// Output features N.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Input features K.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Number of panels.
    pub fn panels(&self) -> usize {
        self.n.div_ceil(NR)
    }

    /// Whether its products are of inputs rounded to bf16, for [`super::linear::linear_rounded`].
    pub fn takes_rounded(&self) -> bool {
        matches!(self.panels, Panels::Bf16(_) | Panels::Coded(_))
    }

    /// Whether it keeps codes that are decoded for each block of rows.
    pub(super) fn is_decoded(&self) -> bool {
        matches!(self.panels, Panels::Coded(_))
    }

    /// Whether it holds codes, for [`super::linear::linear_codes`].
    pub fn holds_codes(&self) -> bool {
        matches!(self.panels, Panels::Codes(_))
    }

    /// Units of a panel.
    pub(super) fn units(&self) -> usize {
        match &self.panels {
            Panels::F32(_) => self.k,
            Panels::Bf16(_) | Panels::Coded(_) => padded_units(self.k, 2),
            Panels::Codes(codes) => padded_units(self.k, codes.kind.per_unit()),
        }
    }

    /// Copies row `n` of W \[K\]: the embedding of a tied model.
    pub fn copy_row(&self, n: usize, out: &mut [f32]) {
        let units = self.units();
        let column = |buffer: &Buffer| {
            let start = (n / NR) * NR * units + n % NR;
            start..buffer.len()
        };
        match &self.panels {
            Panels::Coded(panels) => {
                let mut decoded = Buffer::default();
                panels.decode(KernelPath::portable(), n / NR..n / NR + 1, &mut decoded);
                copy_bf16(&decoded.units()[n % NR..], 1.0, out);
            }
            Panels::F32(data) => {
                for (slot, w) in out.iter_mut().zip(data[column(data)].iter().step_by(NR)) {
                    *slot = *w;
                }
            }
            Panels::Bf16(data) => copy_bf16(&data.units()[column(data)], 1.0, out),
            Panels::Codes(CodePanels { kind: CodeKind::Fp8, codes, scales, .. }) => {
                copy_bf16(&codes.units()[column(codes)], scales[n], out);
            }
            Panels::Codes(CodePanels { kind: CodeKind::Int8, codes, scales, .. }) => {
                for (four, unit) in out.chunks_mut(4).zip(codes.units()[column(codes)].iter().step_by(NR)) {
                    for (slot, byte) in four.iter_mut().zip(unit.to_le_bytes()) {
                        *slot = f32::from(byte as i8) * scales[n];
                    }
                }
            }
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let (buffer, more) = match &self.panels {
            Panels::F32(data) | Panels::Bf16(data) => (data, 0),
            Panels::Coded(panels) => return panels.bytes(),
            Panels::Codes(panels) => {
                (&panels.codes, size_of_val(&panels.scales[..]) + size_of_val(&panels.sums[..]))
            }
        };
        buffer.readable() * size_of::<f32>() + more
    }
}

/// Decodes rows of one part of a weight.
pub(super) type ReadRows<'a> =
    dyn Fn(usize, Range<usize>, &mut [f32]) -> Result<(), CheckpointError> + Sync + 'a;
/// Writes a row of a weight to a column of a panel.
pub(super) type WriteColumn<'a, T> = dyn Fn(&mut [T], usize, &[f32]) + Sync + 'a;

/// Reads the rows of every panel of `size` elements and has each written to its column, panels in parallel.
pub(super) fn fill_panels<T: Send>(
    data: &mut [T],
    size: usize,
    counts: &[usize],
    k: usize,
    read: &ReadRows<'_>,
    write: &WriteColumn<'_, T>,
) -> Result<(), CheckpointError> {
    data.par_chunks_mut(size).enumerate().try_for_each_init(
        || vec![0.0; NR * k],
        |rows, (panel, data)| {
            let wanted = panel * NR..(panel + 1) * NR;
            let mut first = 0;
            for (part, count) in counts.iter().enumerate() {
                let of_part = wanted.start.max(first)..wanted.end.min(first + count);
                if of_part.start < of_part.end {
                    let out = &mut rows[(of_part.start - wanted.start) * k..][..of_part.len() * k];
                    read(part, of_part.start - first..of_part.end - first, out)?;
                }
                first += count;
            }
            for (column, row) in rows.chunks_exact(k).enumerate().take(first.min(wanted.end) - wanted.start) {
                write(data, column, row);
            }
            Ok(())
        },
    )
}

/// Writes numbers to a column of a panel, one in a unit.
fn f32_column(panel: &mut [u32], column: usize, row: &[f32]) {
    for (slot, w) in panel[column..].iter_mut().step_by(NR).zip(row) {
        *slot = w.to_bits();
    }
}

/// Two in a unit, rounded to bf16.
fn bf16_column(panel: &mut [u32], column: usize, row: &[f32]) {
    for (slot, w) in panel[column..].iter_mut().step_by(NR).zip(row.chunks(2)) {
        let bits = |w: f32| u32::from(bf16::from_f32(w).to_bits());
        *slot = bits(w[0]) | w.get(1).map_or(0, |w| bits(*w)) << 16;
    }
}

/// Four in a unit, each an int8 code.
fn int8_column(panel: &mut [u32], column: usize, row: &[f32]) {
    for (slot, w) in panel[column..].iter_mut().step_by(NR).zip(row.chunks(4)) {
        let mut bytes = [0; 4];
        for (byte, w) in bytes.iter_mut().zip(w) {
            *byte = *w as i8 as u8;
        }
        *slot = u32::from_le_bytes(bytes);
    }
}

/// Reads a column of two bf16 numbers in a unit, times `scale`.
fn copy_bf16(column: &[u32], scale: f32, out: &mut [f32]) {
    for (pair, unit) in out.chunks_mut(2).zip(column.iter().step_by(NR)) {
        pair[0] = f32::from_bits(unit << 16) * scale;
        if let Some(second) = pair.get_mut(1) {
            *second = f32::from_bits(unit & 0xFFFF_0000) * scale;
        }
    }
}
