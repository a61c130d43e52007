//! Element types of GGUF tensors and their dequantization to f32.
//!
//! Blocks are decoded by candle's `QTensor`, whose arithmetic is ggml's `dequantize_row_*`; the plain types are
//! converted here.

use std::borrow::Cow;

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use half::{bf16, f16};

/// An element type that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockType {
    /// ggml's number of the type.
    pub id: u32,
    /// ggml's name of the type.
    pub name: &'static str,
    /// Elements in a block.
    pub block_elements: usize,
    /// Bytes of a block.
    pub block_bytes: usize,
    decoder: Decoder,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decoder {
    F32,
    F16,
    Bf16,
    Candle(GgmlDType),
}

/// Every type that is read. Numbers and sizes are those of ggml.h and ggml-common.h.
pub const TYPES: [BlockType; 13] = [
    plain(0, "F32", 4, Decoder::F32),
    plain(1, "F16", 2, Decoder::F16),
    block(2, "Q4_0", 32, 18, GgmlDType::Q4_0),
    block(3, "Q4_1", 32, 20, GgmlDType::Q4_1),
    block(6, "Q5_0", 32, 22, GgmlDType::Q5_0),
    block(7, "Q5_1", 32, 24, GgmlDType::Q5_1),
    block(8, "Q8_0", 32, 34, GgmlDType::Q8_0),
    block(10, "Q2_K", 256, 84, GgmlDType::Q2K),
    block(11, "Q3_K", 256, 110, GgmlDType::Q3K),
    block(12, "Q4_K", 256, 144, GgmlDType::Q4K),
    block(13, "Q5_K", 256, 176, GgmlDType::Q5K),
    block(14, "Q6_K", 256, 210, GgmlDType::Q6K),
    plain(30, "BF16", 2, Decoder::Bf16),
];

/// Names of types that exist and are not read, for messages.
const OTHER_NAMES: [(u32, &str); 20] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

const fn plain(id: u32, name: &'static str, bytes: usize, decoder: Decoder) -> BlockType {
    BlockType { id, name, block_elements: 1, block_bytes: bytes, decoder }
}

const fn block(id: u32, name: &'static str, elements: usize, bytes: usize, dtype: GgmlDType) -> BlockType {
    BlockType { id, name, block_elements: elements, block_bytes: bytes, decoder: Decoder::Candle(dtype) }
}

/// The type of this number, or its name when it is not read.
pub fn by_id(id: u32) -> Result<BlockType, String> {
    TYPES.into_iter().find(|t| t.id == id).ok_or_else(|| {
        let known = OTHER_NAMES.iter().find(|(other, _)| *other == id);
        known.map_or_else(|| format!("type number {id}"), |(_, name)| (*name).to_owned())
    })
}

impl BlockType {
    /// Bytes of `elements` elements; `None` when they are not whole blocks or the size overflows.
    pub fn num_bytes(&self, elements: u64) -> Option<u64> {
        let blocks = elements.checked_div(self.block_elements as u64)?;
        elements
            .is_multiple_of(self.block_elements as u64)
            .then(|| blocks.checked_mul(self.block_bytes as u64))?
    }

    /// The values of whole blocks.
    pub fn to_f32(self, data: &[u8]) -> candle_core::Result<Vec<f32>> {
        let dtype = match self.decoder {
            Decoder::F32 => return Ok(data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Decoder::F16 => {
                return Ok(data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect());
            }
            Decoder::Bf16 => {
                return Ok(data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect());
            }
            Decoder::Candle(dtype) => dtype,
        };
        let elements = data.len() / self.block_bytes * self.block_elements;
        let aligned = aligned_copy(data);
        let storage = QStorage::from_data(aligned.bytes(), &Device::Cpu, dtype)?;
        QTensor::new(storage, (elements,))?.dequantize(&Device::Cpu)?.to_vec1()
    }
}

/// Candle reinterprets bytes as blocks, whose scales need an even address; a mapped file promises none.
struct Aligned {
    buffer: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn bytes(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.buffer[self.start..self.start + self.len])
    }
}

fn aligned_copy(data: &[u8]) -> Aligned {
    const ALIGN: usize = 16;
    let mut buffer: Vec<u8> = Vec::with_capacity(data.len() + ALIGN);
    let start = buffer.as_ptr().align_offset(ALIGN).min(ALIGN);
    buffer.resize(start, 0);
    buffer.extend_from_slice(data);
    Aligned { buffer, start, len: data.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of random bytes and their values by gguf-py 0.19 (`golden/make_blocks.py`).
    #[test]
    fn every_type_agrees_with_gguf_py() {
        let golden: serde_json::Value = serde_json::from_str(include_str!("golden/blocks.json")).unwrap();
        for kind in TYPES {
            let case = &golden[kind.name];
            let bytes = hex(case["bytes"].as_str().unwrap());
            let expected: Vec<u32> = hex(case["f32"].as_str().unwrap())
                .as_chunks()
                .0
                .iter()
                .map(|b| u32::from_le_bytes(*b))
                .collect();
            assert_eq!(kind.num_bytes(expected.len() as u64), Some(bytes.len() as u64), "{}", kind.name);
            // At an odd address too.
            let mut shifted = vec![0];
            shifted.extend_from_slice(&bytes);
            for data in [&bytes[..], &shifted[1..]] {
                let found: Vec<u32> = kind.to_f32(data).unwrap().iter().map(|x| x.to_bits()).collect();
                assert_eq!(found, expected, "{}", kind.name);
            }
        }
    }

    #[test]
    fn sizes_agree_with_candle() {
        for kind in TYPES {
            if let Decoder::Candle(dtype) = kind.decoder {
                assert_eq!((dtype.block_size(), dtype.type_size()), (kind.block_elements, kind.block_bytes));
            }
        }
        assert_eq!(by_id(20), Err("IQ4_NL".to_owned()));
        assert_eq!(by_id(999), Err("type number 999".to_owned()));
        assert_eq!(by_id(2).unwrap().num_bytes(33), None);
        assert_eq!(by_id(0).unwrap().num_bytes(u64::MAX), None);
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
    }
}
