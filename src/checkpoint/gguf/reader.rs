//! The header of a GGUF file: version, metadata, tensor infos. Every count and length is checked against the bytes
//! that are left before anything is allocated.
//!
//! Layout (little-endian): `GGUF`, u32 version, u64 tensors, u64 keys; per key: string, u32 type, value; per tensor:
//! string, u32 dimensions, u64 each (innermost first), u32 type, u64 offset; padding to `general.alignment`; data.
//! A string is a u64 length and UTF-8 bytes; an array is u32 type, u64 count, values.

use std::collections::{BTreeMap, BTreeSet};

use super::blocks::{self, BlockType};
use super::error::GgufProblem;
use super::value::{Metadata, Value};

/// ggml's largest number of dimensions.
const MAX_DIMS: u32 = 4;
/// Depth of nested arrays; llama.cpp writes none.
const MAX_DEPTH: usize = 4;
/// Alignment of the data where the file does not say.
const DEFAULT_ALIGNMENT: usize = 32;

/// A parsed header.
#[derive(Debug, Clone)]
pub struct Gguf {
    /// Metadata.
    pub metadata: Metadata,
    /// Tensors by name.
    pub tensors: BTreeMap<String, GgufTensor>,
}

/// Where and what a tensor is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Element type.
    pub block_type: BlockType,
    /// First byte in the file.
    pub begin: usize,
    /// One past the last byte in the file.
    pub end: usize,
}

impl GgufTensor {
    /// Elements of one row (the innermost dimension).
    pub fn row_elements(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
}

/// Parses the header of a whole file in memory (or mapped).
pub fn parse(file: &[u8]) -> Result<Gguf, GgufProblem> {
    let mut reader = Reader { file, at: 0 };
    let magic = reader.take(4.min(file.len() as u64), "magic")?;
    if magic != b"GGUF" {
        return Err(GgufProblem::NotGguf { found: magic.to_vec() });
    }
    let version = reader.u32("version")?;
    if !(2..=3).contains(&version) {
        return Err(GgufProblem::Version { found: version });
    }
    // A tensor takes at least 24 bytes, a key at least 13.
    let num_tensors = reader.count("tensor count", 24)?;
    let num_keys = reader.count("key count", 13)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..num_keys {
        let key = reader.text("metadata key")?;
        let kind = reader.u32(&key)?;
        let value = reader.value(kind, &key, 0)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(GgufProblem::field(&key, "the key once", "it twice"));
        }
    }
    let metadata = Metadata(metadata);
    let infos = (0..num_tensors).map(|_| reader.tensor_info()).collect::<Result<Vec<_>, _>>()?;
    let alignment = metadata.count("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() {
        return Err(GgufProblem::field("general.alignment", "a power of two", alignment));
    }
    let data_start = (reader.at as u64).next_multiple_of(alignment as u64);
    let tensors = place(infos, data_start, alignment as u64, file.len() as u64)?;
    Ok(Gguf { metadata, tensors })
}

/// A tensor info as it stands in the file.
struct Info {
    name: String,
    shape: Vec<usize>,
    kind: u32,
    offset: u64,
}

/// Resolves types and offsets: aligned, in the file, without overlaps.
fn place(
    infos: Vec<Info>,
    data_start: u64,
    alignment: u64,
    file_bytes: u64,
) -> Result<BTreeMap<String, GgufTensor>, GgufProblem> {
    let mut tensors = BTreeMap::new();
    let mut spans = BTreeSet::new();
    for Info { name, shape, kind, offset } in infos {
        let names = blocks::TYPES.map(|t| t.name).join(", ");
        let block_type =
            blocks::by_id(kind).map_err(|found| GgufProblem::unsupported(&name, &names, found))?;
        let sized = shape
            .iter()
            .try_fold(1u64, |n, d| n.checked_mul(*d as u64))
            .filter(|_| shape.last().is_none_or(|row| row % block_type.block_elements == 0))
            .and_then(|elements| block_type.num_bytes(elements));
        let size = sized.ok_or_else(|| {
            let expected = format!("rows of a multiple of {} elements", block_type.block_elements);
            GgufProblem::tensor(&name, &expected, format_args!("shape {shape:?}"))
        })?;
        if offset % alignment != 0 {
            let expected = format!("an offset divisible by {alignment}");
            return Err(GgufProblem::tensor(&name, &expected, offset));
        }
        let begin = data_start.checked_add(offset);
        let end = begin.and_then(|begin| begin.checked_add(size)).filter(|end| *end <= file_bytes);
        let (Some(begin), Some(end)) = (begin, end) else {
            let what = format!("tensor {}", super::super::header::shown(&name));
            return Err(GgufProblem::Truncated {
                what,
                at: data_start,
                need: offset.saturating_add(size),
                file_bytes,
            });
        };
        if size > 0 {
            spans.insert((begin, end, name.clone()));
        }
        let tensor = GgufTensor { shape, block_type, begin: begin as usize, end: end as usize };
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(GgufProblem::tensor(&name, "the name once", "it twice"));
        }
    }
    let mut covered = 0;
    for (begin, end, name) in spans {
        if begin < covered {
            return Err(GgufProblem::tensor(&name, "data of its own", "data shared with another tensor"));
        }
        covered = end;
    }
    Ok(tensors)
}

/// A cursor that checks every length.
struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn left(&self) -> u64 {
        (self.file.len() - self.at) as u64
    }

    fn take(&mut self, bytes: u64, what: &str) -> Result<&'a [u8], GgufProblem> {
        if bytes > self.left() {
            return Err(GgufProblem::Truncated {
                what: super::super::header::shown(what),
                at: self.at as u64,
                need: bytes,
                file_bytes: self.file.len() as u64,
            });
        }
        let taken = &self.file[self.at..self.at + bytes as usize];
        self.at += bytes as usize;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufProblem> {
        let bytes = self.take(N as u64, what)?;
        Ok(*bytes.first_chunk().expect("take returned N bytes"))
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufProblem> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, GgufProblem> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of things that take at least `min_bytes` each.
    fn count(&mut self, what: &str, min_bytes: u64) -> Result<u64, GgufProblem> {
        let count = self.u64(what)?;
        let most = self.left() / min_bytes.max(1);
        if count > most {
            let expected = format!("at most {most} in the rest of the file");
            return Err(GgufProblem::field(what, &expected, count));
        }
        Ok(count)
    }

    fn text(&mut self, what: &str) -> Result<String, GgufProblem> {
        let length = self.u64(what)?;
        let bytes = self.take(length, what)?;
        let text = std::str::from_utf8(bytes).map_err(|error| {
            GgufProblem::field(what, "UTF-8 text", format_args!("bytes that are not ({error})"))
        })?;
        Ok(text.to_owned())
    }

    /// A value of the given type number.
    fn value(&mut self, kind: u32, key: &str, depth: usize) -> Result<Value, GgufProblem> {
        Ok(match kind {
            0 => Value::Int(i128::from(self.array::<1>(key)?[0])),
            1 => Value::Int(i128::from(i8::from_le_bytes(self.array(key)?))),
            2 => Value::Int(i128::from(u16::from_le_bytes(self.array(key)?))),
            3 => Value::Int(i128::from(i16::from_le_bytes(self.array(key)?))),
            4 => Value::Int(i128::from(self.u32(key)?)),
            5 => Value::Int(i128::from(i32::from_le_bytes(self.array(key)?))),
            6 => Value::F32(f32::from_le_bytes(self.array(key)?)),
            7 => match self.array::<1>(key)?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => return Err(GgufProblem::field(key, "a boolean, 0 or 1", other)),
            },
            8 => Value::Text(self.text(key)?),
            9 => self.list(key, depth)?,
            10 => Value::Int(i128::from(self.u64(key)?)),
            11 => Value::Int(i128::from(i64::from_le_bytes(self.array(key)?))),
            12 => Value::F64(f64::from_le_bytes(self.array(key)?)),
            other => return Err(GgufProblem::field(key, "a value type from 0 to 12", other)),
        })
    }

    fn list(&mut self, key: &str, depth: usize) -> Result<Value, GgufProblem> {
        if depth >= MAX_DEPTH {
            return Err(GgufProblem::field(key, "arrays nested at most 4 deep", "more"));
        }
        let kind = self.u32(key)?;
        let min_bytes = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            9 => 12,
            _ => 8,
        };
        let count = self.count(key, min_bytes)?;
        // Grows as it is read: a count that the file can hold is still no reason to reserve 32 times its bytes.
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(self.value(kind, key, depth + 1)?);
        }
        Ok(Value::List(items))
    }

    fn tensor_info(&mut self) -> Result<Info, GgufProblem> {
        let name = self.text("tensor name")?;
        let dims = self.u32(&name)?;
        if dims > MAX_DIMS {
            return Err(GgufProblem::tensor(&name, "at most 4 dimensions", dims));
        }
        let mut shape = Vec::new();
        for _ in 0..dims {
            let dim = self.u64(&name)?;
            let dim = usize::try_from(dim)
                .map_err(|_| GgufProblem::tensor(&name, "a dimension that fits in memory", dim))?;
            shape.push(dim);
        }
        shape.reverse();
        Ok(Info { name: name.clone(), shape, kind: self.u32(&name)?, offset: self.u64(&name)? })
    }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
