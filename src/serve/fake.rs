//! A deterministic engine and a byte-level tokenizer for tests.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::backend::{Backend, BackendError};
use super::text::TextCodec;
use crate::base::digest::Digest;
use crate::engine::TokenLogprobs;
use crate::record::score::{EngineIdentity, ScoreRequest, ScoreResult};

pub(crate) const BOS: u32 = 256;
pub(crate) const EOS: u32 = 257;
const VOCAB_SIZE: usize = 258;
/// The engine panics on a prompt that starts with these bytes.
pub(crate) const PANIC_PROMPT: &str = "\u{1}panic";

/// Logits are hashes of the context, so every prefix has its own distribution.
#[derive(Debug)]
pub(crate) struct FakeEngine {
    pub seed: u64,
    pub max_len: usize,
    /// Time every call takes.
    pub delay: Duration,
    pub calls: AtomicUsize,
}

impl Default for FakeEngine {
    fn default() -> Self {
        Self { seed: 1, max_len: 64, delay: Duration::ZERO, calls: AtomicUsize::new(0) }
    }
}

fn mix(mut x: u64) -> u64 {
    // SplitMix64's finalizer.
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl FakeEngine {
    /// ln p of every token after `context`.
    fn logprobs(&self, context: &[u32]) -> Vec<f32> {
        let state = context.iter().fold(self.seed, |h, t| mix(h ^ u64::from(*t).wrapping_add(0x9e37_79b9)));
        let logits: Vec<f64> =
            (0..VOCAB_SIZE as u64).map(|j| (mix(state ^ mix(j + 1)) % 100_000) as f64 / 10_000.0).collect();
        let max = logits.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = logits.iter().map(|l| (l - max).exp()).sum();
        logits.iter().map(|l| (l - max - sum.ln()) as f32).collect()
    }

    fn entry(logprobs: &[f32], token: u32, top_n: usize) -> TokenLogprobs {
        let mut ranked: Vec<(u32, f32)> = logprobs.iter().enumerate().map(|(i, l)| (i as u32, *l)).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        ranked.truncate(top_n);
        TokenLogprobs { token, logprob: logprobs[token as usize], top: ranked }
    }

    /// What the engine's own scoring gives: the reference for scores over HTTP.
    pub(crate) fn score(&self, request: &ScoreRequest) -> ScoreResult {
        let mut result = ScoreResult { token_logprobs: Vec::new(), token_is_greedy: Vec::new() };
        for at in request.context_len..request.tokens.len() {
            let logprobs = self.logprobs(&request.tokens[..at]);
            let logprob = logprobs[request.tokens[at] as usize];
            result.token_logprobs.push(logprob);
            result.token_is_greedy.push(logprobs.iter().all(|l| *l <= logprob));
        }
        result
    }

    fn call(&self, tokens: &[u32]) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(self.delay);
        let marker: Vec<u32> = PANIC_PROMPT.bytes().map(u32::from).collect();
        assert!(!tokens.windows(marker.len()).any(|w| w == marker), "asked to panic");
    }
}

impl Backend for FakeEngine {
    fn prompt_logprobs(
        &self,
        tokens: &[u32],
        top_n: usize,
    ) -> Result<Vec<Option<TokenLogprobs>>, BackendError> {
        self.call(tokens);
        let entry = |i: usize| Self::entry(&self.logprobs(&tokens[..i]), tokens[i], top_n);
        Ok((0..tokens.len()).map(|i| (i > 0).then(|| entry(i))).collect())
    }

    fn generate_greedy(
        &self,
        prompt: &[u32],
        max_tokens: usize,
        stop_ids: &[u32],
        top_n: usize,
    ) -> Result<Vec<TokenLogprobs>, BackendError> {
        self.call(prompt);
        let mut context = prompt.to_vec();
        let mut generated = Vec::new();
        while generated.len() < max_tokens {
            let logprobs = self.logprobs(&context);
            let next = Self::entry(&logprobs, 0, 1).top[0].0;
            generated.push(Self::entry(&logprobs, next, top_n));
            context.push(next);
            if stop_ids.contains(&next) {
                break;
            }
        }
        Ok(generated)
    }

    fn identity(&self) -> EngineIdentity {
        EngineIdentity {
            engine: "fake 1".to_owned(),
            device: "cpu".to_owned(),
            kernel_path: "fake".to_owned(),
            checkpoint_digest: Some(Digest::of(&self.seed.to_le_bytes())),
            identity_proven: true,
            tokenizer_digest: Some(Digest::of(b"bytes")),
        }
    }

    fn max_len(&self) -> usize {
        self.max_len
    }

    fn vocab_size(&self) -> usize {
        VOCAB_SIZE
    }
}

/// Ids 0–255 are bytes; BOS and EOS follow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ByteCodec;

impl TextCodec for ByteCodec {
    fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, String> {
        Ok(add_special.then_some(BOS).into_iter().chain(text.bytes().map(u32::from)).collect())
    }

    fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::new();
        for id in ids {
            match *id {
                BOS => bytes.extend_from_slice(b"<s>"),
                EOS => bytes.extend_from_slice(b"</s>"),
                id => bytes.push(id as u8),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn token_text(&self, id: u32) -> String {
        self.decode(&[id])
    }

    fn vocab_size(&self) -> usize {
        VOCAB_SIZE
    }

    fn eos_ids(&self) -> Vec<u32> {
        vec![EOS]
    }

    fn bos_token(&self) -> Option<String> {
        Some("<s>".to_owned())
    }

    fn eos_token(&self) -> Option<String> {
        Some("</s>".to_owned())
    }

    fn chat_template(&self) -> Option<String> {
        None
    }
}
