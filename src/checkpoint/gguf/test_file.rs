//! Builds small GGUF files for tests.

use super::blocks;
use super::value::Value;

/// A GGUF file in the making.
#[derive(Default)]
pub(crate) struct TestGguf {
    keys: Vec<(String, Vec<u8>)>,
    tensors: Vec<(String, Vec<usize>, u32, Vec<u8>)>,
}

impl TestGguf {
    pub(crate) fn text(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, &string(value))
    }

    pub(crate) fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub(crate) fn bool(self, key: &str, value: bool) -> Self {
        self.raw(key, 7, &[u8::from(value)])
    }

    pub(crate) fn list(self, key: &str, values: &[Value]) -> Self {
        let mut bytes = Vec::new();
        let mut kind = 8u32;
        for value in values {
            match value {
                Value::Text(s) => bytes.extend(string(s)),
                Value::Int(n) => {
                    kind = 5;
                    bytes.extend((*n as i32).to_le_bytes());
                }
                Value::F32(x) => {
                    kind = 6;
                    bytes.extend(x.to_le_bytes());
                }
                other => panic!("{other:?}"),
            }
        }
        let head = [&kind.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()[..]].concat();
        self.raw(key, 9, &[head, bytes].concat())
    }

    pub(crate) fn texts(self, key: &str, values: &[&str]) -> Self {
        let values: Vec<Value> = values.iter().map(|s| Value::Text((*s).to_owned())).collect();
        self.list(key, &values)
    }

    /// A value of any type number.
    pub(crate) fn raw(mut self, key: &str, kind: u32, bytes: &[u8]) -> Self {
        self.keys.retain(|(k, _)| k != key);
        self.keys.push((key.to_owned(), [&kind.to_le_bytes()[..], bytes].concat()));
        self
    }

    pub(crate) fn without(mut self, key: &str) -> Self {
        self.keys.retain(|(k, _)| k != key);
        self
    }

    pub(crate) fn tensor(mut self, name: &str, shape: &[usize], kind: u32, data: Vec<u8>) -> Self {
        self.tensors.retain(|(n, ..)| n != name);
        self.tensors.push((name.to_owned(), shape.to_vec(), kind, data));
        self
    }

    /// An F32 tensor of these values.
    pub(crate) fn f32_values(self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        let data = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.tensor(name, shape, blocks::TYPES[0].id, data)
    }

    /// An F32 tensor whose elements count up from `first`.
    pub(crate) fn f32_tensor(self, name: &str, shape: &[usize], first: f32) -> Self {
        let elements: usize = shape.iter().product();
        let data = (0..elements).flat_map(|i| (first + i as f32).to_le_bytes()).collect();
        self.tensor(name, shape, blocks::TYPES[0].id, data)
    }

    pub(crate) fn without_tensor(mut self, name: &str) -> Self {
        self.tensors.retain(|(n, ..)| n != name);
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            out.extend(string(key));
            out.extend(value);
        }
        let mut offset = 0usize;
        for (name, shape, kind, data) in &self.tensors {
            out.extend(string(name));
            out.extend((shape.len() as u32).to_le_bytes());
            for dim in shape.iter().rev() {
                out.extend((*dim as u64).to_le_bytes());
            }
            out.extend(kind.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset = (offset + data.len()).next_multiple_of(32);
        }
        for (.., data) in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(data);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}
