//! Writes one safetensors file as a stream: header first, then the tensors in the declared order.
//!
//! The whole header must be known beforehand, so that nothing is seeked back to and the digest of the file can be
//! taken while the bytes go by. The JSON is padded with spaces to a multiple of eight bytes, as the format's reference
//! implementation does, so that the data is aligned.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::header::{LENGTH_BYTES, MAX_HEADER_BYTES, shown};
use crate::base::digest::{Digest, DigestBuilder};

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Size of the data in bytes; `None` when it overflows or ends within a byte.
    pub fn num_bytes(&self) -> Option<u64> {
        let elements = self.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64))?;
        let bits = elements.checked_mul(self.dtype.bitsize() as u64)?;
        (bits % 8 == 0).then_some(bits / 8)
    }
}

/// Writes one file. Every declared tensor must be written, in order and whole.
#[derive(Debug)]
pub struct ShardWriter<W: Write> {
    out: Hashing<W>,
    tensors: Vec<(String, u64)>,
    /// Index of the tensor being written.
    next: usize,
    /// Bytes of it written so far.
    written: u64,
}

impl<W: Write> ShardWriter<W> {
    /// Writes the header. The data will lie in the order of `tensors`; `metadata` becomes `__metadata__`.
    pub fn new(out: W, tensors: &[TensorSpec], metadata: &BTreeMap<String, String>) -> io::Result<Self> {
        let (header, sizes) = header_bytes(tensors, metadata)?;
        let mut out = Hashing {
            inner: out,
            digest: DigestBuilder::default(),
            bytes: 0,
            begun: Vec::with_capacity(HASH_BLOCK),
        };
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        let tensors = tensors.iter().map(|t| t.name.clone()).zip(sizes).collect();
        Ok(Self { out, tensors, next: 0, written: 0 })
    }

    /// Writes the whole data of the next tensor, which must be `name`.
    pub fn write_tensor(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        if self.written != 0 {
            return Err(misuse(format!(
                "tensor {} is begun but not complete",
                shown(&self.tensors[self.next].0)
            )));
        }
        let expected = self.expect(name)?;
        if bytes.len() as u64 != expected {
            let found = bytes.len();
            return Err(misuse(format!("tensor {}: expected {expected} bytes, found {found}", shown(name))));
        }
        self.append(name, bytes)
    }

    /// Writes part of the data of the next tensor, which must be `name`; call again until it is complete. A tensor
    /// without data needs one call too.
    pub fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let expected = self.expect(name)?;
        let written = self.written + bytes.len() as u64;
        if written > expected {
            return Err(misuse(format!(
                "tensor {}: expected {expected} bytes, found {written}",
                shown(name)
            )));
        }
        self.out.write_all(bytes)?;
        self.written = written;
        if written == expected {
            self.next += 1;
            self.written = 0;
        }
        Ok(())
    }

    /// Flushes and returns the writer, the digest of the file and its size in bytes.
    pub fn finish(mut self) -> io::Result<(W, Digest, u64)> {
        if let Some((name, _)) = self.tensors.get(self.next) {
            return Err(misuse(format!("tensor {} was declared but not written", shown(name))));
        }
        self.out.flush()?;
        Ok((self.out.inner, self.out.digest.finish(), self.out.bytes))
    }

    /// The size of the next tensor, which must be `name`.
    fn expect(&self, name: &str) -> io::Result<u64> {
        match self.tensors.get(self.next) {
            Some((next, size)) if next == name => Ok(*size),
            Some((next, _)) => {
                Err(misuse(format!("expected tensor {} next, found {}", shown(next), shown(name))))
            }
            None => Err(misuse(format!("tensor {} was not declared", shown(name)))),
        }
    }
}

/// The size in bytes of the file that [`ShardWriter`] writes for these tensors.
pub fn file_bytes(tensors: &[TensorSpec], metadata: &BTreeMap<String, String>) -> io::Result<u64> {
    let (header, sizes) = header_bytes(tensors, metadata)?;
    Ok(LENGTH_BYTES + header.len() as u64 + sizes.iter().sum::<u64>())
}

/// The padded JSON and the size of each tensor.
fn header_bytes(
    tensors: &[TensorSpec],
    metadata: &BTreeMap<String, String>,
) -> io::Result<(Vec<u8>, Vec<u64>)> {
    let mut names = BTreeSet::from(["__metadata__"]);
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_owned(), json!(metadata));
    }
    let mut sizes = Vec::with_capacity(tensors.len());
    let mut begin = 0u64;
    for tensor in tensors {
        if !names.insert(&tensor.name) {
            return Err(misuse(format!("tensor name {} is taken", shown(&tensor.name))));
        }
        let size = tensor.num_bytes().filter(|size| begin.checked_add(*size).is_some()).ok_or_else(|| {
            misuse(format!("tensor {}: no byte size for {:?}", shown(&tensor.name), tensor.shape))
        })?;
        let entry = json!({
            "dtype": tensor.dtype.to_string(), "shape": tensor.shape, "data_offsets": [begin, begin + size],
        });
        header.insert(tensor.name.clone(), entry);
        sizes.push(size);
        begin += size;
    }
    let mut text = serde_json::to_vec(&Value::Object(header))?;
    text.resize(text.len().next_multiple_of(8), b' ');
    if text.len() as u64 > MAX_HEADER_BYTES {
        return Err(misuse(format!(
            "a header of {} bytes, at most {MAX_HEADER_BYTES} are readable",
            text.len()
        )));
    }
    Ok((text, sizes))
}

fn misuse(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

/// Bytes are hashed and passed on in multiples of this: BLAKE3 is fastest on whole subtrees at their own multiples, and
/// the system copies whole pages.
const HASH_BLOCK: usize = 64 << 10;

/// Hashes and counts what goes through.
struct Hashing<W: Write> {
    inner: W,
    digest: DigestBuilder,
    bytes: u64,
    /// The begin of the next block.
    begun: Vec<u8>,
}

impl<W: Write> Hashing<W> {
    fn pass_on(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.inner.write_all(bytes)?;
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn pass_on_begun(&mut self) -> io::Result<()> {
        let mut begun = std::mem::take(&mut self.begun);
        let done = self.pass_on(&begun);
        begun.clear();
        self.begun = begun;
        done
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let missing = if self.begun.is_empty() { 0 } else { HASH_BLOCK - self.begun.len() };
        let (head, tail) = bytes.split_at(missing.min(bytes.len()));
        self.begun.extend_from_slice(head);
        if self.begun.len() == HASH_BLOCK {
            self.pass_on_begun()?;
        }
        let (blocks, rest) = tail.split_at(tail.len() / HASH_BLOCK * HASH_BLOCK);
        if !blocks.is_empty() {
            self.pass_on(blocks)?;
        }
        self.begun.extend_from_slice(rest);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pass_on_begun()?;
        self.inner.flush()
    }
}

impl<W: Write + std::fmt::Debug> std::fmt::Debug for Hashing<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hashing")
            .field("inner", &self.inner)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use safetensors::SafeTensors;

    use super::*;

    fn spec(name: &str, dtype: Dtype, shape: &[usize]) -> TensorSpec {
        TensorSpec { name: name.to_owned(), dtype, shape: shape.to_vec() }
    }

    fn open(specs: &[TensorSpec]) -> ShardWriter<Vec<u8>> {
        ShardWriter::new(Vec::new(), specs, &BTreeMap::new()).unwrap()
    }

    #[test]
    fn readable_by_the_reference_implementation() {
        let specs =
            [spec("b", Dtype::BF16, &[2, 3]), spec("a\"\n", Dtype::F32, &[]), spec("e", Dtype::I8, &[0])];
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let mut writer = ShardWriter::new(Vec::new(), &specs, &metadata).unwrap();
        writer.append("b", &[1; 5]).unwrap();
        writer.append("b", &[2; 7]).unwrap();
        writer.write_tensor("a\"\n", &1.5f32.to_le_bytes()).unwrap();
        writer.write_tensor("e", &[]).unwrap();
        let (bytes, digest, size) = writer.finish().unwrap();
        assert_eq!(digest, Digest::of(&bytes));
        assert_eq!(size, bytes.len() as u64);
        assert_eq!(size, file_bytes(&specs, &metadata).unwrap());
        let (header, info) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header % 8, 0);
        assert_eq!(info.metadata().as_ref().unwrap()["format"], "pt");
        let read = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.tensor("b").unwrap().data(), [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2]);
        assert_eq!(read.tensor("a\"\n").unwrap().shape(), [0usize; 0]);
    }

    #[test]
    fn order_and_size_are_enforced() {
        let specs = [spec("a", Dtype::U8, &[2]), spec("b", Dtype::U8, &[1])];
        assert!(open(&specs).write_tensor("b", &[1]).is_err());
        assert!(open(&specs).write_tensor("a", &[1]).is_err());
        assert!(open(&specs).append("a", &[1; 3]).is_err());
        assert!(open(&specs).finish().is_err());
        let mut begun = open(&specs);
        begun.append("a", &[1]).unwrap();
        assert!(begun.write_tensor("a", &[1, 2]).is_err());
        let mut done = open(&specs[..1]);
        done.write_tensor("a", &[1, 2]).unwrap();
        assert!(done.write_tensor("c", &[]).is_err());
    }

    #[test]
    fn bad_declarations() {
        let new = |specs: &[TensorSpec]| ShardWriter::new(Vec::new(), specs, &BTreeMap::new()).map(|_| ());
        assert!(new(&[spec("a", Dtype::U8, &[1]), spec("a", Dtype::U8, &[1])]).is_err());
        assert!(new(&[spec("__metadata__", Dtype::U8, &[1])]).is_err());
        assert!(new(&[spec("a", Dtype::F4, &[3])]).is_err());
        assert!(new(&[spec("a", Dtype::F32, &[usize::MAX, 2])]).is_err());
    }

    proptest! {
        #[test]
        fn round_trip_through_our_reader(shapes in proptest::collection::vec((0usize..5, 0usize..5), 0..8)) {
            let specs: Vec<_> = shapes
                .iter()
                .enumerate()
                .map(|(i, (a, b))| spec(&format!("t{i}"), Dtype::U8, &[*a, *b]))
                .collect();
            let mut writer = open(&specs);
            for (i, (a, b)) in shapes.iter().enumerate() {
                writer.write_tensor(&format!("t{i}"), &vec![i as u8; a * b]).unwrap();
            }
            let (bytes, _, _) = writer.finish().unwrap();
            let header = super::super::header::parse_file(&bytes).unwrap();
            prop_assert_eq!(header.tensors.len(), specs.len());
            for spec in &specs {
                prop_assert_eq!(&header.get(&spec.name).unwrap().shape, &spec.shape);
            }
        }
    }
}
