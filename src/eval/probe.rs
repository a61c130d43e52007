//! Whether an endpoint can be trusted with log-probs, found out before a single item is scored.
//!
//! Health, identity, a mechanical canary (16 greedy tokens, twice; it never judges quality), the log-prob self-test,
//! and the scores of eight fixed prompts, taken again at the end: a model swapped behind the same address changes them.

mod checks;
mod fixed;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::{Duration, Instant};

use crate::base::digest::Digest;
use crate::base::interrupt;
use crate::eval::endpoint::{EndpointClient, EndpointOptions};
use crate::record::failure::chain;
use crate::record::serve::{Fingerprint, ProbeResult, SelfTest, ServeRecord};
use crate::record::{Classified, FailureClass, Provenance, SCHEMA_VERSION};
use crate::serve::TextCodec;

/// Between two looks at an engine that is still starting.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Token ids of the fixed prompts whose scores tell one model from another.
pub fn fingerprint_prompts(text: &dyn TextCodec) -> Vec<Vec<u32>> {
    fixed::fingerprint_prompts(text)
}

/// What to probe.
pub struct ProbeTarget<'a> {
    /// `baseline`, `candidate`, or free text for a single evaluation.
    pub arm: &'a str,
    /// How to reach it.
    pub options: &'a EndpointOptions,
    /// Whether day0 started the engine itself: then the checkpoint it was given is proven.
    pub launched: bool,
    /// Directory that an engine started from a command was given.
    pub directory: Option<&'a Path>,
    /// Start attempts made so far, this one included.
    pub attempts: u32,
    /// Command that reproduces the start; empty for endpoints the user named.
    pub command: String,
    /// How long the engine may take to become healthy.
    pub startup_timeout: Duration,
    /// Digest of the checkpoint this arm must serve; `None` where nobody says which.
    pub expected_digest: Option<&'a Digest>,
    /// Its tokenizer.
    pub text: &'a dyn TextCodec,
    /// Digest of that tokenizer.
    pub tokenizer_digest: Option<&'a Digest>,
    /// Origin of the record.
    pub provenance: &'a Provenance,
}

/// Probes an endpoint. Everything that fails is in the record; the serve gate judges it.
pub fn probe(target: &ProbeTarget<'_>) -> ServeRecord {
    let mut record = empty_record(target);
    let client = match EndpointClient::new(target.options) {
        Ok(client) => client,
        Err(e) => {
            record.health.detail = chain(&e);
            return record;
        }
    };
    client.root().clone_into(&mut record.url);
    record.health = wait_until_healthy(&client, target.startup_timeout);
    if record.health.ok {
        examine(target, &client, &mut record);
    }
    record
}

/// Looks again after the last request: healthy, the same identity, the same fingerprint.
pub fn still_up(target: &ProbeTarget<'_>, record: &mut ServeRecord) {
    record.stayed_up = Some(look_again(target, record).unwrap_or_else(|problem| problem));
}

/// Health at the end; an engine that answers (status 200) but is another one is a problem too.
fn look_again(target: &ProbeTarget<'_>, record: &mut ServeRecord) -> Result<ProbeResult, ProbeResult> {
    let changed = |detail: &str| ProbeResult { ok: false, status: Some(200), detail: detail.to_owned() };
    let client = EndpointClient::new(target.options).map_err(|e| down(None, chain(&e)))?;
    let health = wait_until_healthy(&client, Duration::ZERO);
    if !health.ok {
        return Err(health);
    }
    let model = client.served_model().map_err(|e| down(e.status(), chain(&e)))?;
    if record.identity.as_ref().is_some_and(|before| *before != checks::identity(target, &model)) {
        return Err(changed("the engine's identity changed during the run"));
    }
    if let Some(fingerprint) = &mut record.fingerprint {
        let end = checks::fingerprint(target, &client, &model).map_err(|e| down(e.status, e.message))?.0;
        let agrees = fingerprint.start.agrees_with(&end);
        fingerprint.end = Some(end);
        if !agrees {
            return Err(changed("fixed prompts score differently than at the start"));
        }
    }
    Ok(health)
}

/// An endpoint that must not be scored with.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It is not healthy.
    #[error("{url} is not healthy: {detail}")]
    Unhealthy {
        /// Address.
        url: String,
        /// What was seen.
        detail: String,
    },
    /// It refuses to answer.
    #[error("{url} refuses to answer with status {status}")]
    Refused {
        /// Address.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// Its log-probs fail the self-test, or greedy generation does not work.
    #[error("{url} fails the log-prob self-test: {detail}")]
    SelfTest {
        /// Address.
        url: String,
        /// What failed.
        detail: String,
    },
}

impl Classified for ProbeError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Unhealthy { .. } => FailureClass::DeploymentHealthFailed,
            Self::Refused { .. } | Self::SelfTest { .. } => FailureClass::EvalJudgeFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Unhealthy { url, .. } => Some(format!("check that the server is up: curl {url}/health")),
            Self::Refused { .. } => Some("give the API key, or raise the server's rate limit".to_owned()),
            Self::SelfTest { .. } => Some(
                "log-likelihoods need a server that returns the log-probs of echoed prompts: day0, vLLM or SGLang"
                    .to_owned(),
            ),
        }
    }
}

/// Refuses an endpoint that failed the probe.
pub fn require_usable(record: &ServeRecord) -> Result<(), ProbeError> {
    let url = record.url.clone();
    if let Some(status) = record.self_test.as_ref().and_then(|t| t.refused_status) {
        return Err(ProbeError::Refused { url, status });
    }
    if !record.health.ok {
        return Err(ProbeError::Unhealthy { url, detail: record.health.detail.clone() });
    }
    match (&record.self_test, &record.canary) {
        (Some(test), _) if !test.pass() => Err(ProbeError::SelfTest { url, detail: test.detail.clone() }),
        (Some(_), Some(canary)) if canary.tokens > 0 && canary.finite && canary.repeatable => Ok(()),
        (Some(_), Some(_)) => {
            let detail = "greedy generation is empty, not finite or not repeatable".to_owned();
            Err(ProbeError::SelfTest { url, detail })
        }
        _ => Err(ProbeError::SelfTest { url, detail: record.log_excerpt.clone() }),
    }
}

/// Waits until the endpoint is healthy, refuses, or the time is over.
pub fn wait(options: &EndpointOptions, timeout: Duration) -> ProbeResult {
    EndpointClient::new(options)
        .map_or_else(|e| down(None, chain(&e)), |client| wait_until_healthy(&client, timeout))
}

fn empty_record(target: &ProbeTarget<'_>) -> ServeRecord {
    ServeRecord {
        schema_version: SCHEMA_VERSION,
        arm: target.arm.to_owned(),
        url: target.options.url.clone(),
        launched: target.launched,
        attempts: target.attempts,
        health: down(None, "not asked".to_owned()),
        expected_digest: target.expected_digest.cloned(),
        identity: None,
        canary: None,
        self_test: None,
        fingerprint: None,
        stayed_up: None,
        speed: None,
        contradiction: None,
        process: None,
        log_excerpt: String::new(),
        command: target.command.clone(),
        provenance: target.provenance.clone(),
    }
}

fn down(status: Option<u16>, detail: String) -> ProbeResult {
    ProbeResult { ok: false, status, detail }
}

/// Asks until the engine is healthy, refuses, or the time is over.
fn wait_until_healthy(client: &EndpointClient, timeout: Duration) -> ProbeResult {
    let start = Instant::now();
    let mut waited = false;
    loop {
        let error = match client.health() {
            Ok(path) => {
                // An engine that is up leaves no time in the record: the record of the next run is the same.
                let seconds = start.elapsed().as_secs_f64();
                let detail = if waited {
                    format!("{path} answers after {seconds:.1} s")
                } else {
                    format!("{path} answers")
                };
                return ProbeResult { ok: true, status: Some(200), detail };
            }
            Err(error) => error,
        };
        // An engine that is starting refuses connections or answers 5xx; anything else will not change.
        let stop = start.elapsed() >= timeout || client.is_gone() || interrupt::received().is_some();
        if !error.retryable || stop {
            let detail = format!("{} after {:.1} s", error.message, start.elapsed().as_secs_f64());
            return down(error.status, detail);
        }
        waited = true;
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Identity, canary, self-test and fingerprint of a healthy endpoint.
fn examine(target: &ProbeTarget<'_>, client: &EndpointClient, record: &mut ServeRecord) {
    let model = match client.served_model() {
        Ok(model) => model,
        Err(e) => return give_up(record, refused(e.status()), chain(&e)),
    };
    record.identity = Some(checks::identity(target, &model));
    record.contradiction = checks::contradiction(target, &model);
    if let (Some(theirs), Some(ours)) = (&model.tokenizer_digest, target.tokenizer_digest)
        && theirs != ours
    {
        let detail = format!("the endpoint's tokenizer is {}, expected {}", theirs.short(12), ours.short(12));
        return give_up(record, None, detail);
    }
    let prompt = fixed::canary_prompt(target.text);
    let canary = match checks::canary(client, &model, &prompt) {
        Ok(canary) => canary,
        Err(e) => return give_up(record, refused(e.status), format!("canary: {}", e.message)),
    };
    record.canary = Some(canary.record);
    match checks::self_test(client, &model, target.text, &prompt, canary.first.as_ref()) {
        Ok(test) => record.self_test = Some(test),
        Err(e) => return give_up(record, refused(e.status), format!("self-test: {}", e.message)),
    }
    let passed = record.self_test.as_ref().is_some_and(SelfTest::pass);
    if passed {
        match checks::fingerprint(target, client, &model) {
            Ok((start, token_ids_echoed)) => {
                record.fingerprint = Some(Fingerprint { start, end: None, token_ids_echoed });
            }
            Err(e) => give_up(record, refused(e.status), format!("fingerprint: {}", e.message)),
        }
    }
}

/// Records a self-test that could not be completed.
fn give_up(record: &mut ServeRecord, refused_status: Option<u16>, detail: String) {
    record.log_excerpt.clone_from(&detail);
    record.self_test = Some(SelfTest {
        entry_count_ok: false,
        first_is_null: false,
        rest_finite: false,
        greedy_consistent: false,
        refused_status,
        detail,
    });
}

/// A status that refuses this client.
fn refused(status: Option<u16>) -> Option<u16> {
    status.filter(|s| matches!(s, 401 | 403 | 429))
}
