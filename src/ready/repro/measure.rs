//! One unit a family and seed, in the ledger that everything else uses: a measurement that was killed goes on with the
//! seeds that are missing.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::family::Family;
use crate::base::digest::Digest;
use crate::exec::{FnUnit, Graph, KeyBuilder, Node, Output, RunSummary};
use crate::record::repro::{FamilyRuns, SeedRun, SeedRuns};
use crate::record::{Failure, FailureClass, Provenance, SCHEMA_VERSION};

/// Runs one seed of a family.
pub trait Runner: Send + Sync {
    /// Everything that decides the outcome, but seed and steps.
    fn identity(&self) -> Result<String, Failure>;

    /// Runs. What goes wrong with the run itself is its `error`; an error here is one of day0 or of its input.
    fn run(&self, seed: u64, steps: u64) -> Result<SeedRun, Failure>;
}

/// A family with what runs it.
pub struct NamedRunner {
    /// The family.
    pub family: Family,
    /// What runs it.
    pub runner: Box<dyn Runner>,
    /// [`Runner::identity`].
    pub identity: String,
}

impl NamedRunner {
    /// A family with its runner.
    pub fn new(family: Family, runner: Box<dyn Runner>) -> Result<Self, Failure> {
        let identity = runner.identity()?;
        Ok(Self { family, runner, identity })
    }
}

/// A measurement.
pub struct Measure {
    /// Families.
    pub runners: Vec<NamedRunner>,
    /// Seeds; one that stands twice is run twice.
    pub seeds: Vec<u64>,
    /// Steps of each run.
    pub steps: u64,
    /// Device as asked for.
    pub device: String,
    /// Digest of this program.
    pub build: Digest,
    /// Origin of the record.
    pub provenance: Provenance,
}

/// Name of the unit that runs the seed at this place of the list.
pub fn node_name(family: &str, seed: u64, index: usize) -> String {
    format!("repro/{family}/seed-{seed}#{index}")
}

impl Measure {
    /// All runs as a graph.
    pub fn graph(&self) -> Graph<'_> {
        let mut graph = Graph::default();
        for named in &self.runners {
            for index in 0..self.seeds.len() {
                graph.add(self.node(named, index, Vec::new()));
            }
        }
        graph
    }

    /// The node of one run.
    pub fn node<'a>(&'a self, named: &'a NamedRunner, index: usize, after: Vec<String>) -> Node<'a> {
        let seed = self.seeds[index];
        let key = KeyBuilder::new("repro/1")
            .part("build", &self.build)
            .part("family", &named.family.family)
            .part("identity", &named.identity)
            .part("device", &self.device)
            .part("steps", self.steps)
            .part("seed", seed)
            .part("index", index)
            .finish();
        let unit = FnUnit::new(key, move |_| Output::of(&named.runner.run(seed, self.steps)?))
            // A run that failed is work to do again.
            .verified_by(|value: &Value| SeedRun::deserialize(value).is_ok_and(|run| !run.broke_off()));
        let name = node_name(&named.family.family, seed, index);
        Node { name, stage: "ready", after, always: false, shared: false, cost: 0, unit: Box::new(unit) }
    }

    /// The record from what the runs left.
    pub fn record(&self, summary: &RunSummary) -> Result<SeedRuns, Failure> {
        let mut families = Vec::new();
        for named in &self.runners {
            let family = &named.family;
            let runs = self.seeds.iter().enumerate().map(|(index, seed)| {
                let name = node_name(&family.family, *seed, index);
                summary
                    .output::<SeedRun>(&name)
                    .ok_or_else(|| Failure::new(FailureClass::Unknown, format!("{name} left no result")))
            });
            families.push(FamilyRuns {
                family: family.family.clone(),
                step: family.step.clone(),
                steps: self.steps,
                criteria: family.criteria.clone(),
                runs: runs.collect::<Result<_, _>>()?,
            });
        }
        Ok(SeedRuns {
            schema_version: SCHEMA_VERSION,
            device: self.device.clone(),
            families,
            provenance: self.provenance.clone(),
        })
    }
}

/// A run in which nothing was measured yet.
pub(super) fn empty_run(seed: u64) -> SeedRun {
    SeedRun {
        seed,
        steps_done: 0,
        steps_available: None,
        error: String::new(),
        setup_s: 0.0,
        steps_s: 0.0,
        curves: BTreeMap::new(),
        finals: BTreeMap::new(),
        non_finite: BTreeMap::new(),
        digest: None,
        repeat_digest: None,
        repeat_values: BTreeMap::new(),
        prompts_digest: None,
        notes: Vec::new(),
    }
}

/// The value if it is finite; counts it under `name` otherwise.
pub(super) fn finite(run: &mut SeedRun, name: &str, value: f64) -> Option<f64> {
    if value.is_finite() {
        return Some(value);
    }
    *run.non_finite.entry(name.to_owned()).or_default() += 1;
    None
}
