//! The built-in engine as a [`Scorer`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::scorer::{OnDone, Scorer};
use crate::engine::Engine;
use crate::record::eval::ItemError;
use crate::record::failure::chain;
use crate::record::score::{EngineIdentity, ScoreRequest, ScoreResult};
use crate::record::{Classified, FailureClass};

/// Scores in this process.
pub struct LocalScorer {
    engine: Arc<Engine>,
    /// Requests that are scored together.
    at_once: usize,
}

impl LocalScorer {
    /// A scorer on this engine.
    pub fn new(engine: Arc<Engine>) -> Self {
        Self { engine, at_once: usize::MAX }
    }

    /// The same engine, one request at a time.
    #[must_use]
    pub fn one_by_one(&self) -> Self {
        Self { engine: Arc::clone(&self.engine), at_once: 1 }
    }
}

impl Scorer for LocalScorer {
    fn identity(&self) -> EngineIdentity {
        self.engine.identity().clone()
    }

    fn max_len(&self) -> usize {
        self.engine.max_len()
    }

    /// A request that the engine does not take fails alone; the others are scored. Where a device fails, requests are as
    /// good as not asked.
    fn score(&self, requests: &[ScoreRequest], progress: OnDone<'_>) -> Vec<Result<ScoreResult, ItemError>> {
        let failed = |transient: bool, message: String| ItemError { status: None, transient, message };
        let checks: Vec<Result<(), ItemError>> =
            requests.iter().map(|r| self.engine.check(r).map_err(|e| failed(false, chain(&e)))).collect();
        let valid: Vec<ScoreRequest> =
            requests.iter().zip(&checks).filter(|(_, check)| check.is_ok()).map(|(r, _)| r.clone()).collect();
        let mut scored = Vec::with_capacity(valid.len());
        for together in valid.chunks(self.at_once) {
            // The engine counts requests done so far; replicas may report out of order.
            let reported = AtomicUsize::new(0);
            let advance =
                |done: usize| progress(done.saturating_sub(reported.fetch_max(done, Ordering::Relaxed)));
            match self.engine.score(together, &advance) {
                Ok(results) => scored.extend(results),
                Err(error) => {
                    let transient = error.failure_class() == FailureClass::InfraTransient;
                    return vec![Err(failed(transient, chain(&error))); requests.len()];
                }
            }
        }
        let mut scored = scored.into_iter();
        let answer = |check: Result<(), ItemError>| {
            check.and_then(|()| {
                scored.next().ok_or_else(|| failed(false, "the engine left the request out".to_owned()))
            })
        };
        checks.into_iter().map(answer).collect()
    }
}
