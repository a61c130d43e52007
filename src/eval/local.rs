//! The built-in engine as a [`Scorer`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::scorer::{OnDone, Scorer};
use crate::base::interrupt;
use crate::engine::Engine;
use crate::record::eval::ItemError;
use crate::record::failure::chain;
use crate::record::score::{EngineIdentity, ScoreRequest, ScoreResult};
use crate::record::{Classified, FailureClass};

/// How long the requests that are scored together take, about: between two parts a signal is noticed, and what a job has
/// scored is saved well within the minute that Slurm may give it.
const PART: Duration = Duration::from_secs(15);

/// Requests that are scored together before it is known how long they take.
const FIRST_PART: usize = 4;

/// How much larger than the last part one may be, however short that was.
const GROWTH: usize = 4;

/// Scores in this process.
pub struct LocalScorer {
    engine: Arc<Engine>,
    /// Requests that are scored together.
    at_once: AtomicUsize,
    /// Most of them.
    most_at_once: usize,
}

impl LocalScorer {
    /// A scorer on this engine.
    pub fn new(engine: Arc<Engine>) -> Self {
        // A GPU takes no time worth cutting, and its bits may depend on what is asked together.
        let first = if engine.decoder().is_some() { FIRST_PART } else { usize::MAX };
        Self { engine, at_once: AtomicUsize::new(first), most_at_once: usize::MAX }
    }

    /// The same engine, one request at a time.
    #[must_use]
    pub fn one_by_one(&self) -> Self {
        Self { engine: Arc::clone(&self.engine), at_once: AtomicUsize::new(1), most_at_once: 1 }
    }

    /// Takes the next part's size from how long one of `count` requests took; the rest of a call says nothing of that.
    fn took(&self, count: usize, elapsed: Duration) {
        let at_once = self.at_once.load(Ordering::Relaxed);
        if count < at_once || at_once == usize::MAX {
            return;
        }
        let fitting = count as f64 * PART.as_secs_f64() / elapsed.as_secs_f64().max(1e-6);
        let next = (fitting as usize).clamp(1, count.saturating_mul(GROWTH)).min(self.most_at_once);
        self.at_once.store(next, Ordering::Relaxed);
    }

    /// Scores requests that were checked, in parts; the second value is why there are fewer results than requests.
    fn score_parts(
        &self,
        requests: &[ScoreRequest],
        progress: OnDone<'_>,
    ) -> (Vec<ScoreResult>, Option<ItemError>) {
        let stopped = |message: String, transient| ItemError { status: None, transient, message };
        let mut scored = Vec::with_capacity(requests.len());
        while scored.len() < requests.len() {
            if let Some(signal) = interrupt::received() {
                return (scored, Some(stopped(format!("interrupted by signal {signal}"), true)));
            }
            let left = &requests[scored.len()..];
            let part = &left[..self.at_once.load(Ordering::Relaxed).min(left.len())];
            // The engine counts requests done so far; replicas may report out of order.
            let reported = AtomicUsize::new(0);
            let advance =
                |done: usize| progress(done.saturating_sub(reported.fetch_max(done, Ordering::Relaxed)));
            let start = Instant::now();
            match self.engine.score(part, &advance) {
                Ok(results) => scored.extend(results),
                Err(error) => {
                    let transient = error.failure_class() == FailureClass::InfraTransient;
                    return (scored, Some(stopped(chain(&error), transient)));
                }
            }
            self.took(part.len(), start.elapsed());
        }
        (scored, None)
    }
}

impl Scorer for LocalScorer {
    fn identity(&self) -> EngineIdentity {
        self.engine.identity().clone()
    }

    fn max_len(&self) -> usize {
        self.engine.max_len()
    }

    /// A request that the engine does not take fails alone; the others are scored. Where a device fails or a signal comes, the
    /// rest is as good as not asked.
    fn score(&self, requests: &[ScoreRequest], progress: OnDone<'_>) -> Vec<Result<ScoreResult, ItemError>> {
        let failed = |message: String| ItemError { status: None, transient: false, message };
        let checks: Vec<Result<(), ItemError>> =
            requests.iter().map(|r| self.engine.check(r).map_err(|e| failed(chain(&e)))).collect();
        let valid: Vec<ScoreRequest> =
            requests.iter().zip(&checks).filter(|(_, check)| check.is_ok()).map(|(r, _)| r.clone()).collect();
        let (scored, stopped) = self.score_parts(&valid, progress);
        let why = stopped.unwrap_or_else(|| failed("the engine left the request out".to_owned()));
        let mut scored = scored.into_iter();
        let answer =
            |check: Result<(), ItemError>| check.and_then(|()| scored.next().ok_or_else(|| why.clone()));
        checks.into_iter().map(answer).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tests::fixture::{Model, checkpoint, options, two_hundred};

    /// Parts grow where they are short and shrink where they are long; their size changes no result.
    #[test]
    fn parts_take_as_long_as_a_signal_may_wait() {
        let (_dir, checkpoint) = checkpoint(Model { tied: true, quantized: None, wide: false }, 1);
        let engine = Arc::new(Engine::load(&checkpoint, &options(2, 64)).unwrap());
        let scorer = LocalScorer::new(Arc::clone(&engine));
        let requests = two_hundred();
        let expected = engine.score(&requests, &|_| ()).unwrap();
        let next = |count: usize, seconds: f64| {
            scorer.at_once.store(count, Ordering::Relaxed);
            scorer.took(count, Duration::from_secs_f64(seconds));
            scorer.at_once.load(Ordering::Relaxed)
        };
        for (count, seconds, size) in
            [(64, 0.0, 256), (64, 15.0, 64), (64, 150.0, 6), (1, 100.0, 1), (3, 0.1, 12)]
        {
            assert_eq!(next(count, seconds), size, "{count} requests in {seconds} s");
        }
        scorer.took(11, Duration::from_secs(60));
        assert_eq!(scorer.at_once.load(Ordering::Relaxed), 12, "the rest of a call");
        let done = AtomicUsize::new(0);
        let scored = scorer.score(&requests, &|n| {
            done.fetch_add(n, Ordering::Relaxed);
        });
        assert_eq!(scored.into_iter().collect::<Result<Vec<_>, _>>().unwrap(), expected);
        assert_eq!(done.load(Ordering::Relaxed), requests.len());
        let one = scorer.one_by_one();
        one.took(1, Duration::ZERO);
        assert_eq!(one.at_once.load(Ordering::Relaxed), 1);
    }
}
