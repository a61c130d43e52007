//! How an engine came up, what it claims to be, and whether it can be trusted with log-probs.

use serde::{Deserialize, Serialize};

use super::provenance::Provenance;
use super::score::EngineIdentity;
use crate::base::digest::Digest;

/// Result of serving one arm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServeRecord {
    /// Schema of this record.
    pub schema_version: u32,
    /// `baseline` or `candidate`.
    pub arm: String,
    /// Address of the endpoint.
    pub url: String,
    /// Whether day0 started the engine itself.
    pub launched: bool,
    /// Start attempts made (a failed start is tried once more).
    pub attempts: u32,
    /// Status of `/health`, or the error.
    pub health: ProbeResult,
    /// Digest of the checkpoint this arm must serve; `None` where nobody says which.
    pub expected_digest: Option<Digest>,
    /// What the engine says it is.
    pub identity: Option<EngineIdentity>,
    /// Mechanical canary: 16 greedy tokens, twice.
    pub canary: Option<Canary>,
    /// Log-prob self-test.
    pub self_test: Option<SelfTest>,
    /// What eight fixed prompts score; `None` when an earlier check failed.
    pub fingerprint: Option<Fingerprint>,
    /// Whether the engine was still healthy, with the same identity, after the last request.
    pub stayed_up: Option<ProbeResult>,
    /// How fast it answered a short load, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<ServeSpeed>,
    /// What the engine says of itself that contradicts what it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contradiction: Option<String>,
    /// The process of an engine that was started from a command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<EngineProcess>,
    /// Last lines of the engine's log, or of the client's errors.
    pub log_excerpt: String,
    /// Command that reproduces the start.
    pub command: String,
    /// Origin.
    pub provenance: Provenance,
}

/// How fast an arm is over HTTP. One short measurement each: enough to see a factor, not a few percent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServeSpeed {
    /// Prompt tokens scored a second, 16 prompts of up to 128 tokens in a request.
    pub scored_tokens_per_s: f64,
    /// Tokens generated a second for two clients at once.
    pub generated_tokens_per_s: f64,
    /// Median time to the first token in milliseconds.
    pub ttft_ms_p50: f64,
    /// Median time for each further token in milliseconds.
    pub tpot_ms_p50: f64,
}

/// A process that serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineProcess {
    /// Node or host.
    pub host: String,
    /// Process id there; also the id of its process group.
    pub pid: u32,
    /// How often it was started again after it had been up.
    pub restarts: u32,
    /// Name of its log below `serve/`.
    pub log: String,
}

/// Result of one probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeResult {
    /// Whether it succeeded.
    pub ok: bool,
    /// HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// What was seen.
    pub detail: String,
}

/// Greedy generation, done twice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Canary {
    /// Text of the first generation.
    pub text: String,
    /// Number of generated tokens.
    pub tokens: usize,
    /// Whether every generated token had a finite log-prob.
    pub finite: bool,
    /// Whether the second generation was the same.
    pub repeatable: bool,
}

/// Checks of echoed prompt log-probs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfTest {
    /// Entries = prompt tokens (+ generated).
    pub entry_count_ok: bool,
    /// The first entry is null.
    pub first_is_null: bool,
    /// All other entries are finite, not clamped and not all zero.
    pub rest_finite: bool,
    /// The greedy token of the canary is the top token of the echoed log-probs.
    pub greedy_consistent: bool,
    /// HTTP status when the test was refused, e.g. 401.
    pub refused_status: Option<u16>,
    /// What failed, in words.
    pub detail: String,
}

/// Scores of fixed prompts: a model that is swapped behind the same address changes them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Before the first request.
    pub start: FingerprintReading,
    /// After the last request.
    pub end: Option<FingerprintReading>,
    /// Whether the server repeats the token ids it was sent; `None` when it returns none.
    pub token_ids_echoed: Option<bool>,
}

/// One reading of the fixed prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FingerprintReading {
    /// Digest over the log-likelihoods rounded to 0.1 nat.
    pub digest: Digest,
    /// Log-likelihood of each prompt in nats, in order.
    pub loglikelihoods: Vec<f64>,
}

/// What an endpoint said of itself, and what it scored on the fixed prompts, at one moment of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Confirmation {
    /// Engine and its version.
    pub engine: String,
    /// Digest of its tokenizer, where it tells one.
    pub tokenizer_digest: Option<Digest>,
    /// Whether it repeated the token ids it was sent; `None` when it returns none.
    pub token_ids_echoed: Option<bool>,
    /// Scores of the fixed prompts.
    pub reading: FingerprintReading,
}

impl FingerprintReading {
    /// Engines that are not batch-invariant move a prompt's log-likelihood by less than this many nats.
    pub const TOLERANCE_NATS: f64 = 0.1;

    /// Whether both readings can come from the same model.
    pub fn agrees_with(&self, other: &Self) -> bool {
        self.distance(other) <= Self::TOLERANCE_NATS
    }

    /// Largest difference of a prompt in nats; infinite where the prompts are others.
    pub fn distance(&self, other: &Self) -> f64 {
        if self.loglikelihoods.len() != other.loglikelihoods.len() {
            return f64::INFINITY;
        }
        // A difference that is no number is not small.
        let distance = |(a, b): (&f64, &f64)| Some((a - b).abs()).filter(|d| d.is_finite());
        let pairs = self.loglikelihoods.iter().zip(&other.loglikelihoods);
        pairs.map(|pair| distance(pair).unwrap_or(f64::INFINITY)).fold(0.0, f64::max)
    }
}

impl SelfTest {
    /// Whether all parts passed.
    pub fn pass(&self) -> bool {
        self.entry_count_ok && self.first_is_null && self.rest_finite && self.greedy_consistent
    }
}
