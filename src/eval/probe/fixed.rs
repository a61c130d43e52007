//! The prompts every probe sends. They never change: readings of different days are compared.

use crate::serve::TextCodec;

const CANARY: &str = "Once upon a time, there was a little";

const FINGERPRINT: [&str; 8] = [
    "The capital of France is Paris.",
    "Water boils at one hundred degrees.",
    "2 + 2 = 4 and 3 + 5 = 8",
    "She opened the door and saw a big dog.",
    "def add(a, b): return a + b",
    "To be, or not to be, that is the question.",
    "The quick brown fox jumps over the lazy dog.",
    "Once there was a boy who loved the sea.",
];

/// Prompts are cut to this many tokens, so that they fit the smallest models with 17 generated ones.
const MAX_TOKENS: usize = 24;

pub(super) fn canary_prompt(text: &dyn TextCodec) -> Vec<u32> {
    encode(text, CANARY)
}

pub(super) fn fingerprint_prompts(text: &dyn TextCodec) -> Vec<Vec<u32>> {
    FINGERPRINT.iter().map(|prompt| encode(text, prompt)).collect()
}

fn encode(text: &dyn TextCodec, prompt: &str) -> Vec<u32> {
    // A tokenizer that cannot encode plain ASCII gives an empty prompt, which the endpoint refuses.
    let mut ids = text.encode(prompt, true).unwrap_or_default();
    ids.truncate(MAX_TOKENS);
    ids
}
