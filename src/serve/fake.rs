//! A deterministic engine and a byte-level tokenizer for tests.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::backend::{Backend, BackendError, Generation, OnScored, RequestFailed};
use super::text::TextCodec;
use crate::base::digest::Digest;
use crate::engine::{
    GenerateRequest, Generated, GeneratorLoad, GeneratorOptions, PromptQuery, Sampler, ScoreStats,
    TokenLogprobs,
};
use crate::model::chat_template::ChatMessage;
use crate::record::score::{EngineIdentity, ScoreRequest, ScoreResult};

pub(crate) const BOS: u32 = 256;
pub(crate) const EOS: u32 = 257;
const VOCAB_SIZE: usize = 258;
/// The engine panics on a prompt with these bytes in it.
pub(crate) const PANIC_PROMPT: &str = "\u{1}panic";

/// What follows a prompt with these bytes in it has no finite logits.
pub(crate) const NOT_FINITE_PROMPT: &str = "\u{1}nan";

/// Logits are hashes of the context, so every prefix has its own distribution.
#[derive(Debug)]
pub(crate) struct FakeEngine {
    pub seed: u64,
    pub max_len: usize,
    /// Time every prompt or token takes.
    pub delay: Duration,
    /// Prompts scored and tokens generated.
    pub calls: AtomicUsize,
    /// Most prompts scored in one call.
    pub largest_batch: AtomicUsize,
}

impl Default for FakeEngine {
    fn default() -> Self {
        Self {
            seed: 1,
            max_len: 64,
            delay: Duration::ZERO,
            calls: AtomicUsize::new(0),
            largest_batch: AtomicUsize::new(0),
        }
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
        TokenLogprobs { token, logprob: logprobs[token as usize], top: ranked, rank: None }
    }

    /// The most likely token after `context`.
    pub(crate) fn most_likely(&self, context: &[u32]) -> u32 {
        Self::entry(&self.logprobs(context), 0, 1).top[0].0
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
        assert!(!has(tokens, PANIC_PROMPT), "asked to panic");
    }
}

/// Whether `tokens` hold these bytes.
fn has(tokens: &[u32], bytes: &str) -> bool {
    let bytes: Vec<u32> = bytes.bytes().map(u32::from).collect();
    tokens.windows(bytes.len()).any(|w| w == bytes)
}

impl Backend for FakeEngine {
    fn score_prompts(&self, prompts: &[PromptQuery], done: OnScored<'_>) -> Result<ScoreStats, BackendError> {
        self.largest_batch.fetch_max(prompts.len(), Ordering::Relaxed);
        for (at, prompt) in prompts.iter().enumerate() {
            self.call(&prompt.tokens);
            let tokens = &prompt.tokens;
            let entry = |i: usize| {
                let logprobs = self.logprobs(&tokens[..i]);
                let entry = Self::entry(&logprobs, tokens[i], prompt.top_n);
                let rank = logprobs.iter().filter(|l| **l >= entry.logprob).count();
                TokenLogprobs { rank: prompt.with_ranks.then_some(rank), ..entry }
            };
            done(at, (prompt.first..tokens.len()).map(entry).collect());
        }
        Ok(ScoreStats::default())
    }

    fn generation(&self, _: GeneratorOptions) -> Box<dyn Generation + '_> {
        Box::new(FakeGeneration { engine: self, sequences: Vec::new() })
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

    fn pass_rows(&self) -> usize {
        2048
    }
}

struct FakeGeneration<'a> {
    engine: &'a FakeEngine,
    sequences: Vec<FakeSequence>,
}

struct FakeSequence {
    id: u64,
    choice: usize,
    request: GenerateRequest,
    tokens: Vec<u32>,
    sampler: Sampler,
}

impl Generation for FakeGeneration<'_> {
    fn add(&mut self, id: u64, request: GenerateRequest) -> Result<(), BackendError> {
        for choice in 0..request.n {
            let sampler = Sampler::new(&request.sampling, choice, &request.prompt);
            let tokens = request.prompt.clone();
            self.sequences.push(FakeSequence { id, choice, request: request.clone(), tokens, sampler });
        }
        Ok(())
    }

    fn cancel(&mut self, id: u64, choice: Option<usize>) {
        self.sequences.retain(|s| s.id != id || choice.is_some_and(|c| c != s.choice));
    }

    fn step(&mut self) -> Result<Vec<Generated>, RequestFailed> {
        let is_lost = |s: &FakeSequence| has(&s.request.prompt, NOT_FINITE_PROMPT);
        if let Some(id) = self.sequences.iter().find(|s| is_lost(s)).map(|s| s.id) {
            self.cancel(id, None);
            return Err(RequestFailed { id, message: "no finite logits".to_owned() });
        }
        let mut out = Vec::new();
        for sequence in &mut self.sequences {
            self.engine.call(&sequence.tokens);
            let logprobs = self.engine.logprobs(&sequence.tokens);
            let request = &sequence.request;
            let produced = sequence.tokens.len() - request.prompt.len() + 1;
            let token = sequence.sampler.choose(&logprobs, &[]);
            sequence.sampler.accept(token);
            sequence.tokens.push(token);
            let is_last = produced == request.max_tokens || request.stop_ids.contains(&token);
            let token = FakeEngine::entry(&logprobs, token, request.top_n);
            out.push(Generated { request: sequence.id, choice: sequence.choice, token, is_last });
        }
        let ended =
            |s: &FakeSequence| out.iter().any(|g| g.is_last && (g.request, g.choice) == (s.id, s.choice));
        self.sequences.retain(|s| !ended(s));
        Ok(out)
    }

    fn load(&self) -> GeneratorLoad {
        GeneratorLoad { running: self.sequences.len(), ..GeneratorLoad::default() }
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

    fn render_chat(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Option<Result<String, String>> {
        if messages.iter().any(|m| m.role == "system") {
            return Some(Err("no system role".to_owned()));
        }
        let mut prompt = String::new();
        for ChatMessage { role, content } in messages {
            prompt.extend(["[", role, "]", content]);
        }
        Some(Ok(prompt + if add_generation_prompt { "[assistant]" } else { "" }))
    }
}
