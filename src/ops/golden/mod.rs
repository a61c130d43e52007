//! Reference values made by other tools, for tests; each file lies beside the script that made it.

use sha2::{Digest, Sha256};

/// SHA-256 in hexadecimal, as the scripts print it.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// A digest of `codecs.json`, made by `codecs.py`.
pub fn codec(name: &str) -> String {
    let all: serde_json::Value = serde_json::from_str(include_str!("codecs.json")).unwrap();
    all[name].as_str().unwrap().to_owned()
}
