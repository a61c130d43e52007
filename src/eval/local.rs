//! The built-in engine as a [`Scorer`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::scorer::{OnDone, Scorer};
use crate::engine::Engine;
use crate::record::eval::ItemError;
use crate::record::failure::chain;
use crate::record::score::{EngineIdentity, ScoreRequest, ScoreResult};

/// Scores in this process.
pub struct LocalScorer {
    engine: Arc<Engine>,
}

impl LocalScorer {
    /// A scorer on this engine.
    pub fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }
}

impl Scorer for LocalScorer {
    fn identity(&self) -> EngineIdentity {
        self.engine.identity().clone()
    }

    fn max_len(&self) -> usize {
        self.engine.max_len()
    }

    /// A request that the engine does not take fails alone; the others are scored.
    fn score(&self, requests: &[ScoreRequest], progress: OnDone<'_>) -> Vec<Result<ScoreResult, ItemError>> {
        let failed = |message: String| ItemError { status: None, transient: false, message };
        let checks: Vec<Result<(), ItemError>> =
            requests.iter().map(|r| self.engine.check(r).map_err(|e| failed(chain(&e)))).collect();
        let valid: Vec<ScoreRequest> =
            requests.iter().zip(&checks).filter(|(_, check)| check.is_ok()).map(|(r, _)| r.clone()).collect();
        // The engine counts requests done so far.
        let reported = AtomicUsize::new(0);
        let advance = |done: usize| progress(done.saturating_sub(reported.swap(done, Ordering::Relaxed)));
        let mut scored = match self.engine.score(&valid, &advance) {
            Ok(results) => results.into_iter(),
            Err(error) => return requests.iter().map(|_| Err(failed(chain(&error)))).collect(),
        };
        let answer = |check: Result<(), ItemError>| {
            check.and_then(|()| {
                scored.next().ok_or_else(|| failed("the engine left the request out".to_owned()))
            })
        };
        checks.into_iter().map(answer).collect()
    }
}
