//! Reference values made by other tools, for tests; each file lies beside the script that made it.

use sha2::{Digest, Sha256};

/// SHA-256 in hexadecimal, as the scripts print it.
pub fn sha256(bytes: &[u8]) -> String {
    let digits = |b: &u8| [b >> 4, b & 15].map(|d| char::from_digit(u32::from(d), 16).unwrap());
    Sha256::digest(bytes).iter().flat_map(digits).collect()
}

/// A digest of `codecs.json`, made by `codecs.py`.
pub fn codec(name: &str) -> String {
    let all: serde_json::Value = serde_json::from_str(include_str!("codecs.json")).unwrap();
    all[name].as_str().unwrap().to_owned()
}

/// Weights and the digests of their quantized tensors (`weights.json`, made by `weights.py`).
pub fn weights() -> serde_json::Value {
    serde_json::from_str(include_str!("weights.json")).unwrap()
}

/// Bytes written in hexadecimal, with or without spaces.
pub fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    digits.chunks(2).map(|d| u8::from_str_radix(&String::from_iter(d), 16).unwrap()).collect()
}
