//! What became of a unit over all its attempts: where it ran, what failed, what was tried again.

use serde::{Deserialize, Serialize};

use super::lease::Owner;
use super::unit::Flow;
use crate::record::Failure;

/// Every attempt at one unit, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnitHistory {
    /// Name of the unit.
    pub unit: String,
    /// Attempts, the last one last. Empty where the result came from an earlier run.
    pub attempts: Vec<Attempt>,
    /// Whether it is done, and what followed.
    pub done: Option<Flow>,
    /// Whether the result came from an earlier run.
    pub reused: bool,
    /// Duration of the attempt that succeeded, in seconds.
    pub elapsed_s: f64,
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// The process.
    pub owner: Owner,
    /// Whether it gave a result.
    pub done: bool,
    /// Why it gave none; `None` too where it goes on or was never heard of again.
    pub failure: Option<Failure>,
    /// When it failed, ISO 8601 UTC; empty otherwise.
    #[serde(default)]
    pub failed_at: String,
}

impl Attempt {
    fn is_open(&self) -> bool {
        !self.done && self.failure.is_none()
    }
}

impl UnitHistory {
    pub(super) fn new(unit: &str) -> Self {
        Self { unit: unit.to_owned(), attempts: Vec::new(), done: None, reused: false, elapsed_s: 0.0 }
    }

    /// A claim: a new attempt, unless it renews the lease of the one that goes on.
    pub(super) fn claimed(&mut self, owner: &Owner) {
        if !self.attempts.last().is_some_and(|a| a.owner == *owner && a.is_open()) {
            let owner = owner.clone();
            self.attempts.push(Attempt { owner, done: false, failure: None, failed_at: String::new() });
        }
    }

    pub(super) fn failed(&mut self, failure: Failure, at: String) {
        if let Some(attempt) = self.attempts.last_mut().filter(|a| a.is_open()) {
            attempt.failure = Some(failure);
            attempt.failed_at = at;
        }
    }

    pub(super) fn done(&mut self, flow: Flow, elapsed_s: f64, reused: bool) {
        match self.attempts.last_mut().filter(|a| a.is_open()) {
            // The claim of a unit whose result was found elsewhere is no attempt.
            Some(_) if reused => _ = self.attempts.pop(),
            Some(attempt) => attempt.done = true,
            None => {}
        }
        self.done = Some(flow);
        self.reused = reused;
        self.elapsed_s = elapsed_s;
    }

    /// The process that did the work; `None` where it was not done in this run.
    pub fn done_by(&self) -> Option<&Owner> {
        Some(&self.attempts.iter().rev().find(|a| a.done)?.owner)
    }

    /// Attempts without a result that were followed by another.
    pub fn lost(&self) -> impl Iterator<Item = &Attempt> {
        let before_last = self.attempts.len().saturating_sub(1);
        self.attempts[..before_last].iter().filter(|a| !a.done)
    }
}
