//! [`Scorer`] over an endpoint: batches, several at once, each item with its own outcome.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::client::{EndpointClient, ServedModel};
use super::{CallError, EndpointError, EndpointOptions};
use crate::base::digest::Digest;
use crate::base::interrupt;
use crate::eval::{OnDone, Scorer};
use crate::record::eval::ItemError;
use crate::record::failure::chain;
use crate::record::score::{EngineIdentity, ScoreRequest, ScoreResult};
use crate::record::serve::{Confirmation, Fingerprint, FingerprintReading};

/// lm-eval's default for servers that do not tell their limit.
const DEFAULT_MAX_MODEL_LEN: usize = 2048;
/// Batches that fail in a row, retries included, before the endpoint counts as down.
const MAX_FAILURES_IN_A_ROW: usize = 3;

type Outcome = Result<ScoreResult, ItemError>;

/// Scores over HTTP.
#[derive(Debug)]
pub struct EndpointScorer {
    client: EndpointClient,
    model: String,
    max_model_len: usize,
    identity: EngineIdentity,
    watch: Option<Watch>,
    batch_size: usize,
    concurrency: usize,
}

/// What an engine that was swapped behind the same address would answer differently.
#[derive(Debug)]
struct Watch {
    /// What the endpoint said of itself at the start.
    served: ServedModel,
    /// Fixed prompts.
    prompts: Vec<Vec<u32>>,
    /// Their log-likelihoods at the start.
    start: FingerprintReading,
    /// Whether it repeated their token ids.
    token_ids_echoed: Option<bool>,
}

impl EndpointScorer {
    /// Asks the endpoint which model it serves. `identity` is what the probe established; `None` takes what the
    /// endpoint declares.
    pub fn connect(
        options: &EndpointOptions,
        identity: Option<EngineIdentity>,
    ) -> Result<Self, EndpointError> {
        let client = EndpointClient::new(options)?;
        let served = client.served_model()?;
        Ok(Self {
            identity: identity.unwrap_or_else(|| served.identity()),
            model: served.id,
            max_model_len: served.max_model_len.unwrap_or(DEFAULT_MAX_MODEL_LEN),
            client,
            watch: None,
            batch_size: options.batch_size.max(1),
            concurrency: options.concurrency.max(1),
        })
    }

    /// Makes [`Scorer::confirm`] compare what the endpoint says of itself and the scores of fixed prompts with those
    /// at the start: `start`, which may have been read by another process, or a reading taken now.
    pub fn watching(
        mut self,
        prompts: Vec<Vec<u32>>,
        start: Option<Fingerprint>,
    ) -> Result<Self, EndpointError> {
        let served = self.client.served_model()?;
        let (start, token_ids_echoed) = match start {
            Some(fingerprint) => (fingerprint.start, fingerprint.token_ids_echoed),
            None => read_fingerprint(&self.client, &self.model, &prompts).map_err(|e| {
                let url = self.client.root().to_owned();
                EndpointError::Unreachable { url, status: e.status, message: e.message }
            })?,
        };
        self.watch = Some(Watch { served, prompts, start, token_ids_echoed });
        Ok(self)
    }

    /// What `served` says of itself that contradicts the identity at the start, which may be older than this scorer.
    fn contradiction(&self, served: &ServedModel) -> Option<String> {
        let (now, then) = (served.identity(), &self.identity);
        let shown = |digest: &Option<Digest>| digest.as_ref().map(|d| d.short(12).to_owned());
        let said = |what, now: Option<String>, then: Option<String>| match (now, then) {
            (Some(now), Some(then)) if now != then => Some(format!("{what} {now}, was {then}")),
            _ => None,
        };
        said("engine", Some(now.engine), Some(then.engine.clone()))
            .or_else(|| said("device", Some(now.device), Some(then.device.clone())))
            .or_else(|| said("kernel path", Some(now.kernel_path), Some(then.kernel_path.clone())))
            .or_else(|| said("checkpoint", shown(&now.checkpoint_digest), shown(&then.checkpoint_digest)))
            .or_else(|| said("tokenizer", shown(&now.tokenizer_digest), shown(&then.tokenizer_digest)))
    }

    /// Scores one batch; a batch that the server refuses as a whole (400, 413, 422) is halved, so that only the
    /// request at fault fails.
    fn score_batch(&self, requests: &[ScoreRequest]) -> Vec<Outcome> {
        match self.client.score(&self.model, requests) {
            Ok(scores) => scores.into_iter().map(|score| score.map_err(ItemError::from)).collect(),
            Err(e) if requests.len() > 1 && matches!(e.status, Some(400 | 413 | 422)) => {
                let (left, right) = requests.split_at(requests.len() / 2);
                [self.score_batch(left), self.score_batch(right)].concat()
            }
            Err(e) => requests.iter().map(|_| Err(ItemError::from(&e))).collect(),
        }
    }
}

/// Why the rest is not worth asking for.
#[derive(Debug, Default)]
struct Breaker {
    failures_in_a_row: AtomicUsize,
    open: Mutex<Option<ItemError>>,
}

impl Breaker {
    fn reason(&self) -> Option<ItemError> {
        if let Some(signal) = interrupt::received() {
            let message = format!("interrupted by signal {signal}");
            return Some(ItemError { status: None, transient: true, message });
        }
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A refusal ends the run at once; a server that fails whole batches again and again is down.
    fn note(&self, outcomes: &[Outcome]) {
        let Some(Err(error)) = outcomes.last().filter(|_| outcomes.iter().all(Result::is_err)) else {
            self.failures_in_a_row.store(0, Ordering::Relaxed);
            return;
        };
        let failures = self.failures_in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
        if matches!(error.status, Some(401 | 403 | 429)) || failures >= MAX_FAILURES_IN_A_ROW {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.get_or_insert_with(|| error.clone());
        }
    }
}

/// Log-likelihoods of `prompts`, asked one by one so that nothing else shares their batch.
pub(crate) fn read_fingerprint(
    client: &EndpointClient,
    model: &str,
    prompts: &[Vec<u32>],
) -> Result<(FingerprintReading, Option<bool>), CallError> {
    let mut loglikelihoods = Vec::new();
    let mut token_ids_echoed = Some(true);
    for tokens in prompts {
        let request = ScoreRequest { tokens: tokens.clone(), context_len: 1 };
        let choice = client.echo(model, &[tokens])?;
        let choice = choice.first().ok_or_else(|| CallError::malformed("no choice in the answer"))?;
        if choice.prompt_token_ids.is_none() {
            token_ids_echoed = None;
        }
        let score = choice.score(&request, 1).map_err(|e| CallError::malformed(e.to_string()))?;
        loglikelihoods.push(score.loglikelihood());
    }
    let rounded: Vec<i64> = loglikelihoods.iter().map(|l| (l * 10.0).round() as i64).collect();
    let bytes: Vec<u8> = rounded.iter().flat_map(|l| l.to_le_bytes()).collect();
    Ok((FingerprintReading { digest: Digest::of(&bytes), loglikelihoods }, token_ids_echoed))
}

impl Scorer for EndpointScorer {
    fn confirm(&self) -> Result<Option<Confirmation>, ItemError> {
        let Some(watch) = &self.watch else { return Ok(None) };
        let changed = |message: String| ItemError { status: Some(200), transient: false, message };
        let served = self.client.served_model().map_err(|e| ItemError {
            status: e.status(),
            transient: true,
            message: chain(&e),
        })?;
        if served != watch.served {
            let (now, then) = (&served.id, &watch.served.id);
            return Err(changed(format!(
                "the endpoint says it is another engine than at the start ({now}, was {then})"
            )));
        }
        if let Some(other) = self.contradiction(&served) {
            return Err(changed(format!(
                "the endpoint says it is another engine than at the start ({other})"
            )));
        }
        let (reading, token_ids_echoed) =
            read_fingerprint(&self.client, &self.model, &watch.prompts).map_err(|e| ItemError::from(&e))?;
        if !watch.start.agrees_with(&reading) {
            return Err(changed(
                "fixed prompts score differently than at the start: another checkpoint answers".to_owned(),
            ));
        }
        if watch.token_ids_echoed.is_some() && token_ids_echoed != watch.token_ids_echoed {
            return Err(changed("the endpoint no longer repeats the token ids it is sent".to_owned()));
        }
        let EngineIdentity { engine, tokenizer_digest, .. } = self.identity.clone();
        Ok(Some(Confirmation { engine, tokenizer_digest, token_ids_echoed, reading }))
    }

    fn identity(&self) -> EngineIdentity {
        self.identity.clone()
    }

    fn max_len(&self) -> usize {
        // The prompt and one generated token must fit, and the prompt holds the token that is only predicted.
        self.max_model_len.saturating_sub(2)
    }

    fn score(&self, requests: &[ScoreRequest], progress: OnDone<'_>) -> Vec<Outcome> {
        let batches: Vec<&[ScoreRequest]> = requests.chunks(self.batch_size).collect();
        let done: Vec<OnceLock<Vec<Outcome>>> = batches.iter().map(|_| OnceLock::new()).collect();
        let next = AtomicUsize::new(0);
        let breaker = Breaker::default();
        let work = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let (Some(batch), Some(slot)) = (batches.get(at), done.get(at)) else { return };
                slot.get_or_init(|| {
                    if let Some(reason) = breaker.reason() {
                        return batch.iter().map(|_| Err(reason.clone())).collect();
                    }
                    let outcomes = self.score_batch(batch);
                    breaker.note(&outcomes);
                    outcomes
                });
                progress(batch.len());
            }
        };
        std::thread::scope(|scope| {
            // This thread is one of them.
            for _ in 1..self.concurrency.min(batches.len()) {
                scope.spawn(work);
            }
            work();
        });
        done.into_iter().flat_map(|slot| slot.into_inner().unwrap_or_default()).collect()
    }
}
