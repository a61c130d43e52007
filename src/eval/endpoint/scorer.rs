//! [`Scorer`] over an endpoint: batches, several at once, each item with its own outcome.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::client::EndpointClient;
use super::{EndpointError, EndpointOptions};
use crate::base::interrupt;
use crate::eval::{OnDone, Scorer};
use crate::record::eval::ItemError;
use crate::record::score::{EngineIdentity, ScoreRequest, ScoreResult};

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
    batch_size: usize,
    concurrency: usize,
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
            batch_size: options.batch_size.max(1),
            concurrency: options.concurrency.max(1),
        })
    }

    /// Scores one batch; a batch that the server refuses as a whole (400, 413, 422) is halved, so that only the
    /// request at fault fails.
    fn score_batch(&self, requests: &[ScoreRequest]) -> Vec<Outcome> {
        let prompts: Vec<&[u32]> = requests.iter().map(|r| r.tokens.as_slice()).collect();
        match self.client.echo(&self.model, &prompts) {
            Ok(choices) => choices
                .iter()
                .zip(requests)
                .map(|(choice, request)| choice.score(request).map_err(ItemError::from))
                .collect(),
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

impl Scorer for EndpointScorer {
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
            for _ in 0..self.concurrency.min(batches.len()) {
                scope.spawn(work);
            }
        });
        done.into_iter().flat_map(|slot| slot.into_inner().unwrap_or_default()).collect()
    }
}
