//! Which results of a run stand, so that nothing is left to do for them: what a local resume would not run again.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::exec::{Done, Flow, Graph, Ledger, Node, UnitKey};
use crate::record::Failure;
use crate::release::conductor::Existing;
use crate::release::graph::{Build, Jobs};
use crate::release::ready_units::not_run;

/// The results that stand.
#[derive(Debug, Default)]
pub(super) struct Standing {
    outputs: BTreeMap<String, Value>,
    /// Whether a gate among them ended the chain.
    pub halted: bool,
    /// Whether nothing is left: every unit has a result that stands, or comes after the gate that ended the chain.
    pub is_settled: bool,
}

impl Standing {
    /// Of what the ledger holds of `graph`. A result of which `is_fresh` is true stands unseen; any other where it passes its
    /// unit's check and all results before it stand. Those that a resume decides again only because that costs nothing
    /// pass without one.
    pub fn of(
        graph: &Graph<'_>,
        ledger: &Ledger,
        is_fresh: &dyn Fn(&UnitKey) -> bool,
    ) -> Result<Self, Failure> {
        let mut standing = Self { is_settled: true, ..Self::default() };
        for node in graph.nodes() {
            let stands = |done: &Done| is_fresh(node.unit.key()) || standing.holds(node, done);
            match ledger.done(node.unit.key())?.filter(stands) {
                Some(done) => {
                    standing.halted |= done.flow == Flow::Halt;
                    standing.outputs.insert(node.name.clone(), done.output);
                }
                None => standing.is_settled &= standing.halted && !node.always,
            }
        }
        Ok(standing)
    }

    /// Of the run as it is.
    pub fn of_run(existing: &Existing) -> Result<Self, Failure> {
        let Existing { run, inputs, .. } = existing;
        let plan = inputs.plan.as_ref().map_err(Clone::clone)?;
        let build = Build::new(inputs, run);
        let jobs = Jobs::new(&build, plan);
        Self::of(&crate::release::graph::build(&build, &jobs), &Ledger::open(&run.ledger())?, &|_| false)
    }

    /// Whether this node's result stands.
    pub fn contains(&self, name: &str) -> bool {
        self.outputs.contains_key(name)
    }

    fn holds(&self, node: &Node<'_>, done: &Done) -> bool {
        let passes = node.unit.is_repeated()
            || (node.always && not_run(&done.output).is_some())
            || node.holds(done, &self.outputs);
        passes && node.after.iter().all(|name| self.contains(name))
    }
}
