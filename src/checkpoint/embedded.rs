//! The model inside the binary, `day0-tiny`: its files, byte for byte.

use crate::base::digest::{Digest, DigestBuilder};

/// What MODEL says to mean the embedded model.
pub const NAME: &str = "day0-tiny";

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../../models/day0-tiny/", $name)) as &[u8])),*]
    };
}

/// File names and contents, sorted by name.
pub static FILES: &[(&str, &[u8])] = files![
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// The digest of names and contents.
pub fn digest() -> Digest {
    let mut digest = DigestBuilder::default();
    for (name, content) in FILES {
        digest.field(name.as_bytes()).field(content);
    }
    digest.finish()
}
