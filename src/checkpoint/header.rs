//! The header of a safetensors file, parsed and validated before any byte of data is used.
//!
//! Layout: u64 little-endian N, N bytes of JSON `{"name": {"dtype", "shape", "data_offsets": [begin, end]}, …,
//! "__metadata__": {string: string}}`, then the data. Offsets count from the end of the JSON; the tensors must cover
//! the data exactly, without overlaps or holes. Source: the format section of huggingface/safetensors' README, and
//! `safetensors::SafeTensors::read_metadata` (0.8), which enforces the same but names no tensor in most errors.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::value::StrDeserializer;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

/// Bytes of the length field before the JSON.
pub const LENGTH_BYTES: u64 = 8;
/// The entry that is no tensor.
const METADATA: &str = "__metadata__";
/// Cap on the JSON, the same as the safetensors crate's.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A header whose tensors are known to lie in the file and to cover its data exactly.
#[derive(Debug, Clone)]
pub struct Header {
    /// The tensors in the order of their data.
    pub tensors: Vec<TensorInfo>,
    /// `__metadata__`; empty when the file has none.
    pub metadata: BTreeMap<String, String>,
    /// Position of the data in the file, in bytes.
    pub data_start: u64,
    /// Indices into `tensors`, sorted by name.
    by_name: Vec<usize>,
}

/// One tensor as the header declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// First byte, counted from the start of the data.
    pub begin: u64,
    /// One past the last byte, counted from the start of the data.
    pub end: u64,
}

impl TensorInfo {
    /// Size of the data in bytes.
    pub fn num_bytes(&self) -> u64 {
        self.end - self.begin
    }

    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl Header {
    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        let at = self.by_name.binary_search_by(|i| self.tensors[*i].name.as_str().cmp(name)).ok()?;
        Some(&self.tensors[self.by_name[at]])
    }

    /// The tensors sorted by name.
    pub fn sorted(&self) -> impl Iterator<Item = &TensorInfo> {
        self.by_name.iter().map(|i| &self.tensors[*i])
    }
}

/// A safetensors header that must not be used.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The file ends before the length field does.
    #[error("the file has {file_len} bytes, expected at least 8 (the header's length)")]
    TooShort {
        /// Size of the file in bytes.
        file_len: u64,
    },
    /// The length field is beyond the cap.
    #[error("the header claims {found} bytes, expected at most {MAX_HEADER_BYTES}")]
    TooLarge {
        /// The claimed length.
        found: u64,
    },
    /// The file ends before the header does.
    #[error("the header claims {found} bytes, but only {available} follow: the file is truncated")]
    Truncated {
        /// The claimed length.
        found: u64,
        /// Bytes in the file after the length field.
        available: u64,
    },
    /// The JSON is not UTF-8.
    #[error("the header is not UTF-8 (at its byte {at})")]
    NotUtf8 {
        /// Position of the first bad byte.
        at: usize,
    },
    /// The JSON is malformed or has a value of the wrong type; the source names the tensor.
    #[error("the header is not the expected JSON")]
    Json(#[source] serde_json::Error),
    /// Something is wrong with one tensor.
    #[error("tensor {}: {problem}", shown(tensor))]
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong.
        problem: TensorProblem,
    },
    /// Data that belongs to no tensor lies at the end of the file.
    #[error("the tensors cover {expected} bytes of data, but the file has {found}: trailing bytes")]
    TrailingBytes {
        /// Bytes covered by tensors.
        expected: u64,
        /// Bytes of data in the file.
        found: u64,
    },
}

/// What is wrong with one tensor of a header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorProblem {
    /// The dtype is none of the format.
    #[error("unknown dtype {}", shown(.0))]
    Dtype(String),
    /// The name occurs twice.
    #[error("the name occurs twice")]
    Duplicate,
    /// The size does not fit in 64 bits.
    #[error("the size of shape {shape:?} overflows")]
    Overflow {
        /// The declared shape, at most its first eight dimensions.
        shape: Vec<u64>,
    },
    /// The elements do not end at a byte boundary.
    #[error("{bits} bits are not a whole number of bytes")]
    PartialByte {
        /// Size in bits.
        bits: u64,
    },
    /// `data_offsets` run backwards.
    #[error("data_offsets [{begin}, {end}] run backwards")]
    Backwards {
        /// First offset.
        begin: u64,
        /// Second offset.
        end: u64,
    },
    /// `data_offsets` and shape × dtype disagree.
    #[error("dtype and shape need {expected} bytes, but data_offsets span {found}")]
    Size {
        /// Bytes by shape and dtype.
        expected: u64,
        /// Bytes by `data_offsets`.
        found: u64,
    },
    /// The data lies beyond the end of the file.
    #[error("the data ends at byte {end}, but the file has only {available}: the file is truncated")]
    OutOfFile {
        /// Declared end.
        end: u64,
        /// Bytes of data in the file.
        available: u64,
    },
    /// Two tensors share bytes.
    #[error("the data at byte {begin} overlaps that of {} (up to byte {previous_end})", shown(other))]
    Overlap {
        /// The tensor before this one.
        other: String,
        /// Its end.
        previous_end: u64,
        /// The start of this one.
        begin: u64,
    },
    /// Bytes before the tensor belong to none.
    #[error("the data begins at byte {begin}, expected {expected}: bytes between belong to no tensor")]
    Hole {
        /// Declared start.
        begin: u64,
        /// End of the tensor before.
        expected: u64,
    },
}

/// A name from a file as messages show it: escaped, and cut at 120 characters.
pub(crate) fn shown(name: &str) -> String {
    let mut chars = name.chars();
    let text: String = chars.by_ref().take(120).flat_map(char::escape_debug).collect();
    if chars.next().is_some() { text + "…" } else { text }
}

/// The length of the JSON, from the first eight bytes of a file of `file_len` bytes.
pub fn json_len(prefix: &[u8], file_len: u64) -> Result<u64, HeaderError> {
    let Some(length) = prefix.first_chunk::<8>() else {
        return Err(HeaderError::TooShort { file_len: file_len.min(prefix.len() as u64) });
    };
    let found = u64::from_le_bytes(*length);
    if found > MAX_HEADER_BYTES {
        return Err(HeaderError::TooLarge { found });
    }
    let available = file_len.saturating_sub(LENGTH_BYTES);
    if found > available {
        return Err(HeaderError::Truncated { found, available });
    }
    Ok(found)
}

/// Parses the header of a whole file in memory.
pub fn parse_file(file: &[u8]) -> Result<Header, HeaderError> {
    let file_len = file.len() as u64;
    let end = LENGTH_BYTES + json_len(file, file_len)?;
    parse(&file[LENGTH_BYTES as usize..end as usize], file_len)
}

/// Parses and validates the JSON of a header. `file_len` is the size of the whole file, in bytes.
pub fn parse(json: &[u8], file_len: u64) -> Result<Header, HeaderError> {
    let text = std::str::from_utf8(json).map_err(|error| HeaderError::NotUtf8 { at: error.valid_up_to() })?;
    let raw: RawHeader = serde_json::from_str(text).map_err(HeaderError::Json)?;
    let data_start = LENGTH_BYTES + json.len() as u64;
    let available = file_len.checked_sub(data_start).ok_or(HeaderError::Truncated {
        found: json.len() as u64,
        available: file_len.saturating_sub(LENGTH_BYTES),
    })?;
    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for (name, info) in raw.tensors {
        match checked(&info, available) {
            Ok((dtype, shape)) => {
                let [begin, end] = info.data_offsets;
                tensors.push(TensorInfo { name, dtype, shape, begin, end });
            }
            Err(problem) => return Err(HeaderError::Tensor { tensor: name, problem }),
        }
    }
    let by_name = finish_order(&mut tensors)?;
    check_cover(&tensors, available)?;
    Ok(Header { tensors, metadata: raw.metadata, data_start, by_name })
}

/// Checks one tensor on its own.
fn checked(info: &RawInfo, available: u64) -> Result<(Dtype, Vec<usize>), TensorProblem> {
    let dtype = Dtype::deserialize(StrDeserializer::<serde::de::value::Error>::new(&info.dtype))
        .map_err(|_| TensorProblem::Dtype(info.dtype.clone()))?;
    let overflow = || TensorProblem::Overflow { shape: info.shape.iter().copied().take(8).collect() };
    let shape: Option<Vec<usize>> = info.shape.iter().map(|d| usize::try_from(*d).ok()).collect();
    let shape = shape.ok_or_else(overflow)?;
    let bits = info
        .shape
        .iter()
        .try_fold(1u64, |product, dim| product.checked_mul(*dim))
        .and_then(|elements| elements.checked_mul(dtype.bitsize() as u64))
        .ok_or_else(overflow)?;
    if bits % 8 != 0 {
        return Err(TensorProblem::PartialByte { bits });
    }
    let [begin, end] = info.data_offsets;
    let found = end.checked_sub(begin).ok_or(TensorProblem::Backwards { begin, end })?;
    if found != bits / 8 {
        return Err(TensorProblem::Size { expected: bits / 8, found });
    }
    if end > available {
        return Err(TensorProblem::OutOfFile { end, available });
    }
    Ok((dtype, shape))
}

/// Sorts the tensors by their data and returns the order by name; names must be unique.
fn finish_order(tensors: &mut [TensorInfo]) -> Result<Vec<usize>, HeaderError> {
    tensors.sort_by(|a, b| (a.begin, a.end, &a.name).cmp(&(b.begin, b.end, &b.name)));
    let mut by_name: Vec<usize> = (0..tensors.len()).collect();
    by_name.sort_by(|a, b| tensors[*a].name.cmp(&tensors[*b].name));
    for pair in by_name.windows(2) {
        if tensors[pair[0]].name == tensors[pair[1]].name {
            let tensor = tensors[pair[0]].name.clone();
            return Err(HeaderError::Tensor { tensor, problem: TensorProblem::Duplicate });
        }
    }
    Ok(by_name)
}

/// Checks that the tensors, in the order of their data, cover it exactly.
fn check_cover(tensors: &[TensorInfo], available: u64) -> Result<(), HeaderError> {
    let mut covered = 0;
    for (i, info) in tensors.iter().enumerate() {
        let begin = info.begin;
        let problem = match begin.cmp(&covered) {
            std::cmp::Ordering::Equal => {
                covered = info.end;
                continue;
            }
            std::cmp::Ordering::Greater => TensorProblem::Hole { begin, expected: covered },
            std::cmp::Ordering::Less => {
                let other = i.checked_sub(1).map_or_else(String::new, |i| tensors[i].name.clone());
                TensorProblem::Overlap { other, previous_end: covered, begin }
            }
        };
        return Err(HeaderError::Tensor { tensor: info.name.clone(), problem });
    }
    if covered != available {
        return Err(HeaderError::TrailingBytes { expected: covered, found: available });
    }
    Ok(())
}

/// The JSON before validation.
struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, RawInfo)>,
}

#[derive(Deserialize)]
struct RawInfo {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawHeaderVisitor)
    }
}

/// A string map in which no key occurs twice.
pub(super) struct UniqueStrings(pub BTreeMap<String, String>);

impl<'de> Deserialize<'de> for UniqueStrings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueStringsVisitor)
    }
}

struct UniqueStringsVisitor;

impl<'de> Visitor<'de> for UniqueStringsVisitor {
    type Value = UniqueStrings;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object from names to strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<UniqueStrings, A::Error> {
        let mut map = BTreeMap::new();
        while let Some((key, value)) = entries.next_entry::<String, String>()? {
            match map.entry(key) {
                Entry::Vacant(place) => drop(place.insert(value)),
                Entry::Occupied(other) => {
                    return Err(A::Error::custom(format_args!("{} occurs twice", shown(other.key()))));
                }
            }
        }
        Ok(UniqueStrings(map))
    }
}

/// Reads the map by hand, so that a repeated name is seen and a wrong value is reported with its tensor.
struct RawHeaderVisitor;

impl<'de> Visitor<'de> for RawHeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut raw = RawHeader { metadata: BTreeMap::new(), tensors: Vec::new() };
        let mut has_metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                if std::mem::replace(&mut has_metadata, true) {
                    return Err(A::Error::custom(format_args!("{METADATA} occurs twice")));
                }
                let metadata: Option<UniqueStrings> = map
                    .next_value()
                    .map_err(|error| A::Error::custom(format_args!("{METADATA}: {error}")))?;
                raw.metadata = metadata.map(|m| m.0).unwrap_or_default();
            } else {
                let info = map
                    .next_value()
                    .map_err(|error| A::Error::custom(format_args!("tensor {}: {error}", shown(&name))))?;
                raw.tensors.push((name, info));
            }
        }
        Ok(raw)
    }
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
