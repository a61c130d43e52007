//! What a quantized weight looks like on disk: elements, scales, packing, and the tensors of one module.
//!
//! `weight [N, K] ≈ (code − zero_point) · scale`, one scale per rectangle of [`WeightLayout::block`]. One table for
//! all schemes; tensors and shapes as compressed-tensors writes and vLLM expects them (checkpoint-formats §1.2).

use safetensors::Dtype;

use crate::checkpoint::quant_args::{Dialect, Format, QuantType, QuantizationArgs, Strategy};
use crate::ops::float_dtype::FloatDtype;
use crate::ops::int_pack;

/// Type of the codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// Two's-complement integers of so many bits, 2 to 8.
    Int(u8),
    /// FP8 E4M3.
    E4m3,
    /// FP6 E2M3.
    E2m3,
    /// FP4 E2M1.
    E2m1,
}

impl Element {
    /// Smallest and largest value.
    pub fn range(self) -> (f32, f32) {
        match self {
            Self::Int(bits) => {
                let half = f32::from(1u8 << (bits - 1));
                (-half, half - 1.0)
            }
            Self::E4m3 => (-crate::ops::fp8::MAX, crate::ops::fp8::MAX),
            Self::E2m3 => (-crate::ops::fp6::MAX, crate::ops::fp6::MAX),
            Self::E2m1 => (-crate::ops::fp4::MAX, crate::ops::fp4::MAX),
        }
    }

    /// What the largest magnitude is mapped to by a symmetric scale: half the width of the range, 127.5 for INT8.
    pub fn half_range(self) -> f32 {
        let (min, max) = self.range();
        (max - min) / 2.0
    }
}

/// How scales are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScaleKind {
    /// In the weight's own float type; multiplies.
    Float,
    /// E4M3 below one f32 global scale of the whole fused set: the local scale multiplies; the global scale divides
    /// as `weight_global_scale` and multiplies as ModelOpt's `weight_scale_2`, its reciprocal.
    E4m3UnderGlobal,
    /// A power of two (E8M0); multiplies.
    E8m0,
}

/// How codes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Packing {
    /// One a byte, `weight`.
    Bytes,
    /// Two a byte, `weight_packed`.
    Nibbles,
    /// Four in three bytes, `weight_packed`.
    Sextets,
    /// A dense bit stream in 32-bit words, `weight_packed`.
    Words,
}

impl Packing {
    /// Bytes of the codes of a row of `k` elements.
    pub fn row_bytes(self, element: Element, k: usize) -> usize {
        match (self, element) {
            (Self::Bytes, _) => k,
            (Self::Nibbles, _) => k.div_ceil(2),
            (Self::Sextets, _) => k.div_ceil(4) * 3,
            (Self::Words, Element::Int(bits)) => int_pack::packed_bytes(k, bits),
            (Self::Words, _) => unreachable!("only integers are packed into words (WeightLayout::new)"),
        }
    }
}

/// How the codes and scales of a weight are coded, whatever shares a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WeightCoding {
    /// Type of the codes.
    pub element: Element,
    /// How codes are stored.
    pub packing: Packing,
    /// How scales are stored.
    pub scale: ScaleKind,
    /// Type of float scales.
    pub scale_dtype: FloatDtype,
    /// Whether there is no zero point.
    pub symmetric: bool,
}

/// The layout of a quantized weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WeightLayout {
    /// Type of the codes.
    pub element: Element,
    /// How scales are stored.
    pub scale: ScaleKind,
    /// How codes are stored.
    pub packing: Packing,
    /// Whether there is no zero point.
    pub symmetric: bool,
    /// Which elements share a scale.
    pub strategy: Strategy,
    /// Whose names and shapes the tensors have.
    pub dialect: Dialect,
    /// Sizes that the strategy needs: columns of a group, rows and columns of a block.
    sizes: [usize; 2],
}

/// One tensor of a quantized module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleTensor {
    /// What follows `<module>.`, e.g. `weight_scale`.
    pub suffix: &'static str,
    /// Element type on disk.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<usize>,
}

impl ModuleTensor {
    /// Size of the data in bytes.
    pub fn num_bytes(&self) -> u64 {
        let elements: u64 = self.shape.iter().map(|d| *d as u64).product();
        (elements * self.dtype.bitsize() as u64).div_ceil(8)
    }
}

impl ModuleTensor {
    /// Whether a tensor of this shape can stand for it: single numbers are written as `[1]` and as scalars.
    pub fn has_shape(&self, found: &[usize]) -> bool {
        let single = |shape: &[usize]| shape.is_empty() || shape == [1];
        self.shape == found || (single(&self.shape) && single(found))
    }
}

/// A scheme that has no layout here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Bits, type and strategy do not go together in this format.
    #[error("{format:?} has no layout for {num_bits}-bit {qtype:?} weights by {strategy:?}")]
    Unsupported {
        /// The layout asked for.
        format: Format,
        /// Bits per element.
        num_bits: u8,
        /// Element type.
        qtype: QuantType,
        /// Which elements share a scale.
        strategy: Strategy,
    },
    /// The dialect has no such weights.
    #[error("the {dialect:?} layout does not hold {precision} weights")]
    Dialect {
        /// The weights.
        precision: String,
        /// The dialect.
        dialect: Dialect,
    },
    /// A size is missing or 0.
    #[error("strategy {strategy:?} needs a positive {field}")]
    MissingSize {
        /// The strategy.
        strategy: Strategy,
        /// `group_size` or `block_structure`.
        field: &'static str,
    },
}

impl WeightLayout {
    /// The layout of weights quantized by `args` and stored in `format`.
    pub fn new(args: &QuantizationArgs, format: Format) -> Result<Self, LayoutError> {
        use Strategy::{Block, Channel, Group, Tensor, TensorGroup};
        let unsupported = || LayoutError::Unsupported {
            format,
            num_bits: args.num_bits,
            qtype: args.qtype,
            strategy: args.strategy,
        };
        let element = match (args.qtype, args.num_bits) {
            (QuantType::Int, bits @ 2..=8) => Element::Int(bits),
            (QuantType::Float, 8) => Element::E4m3,
            (QuantType::Float, 6) => Element::E2m3,
            (QuantType::Float, 4) => Element::E2m1,
            _ => return Err(unsupported()),
        };
        let (packing, scale) = storage(format, element, args.strategy).ok_or_else(unsupported)?;
        let missing = |field| LayoutError::MissingSize { strategy: args.strategy, field };
        let sizes = match args.strategy {
            Tensor | Channel => [0, 0],
            Group | TensorGroup => {
                [1, args.group_size.filter(|g| *g > 0).ok_or_else(|| missing("group_size"))?]
            }
            Block => args
                .block_structure
                .filter(|b| b.iter().all(|n| *n > 0))
                .ok_or_else(|| missing("block_structure"))?,
            Strategy::Token => return Err(unsupported()),
        };
        // Zero points exist for integers only, and packed ones for rows of scales only.
        let has_zero_point_layout =
            matches!(element, Element::Int(_)) && matches!(args.strategy, Channel | Group);
        if !args.symmetric && !has_zero_point_layout {
            return Err(unsupported());
        }
        let (symmetric, strategy) = (args.symmetric, args.strategy);
        let dialect = Dialect::CompressedTensors;
        Ok(Self { element, scale, packing, symmetric, strategy, dialect, sizes })
    }

    /// The same codes and scales under the names of `dialect`. ModelOpt has floats only; its integers need
    /// calibrated pre-scales.
    pub fn in_dialect(self, dialect: Dialect) -> Result<Self, LayoutError> {
        let is_held_by_modelopt = matches!(
            (self.element, self.scale),
            (Element::E4m3, _) | (Element::E2m1, ScaleKind::E4m3UnderGlobal)
        );
        if dialect == Dialect::CompressedTensors || is_held_by_modelopt {
            return Ok(Self { dialect, ..self });
        }
        Err(LayoutError::Dialect { precision: self.precision(), dialect })
    }

    /// How codes are coded, below float scales of this type.
    pub fn coding(&self, scale_dtype: FloatDtype) -> WeightCoding {
        let Self { element, packing, scale, symmetric, .. } = *self;
        WeightCoding { element, packing, scale, scale_dtype, symmetric }
    }

    /// Rows and columns that share one scale in a weight of `shape` [N, K]; at least 1 each.
    pub fn block(&self, shape: [usize; 2]) -> [usize; 2] {
        let [rows, columns] = match self.strategy {
            Strategy::Tensor => shape,
            Strategy::Channel | Strategy::Token => [1, shape[1]],
            Strategy::Group | Strategy::TensorGroup | Strategy::Block => self.sizes,
        };
        [rows.max(1), columns.max(1)]
    }

    /// Columns of a group, for the strategies that must divide K.
    pub fn group_size(&self) -> Option<usize> {
        matches!(self.strategy, Strategy::Group | Strategy::TensorGroup).then_some(self.sizes[1])
    }

    /// Shape of `weight_scale`: `[1]`, `[N, 1]`, `[N, K/g]`, or `[ceil(N/rows), ceil(K/columns)]`; in ModelOpt's layout
    /// `[]`, `[N]`, `[N, K/g]`, `[N/rows, 1, K/columns, 1]`.
    pub fn scale_shape(&self, shape: [usize; 2]) -> Vec<usize> {
        let [rows, columns] = self.block(shape);
        let [bands, groups] = [shape[0].div_ceil(rows), shape[1].div_ceil(columns)];
        match (self.strategy, self.dialect) {
            (Strategy::Tensor, Dialect::CompressedTensors) => vec![1],
            (Strategy::Tensor, Dialect::Modelopt) => Vec::new(),
            (Strategy::Channel | Strategy::Token, Dialect::CompressedTensors) => vec![shape[0], 1],
            (Strategy::Channel | Strategy::Token, Dialect::Modelopt) => vec![shape[0]],
            (Strategy::Block, Dialect::Modelopt) => vec![bands, 1, groups, 1],
            _ => vec![bands, groups],
        }
    }

    /// Whether codes (and zero points) are bit streams in 32-bit words.
    pub fn is_packed_in_words(&self) -> bool {
        self.packing == Packing::Words
    }

    /// Whether scales depend on the largest magnitude of more than one row.
    pub fn needs_tensor_amax(&self) -> bool {
        self.strategy == Strategy::Tensor || self.scale == ScaleKind::E4m3UnderGlobal
    }

    /// The tensor that holds the codes.
    pub fn codes(&self, shape: [usize; 2]) -> ModuleTensor {
        let tensor = self.codes_by_packing(shape);
        match self.dialect {
            Dialect::CompressedTensors => tensor,
            Dialect::Modelopt => ModuleTensor { suffix: "weight", ..tensor },
        }
    }

    fn codes_by_packing(&self, shape: [usize; 2]) -> ModuleTensor {
        let [n, k] = shape;
        match (self.packing, self.element) {
            (Packing::Bytes, Element::E4m3) => {
                ModuleTensor { suffix: "weight", dtype: Dtype::F8_E4M3, shape: vec![n, k] }
            }
            (Packing::Bytes, _) => ModuleTensor { suffix: "weight", dtype: Dtype::I8, shape: vec![n, k] },
            (Packing::Nibbles, _) => {
                ModuleTensor { suffix: "weight_packed", dtype: Dtype::U8, shape: vec![n, k.div_ceil(2)] }
            }
            (Packing::Sextets, _) => {
                ModuleTensor { suffix: "weight_packed", dtype: Dtype::U8, shape: vec![n, k.div_ceil(4) * 3] }
            }
            (Packing::Words, Element::Int(bits)) => {
                let words = int_pack::packed_words(k, bits);
                ModuleTensor { suffix: "weight_packed", dtype: Dtype::I32, shape: vec![n, words] }
            }
            (Packing::Words, _) => unreachable!("only integers are packed into words (WeightLayout::new)"),
        }
    }

    /// Every tensor of a module whose weight has `shape` [N, K] and whose float scales have `scale_dtype`; the codes
    /// come first.
    pub fn tensors(&self, shape: [usize; 2], scale_dtype: Dtype) -> Vec<ModuleTensor> {
        let scales = self.scale_shape(shape);
        let scale_dtype = match self.scale {
            ScaleKind::Float if self.dialect == Dialect::Modelopt => Dtype::F32,
            ScaleKind::Float => scale_dtype,
            ScaleKind::E4m3UnderGlobal => Dtype::F8_E4M3,
            ScaleKind::E8m0 => Dtype::U8,
        };
        let mut specs = vec![self.codes(shape)];
        specs.push(ModuleTensor { suffix: "weight_scale", dtype: scale_dtype, shape: scales.clone() });
        if self.scale == ScaleKind::E4m3UnderGlobal {
            let (suffix, shape) = match self.dialect {
                Dialect::CompressedTensors => ("weight_global_scale", vec![1]),
                Dialect::Modelopt => ("weight_scale_2", Vec::new()),
            };
            specs.push(ModuleTensor { suffix, dtype: Dtype::F32, shape });
        }
        match (self.symmetric, self.packing, self.element) {
            (false, Packing::Words, Element::Int(bits)) => specs.push(ModuleTensor {
                suffix: "weight_zero_point",
                dtype: Dtype::I32,
                shape: vec![int_pack::packed_words(shape[0], bits), scales[1]],
            }),
            (false, ..) => {
                specs.push(ModuleTensor { suffix: "weight_zero_point", dtype: Dtype::I8, shape: scales });
            }
            (true, ..) => {}
        }
        if self.packing == Packing::Words {
            specs.push(ModuleTensor { suffix: "weight_shape", dtype: Dtype::I64, shape: vec![2] });
        }
        specs
    }

    /// Short name for reports: `fp8_e4m3`, `int8`, `int4_g128`, `int4_g32_asym`, `nvfp4`, `mxfp4`, `mxfp6`, `mxfp8`.
    pub fn precision(&self) -> String {
        let base = match (self.element, self.scale) {
            (_, ScaleKind::E4m3UnderGlobal) => return "nvfp4".to_owned(),
            (Element::E2m1, ScaleKind::E8m0) => return "mxfp4".to_owned(),
            (Element::E2m3, _) => return "mxfp6".to_owned(),
            (Element::E4m3, ScaleKind::E8m0) => return "mxfp8".to_owned(),
            (Element::Int(bits), _) => format!("int{bits}"),
            (Element::E4m3, _) => "fp8_e4m3".to_owned(),
            (Element::E2m1, _) => "fp4_e2m1".to_owned(),
        };
        let sizes = match self.strategy {
            Strategy::Group | Strategy::TensorGroup => format!("_g{}", self.sizes[1]),
            Strategy::Block => format!("_b{}x{}", self.sizes[0], self.sizes[1]),
            Strategy::Tensor => "_tensor".to_owned(),
            Strategy::Channel | Strategy::Token => String::new(),
        };
        base + &sizes + if self.symmetric { "" } else { "_asym" }
    }
}

/// How a format stores codes and scales; `None` where it does not hold such codes.
fn storage(format: Format, element: Element, strategy: Strategy) -> Option<(Packing, ScaleKind)> {
    Some(match (format, element, strategy) {
        (Format::FloatQuantized | Format::NaiveQuantized, Element::E4m3, _)
        | (Format::IntQuantized | Format::NaiveQuantized, Element::Int(_), _) => {
            (Packing::Bytes, ScaleKind::Float)
        }
        (Format::PackQuantized, Element::Int(_), _) => (Packing::Words, ScaleKind::Float),
        (Format::Nvfp4PackQuantized, Element::E2m1, Strategy::TensorGroup) => {
            (Packing::Nibbles, ScaleKind::E4m3UnderGlobal)
        }
        (Format::Mxfp4PackQuantized, Element::E2m1, Strategy::Group) => (Packing::Nibbles, ScaleKind::E8m0),
        (Format::Mxfp6PackQuantized, Element::E2m3, Strategy::Group) => (Packing::Sextets, ScaleKind::E8m0),
        (Format::Mxfp8Quantized, Element::E4m3, Strategy::Group) => (Packing::Bytes, ScaleKind::E8m0),
        _ => return None,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::checkpoint::quant_args::{Dynamic, Observer};

    /// Arguments for tests.
    pub(crate) fn args(
        qtype: QuantType,
        num_bits: u8,
        strategy: Strategy,
        group: Option<usize>,
    ) -> QuantizationArgs {
        QuantizationArgs {
            num_bits,
            qtype,
            symmetric: true,
            strategy,
            group_size: group,
            block_structure: (strategy == Strategy::Block).then_some([128, 128]),
            dynamic: Dynamic::No,
            scale_dtype: None,
            observer: Observer::MinMax,
            amax: None,
        }
    }

    fn shapes(layout: &WeightLayout, shape: [usize; 2]) -> Vec<(&'static str, Dtype, Vec<usize>)> {
        layout.tensors(shape, Dtype::BF16).into_iter().map(|s| (s.suffix, s.dtype, s.shape)).collect()
    }

    #[test]
    fn tensors_of_each_format() {
        use Dtype::{BF16, F8_E4M3, F32, I8, I32, I64, U8};
        let of = |qtype, bits, strategy, group, format| {
            WeightLayout::new(&args(qtype, bits, strategy, group), format).unwrap()
        };
        let fp8 = of(QuantType::Float, 8, Strategy::Channel, None, Format::FloatQuantized);
        assert_eq!(
            shapes(&fp8, [192, 576]),
            [("weight", F8_E4M3, vec![192, 576]), ("weight_scale", BF16, vec![192, 1])]
        );
        let block = of(QuantType::Float, 8, Strategy::Block, None, Format::FloatQuantized);
        assert_eq!(shapes(&block, [192, 576])[1], ("weight_scale", BF16, vec![2, 5]));
        let int8 = of(QuantType::Int, 8, Strategy::Channel, None, Format::IntQuantized);
        assert_eq!(shapes(&int8, [192, 576])[0], ("weight", I8, vec![192, 576]));
        let int4 = of(QuantType::Int, 4, Strategy::Group, Some(64), Format::PackQuantized);
        assert_eq!(
            shapes(&int4, [192, 576]),
            [
                ("weight_packed", I32, vec![192, 72]),
                ("weight_scale", BF16, vec![192, 9]),
                ("weight_shape", I64, vec![2])
            ]
        );
        let nvfp4 = of(QuantType::Float, 4, Strategy::TensorGroup, Some(16), Format::Nvfp4PackQuantized);
        assert_eq!(
            shapes(&nvfp4, [192, 576]),
            [
                ("weight_packed", U8, vec![192, 288]),
                ("weight_scale", F8_E4M3, vec![192, 36]),
                ("weight_global_scale", F32, vec![1])
            ]
        );
        let mxfp4 = of(QuantType::Float, 4, Strategy::Group, Some(32), Format::Mxfp4PackQuantized);
        assert_eq!(shapes(&mxfp4, [192, 576])[1], ("weight_scale", U8, vec![192, 18]));
        assert_eq!(int4.precision(), "int4_g64");
    }

    /// Names, dtypes and shapes of ModelOpt's layout (day0-release-and-modelopt §2.3).
    #[test]
    fn tensors_in_modelopt_layout() {
        use Dtype::{F8_E4M3, F32, U8};
        let of = |qtype, bits, strategy, group, format| {
            let layout = WeightLayout::new(&args(qtype, bits, strategy, group), format).unwrap();
            layout.in_dialect(Dialect::Modelopt).map(|layout| shapes(&layout, [256, 512]))
        };
        let fp8 = |strategy| of(QuantType::Float, 8, strategy, None, Format::FloatQuantized).unwrap();
        assert_eq!(fp8(Strategy::Tensor)[1], ("weight_scale", F32, vec![]));
        assert_eq!(fp8(Strategy::Channel)[1], ("weight_scale", F32, vec![256]));
        assert_eq!(fp8(Strategy::Block)[1], ("weight_scale", F32, vec![2, 1, 4, 1]));
        assert_eq!(
            of(QuantType::Float, 4, Strategy::TensorGroup, Some(16), Format::Nvfp4PackQuantized).unwrap(),
            [
                ("weight", U8, vec![256, 256]),
                ("weight_scale", F8_E4M3, vec![256, 32]),
                ("weight_scale_2", F32, vec![])
            ]
        );
        let int4 = of(QuantType::Int, 4, Strategy::Group, Some(64), Format::PackQuantized);
        assert!(matches!(int4, Err(LayoutError::Dialect { .. })));
    }

    #[test]
    fn zero_points_are_packed_along_rows() {
        let mut asymmetric = args(QuantType::Int, 4, Strategy::Group, Some(32));
        asymmetric.symmetric = false;
        let layout = WeightLayout::new(&asymmetric, Format::PackQuantized).unwrap();
        assert_eq!(shapes(&layout, [20, 64])[2], ("weight_zero_point", Dtype::I32, vec![3, 2]));
    }

    #[test]
    fn impossible_combinations() {
        let new = |qtype, bits, strategy, group, format| {
            WeightLayout::new(&args(qtype, bits, strategy, group), format)
        };
        assert!(new(QuantType::Int, 9, Strategy::Channel, None, Format::PackQuantized).is_err());
        assert!(new(QuantType::Float, 4, Strategy::Group, Some(32), Format::FloatQuantized).is_err());
        assert!(new(QuantType::Int, 4, Strategy::Group, Some(0), Format::PackQuantized).is_err());
        assert!(new(QuantType::Int, 8, Strategy::Token, None, Format::IntQuantized).is_err());
    }
}
