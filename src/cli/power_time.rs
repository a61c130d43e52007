//! How long an item takes on this machine: a few are scored.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::Settings;
use crate::base::env_vars;
use crate::checkpoint::{Checkpoint, source};
use crate::engine::{Engine, EngineOptions};
use crate::eval::local::LocalScorer;
use crate::eval::{self, EvalOptions, ItemRef, Scorer as _};
use crate::model::tokenizer::Tokenizer;
use crate::record::Failure;
use crate::record::eval::ItemOrder;
use crate::release::config::DEFAULT_SEED;
use crate::release::prepare;
use crate::suite::Suite;

/// Items of each task that are timed.
const ITEMS: usize = 16;

/// Seconds an item of each task takes on one arm.
pub(super) struct Timed(BTreeMap<String, (f64, usize)>);

impl Timed {
    /// Scores items of every task of `suite` with `model`.
    pub fn of(model: &str, suite: &Suite, settings: &Settings) -> Result<Self, Failure> {
        let model = source::resolve(model, &env_vars::cache_dir())?;
        let checkpoint = Checkpoint::open(&model.dir)?;
        let tokenizer = Tokenizer::load(&model.dir)?;
        let engine = Engine::load(&checkpoint, &EngineOptions::new(settings.threads.clone()))?;
        let scorer = LocalScorer::new(Arc::new(engine));
        let options = EvalOptions {
            limit: Some(ITEMS),
            order: ItemOrder::Permuted { seed: DEFAULT_SEED },
            ..EvalOptions::new(scorer.max_len())
        };
        let mut seconds = BTreeMap::new();
        for (place, task) in prepare(suite, &tokenizer, &options)?.iter().enumerate() {
            let items: Vec<ItemRef<'_>> = (0..task.items.len()).map(|item| (task, item)).collect();
            if place == 0 {
                // The first call allocates what the others find.
                eval::score_items(&scorer, &items[..items.len().min(1)], &|_| ());
            }
            let start = Instant::now();
            let scored = eval::score_items(&scorer, &items, &|_| ());
            let elapsed = start.elapsed().as_secs_f64();
            let count = scored.iter().filter(|item| item.error.is_none()).count();
            if count > 0 {
                seconds.insert(task.name().to_owned(), (elapsed / count as f64, task.full_split));
            }
        }
        Ok(Self(seconds))
    }

    /// Seconds an item of both arms takes, over `tasks` by their sizes; `None` where one could not be timed.
    pub fn seconds_per_item(&self, tasks: &[String]) -> Option<f64> {
        let of_tasks: Vec<(f64, usize)> =
            tasks.iter().map(|t| self.0.get(t).copied()).collect::<Option<_>>()?;
        let items: usize = of_tasks.iter().map(|(_, n)| n).sum();
        let total: f64 = of_tasks.iter().map(|(seconds, n)| seconds * *n as f64).sum();
        (items > 0).then(|| 2.0 * total / items as f64)
    }
}
