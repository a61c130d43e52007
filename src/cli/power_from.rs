//! Flip rates and speed of a finished comparison, for a plan.

use std::path::Path;

use crate::base::json;
use crate::base::stats::PairedCounts;
use crate::record::release::ReleaseRecord;
use crate::record::{Failure, GateName};
use crate::report;

/// What a finished release measured.
pub(super) struct Measured {
    /// Flip rates of tasks and groups.
    rates: Vec<(String, f64)>,
    /// Items of all tasks that were decided.
    items: usize,
    /// Seconds of both arms together, over all items of all tasks.
    seconds: f64,
}

/// Flips that are added to the lost and to the gained items: a run without any flip still plans with some.
const CAUTIOUS_FLIPS: f64 = 0.5;

impl Measured {
    /// Reads `release.json` of a run directory.
    pub fn read(run: &Path) -> Result<Self, Failure> {
        let record: ReleaseRecord = json::read(&run.join("release.json"))?;
        let compare =
            record.gates.iter().find(|gate| gate.gate == GateName::Compare).ok_or_else(|| {
                Failure::config(format!("{}: the run reached no comparison", run.display()))
            })?;
        let rates = report::evidence(compare)
            .filter_map(|(name, e)| {
                let counts = PairedCounts::new(e.n as u64, e.flips_b?, e.flips_c?)?;
                let flips = (counts.b() + counts.c()) as f64 + 2.0 * CAUTIOUS_FLIPS;
                Some((name.clone(), (flips / e.n as f64).min(1.0)))
            })
            .collect();
        // Parts are counted with their group.
        let items = report::evidence(compare).filter(|(_, e)| e.part_of.is_none()).map(|(_, e)| e.n).sum();
        let scoring = record.stages.iter().filter(|stage| stage.stage.starts_with("eval"));
        Ok(Self { rates, items, seconds: scoring.map(|stage| stage.elapsed_s).sum() })
    }

    /// The measured flip rate of a task; of one that was not measured the largest of all, else 10 %.
    pub fn flip_rate(&self, task: &str) -> f64 {
        let own = self.rates.iter().find(|(name, _)| name == task).map(|(_, rate)| *rate);
        own.unwrap_or_else(|| self.rates.iter().map(|(_, rate)| *rate).reduce(f64::max).unwrap_or(0.10))
    }

    /// Seconds an item of both arms took, over all tasks of the run; `None` where the scores came from a cache.
    pub fn seconds_per_item(&self) -> Option<f64> {
        (self.items > 0 && self.seconds > 0.0).then(|| self.seconds / self.items as f64)
    }
}
