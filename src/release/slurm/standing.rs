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
    /// unit's check and all results before it stand. What a resume decides again stands as long as what it was decided on
    /// does, and what was left out as long as the chain ends early.
    pub fn of(
        graph: &Graph<'_>,
        ledger: &Ledger,
        is_fresh: &dyn Fn(&UnitKey) -> bool,
    ) -> Result<Self, Failure> {
        Self::with_keys(graph, ledger, is_fresh, &BTreeMap::new())
    }

    /// The same, where a unit without a result under its key may have one under another.
    fn with_keys(
        graph: &Graph<'_>,
        ledger: &Ledger,
        is_fresh: &dyn Fn(&UnitKey) -> bool,
        others: &BTreeMap<String, UnitKey>,
    ) -> Result<Self, Failure> {
        let mut standing = Self { is_settled: true, ..Self::default() };
        for node in graph.nodes() {
            let stands = |done: &Done| is_fresh(node.unit.key()) || standing.holds(node, done);
            let own = ledger.done(node.unit.key())?;
            let result = match others.get(&node.name).filter(|_| own.is_none()) {
                Some(other) => ledger.done(other)?,
                None => own,
            };
            match result.filter(stands) {
                Some(done) => {
                    standing.halted |= done.flow == Flow::Halt;
                    standing.outputs.insert(node.name.clone(), done.output);
                }
                None => standing.is_settled &= standing.halted && !node.always,
            }
        }
        Ok(standing)
    }

    /// Of the run as it is, asked from any host: keys hold what a host computes with, and those of the nodes count.
    pub fn of_run(existing: &Existing) -> Result<Self, Failure> {
        let Existing { run, inputs, .. } = existing;
        let plan = inputs.plan.as_ref().map_err(Clone::clone)?;
        let build = Build::new(inputs, run);
        let jobs = Jobs::new(&build, plan);
        let (graph, ledger) = (crate::release::graph::build(&build, &jobs), Ledger::open(&run.ledger())?);
        let others = done_by_name(&ledger)?;
        Self::with_keys(&graph, &ledger, &|_| false, &others)
    }

    /// Whether this node's result stands.
    pub fn contains(&self, name: &str) -> bool {
        self.outputs.contains_key(name)
    }

    fn holds(&self, node: &Node<'_>, done: &Done) -> bool {
        let passes = if node.always && not_run(&done.output).is_some() {
            // A chain that went on to its end leaves nothing out.
            self.halted
        } else if node.unit.is_repeated() {
            node.is_made_of(done, &self.outputs)
        } else {
            node.holds(done, &self.outputs)
        };
        passes && node.after.iter().all(|name| self.contains(name))
    }
}

/// Keys under which a ledger has results, by the names of their units.
fn done_by_name(ledger: &Ledger) -> Result<BTreeMap<String, UnitKey>, Failure> {
    let done = ledger.history()?.into_iter().filter(|(_, history)| history.done.is_some());
    Ok(done.map(|(key, history)| (history.unit, key)).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;
    use crate::exec::{Executor as _, FnUnit, KeyBuilder, LocalExecutor, Output, Share, Unit};

    /// A gate that ends the chain or not, what is left out where it does, and what is decided on that; computed on `host`.
    fn graph(flow: Flow, host: &str) -> Graph<'static> {
        let key = |name: &str| KeyBuilder::new("test/1").part("name", name).part("host", host).finish();
        let seed = move || if flow == Flow::Halt { json!({"not_run": "decided"}) } else { json!({"ran": 1}) };
        let units: [(&str, Box<dyn Unit>); 3] = [
            ("gate", Box::new(FnUnit::new(key("gate"), move |_| Output::with(&1, flow)).repeated())),
            (
                "seed",
                Box::new(
                    FnUnit::new(key("seed"), move |_| Output::of(&seed()))
                        .verified_by(|output: &Value| not_run(output).is_none()),
                ),
            ),
            (
                "ready",
                Box::new(
                    FnUnit::new(key("ready"), |_| Output::of(&2)).repeated().reading(vec!["seed".to_owned()]),
                ),
            ),
        ];
        let mut graph = Graph::default();
        for (name, unit) in units {
            let (name, always) = (name.to_owned(), name != "gate");
            graph.add(Node { name, stage: "test", after: Vec::new(), always, shared: false, cost: 0, unit });
        }
        graph
    }

    fn run(graph: &Graph<'_>, ledger: &Ledger, nodes: &[&str]) {
        let nodes: BTreeSet<String> = nodes.iter().map(|name| (*name).to_owned()).collect();
        let executor = LocalExecutor { share: Share::Part(&nodes), ..LocalExecutor::new(ledger) };
        assert!(executor.run(graph).unwrap().failure.is_none());
    }

    fn names(standing: &Standing) -> Vec<&str> {
        standing.outputs.keys().map(String::as_str).collect()
    }

    /// What was left out of a chain that ended early does not stand once it goes on, nor what was decided on it.
    #[test]
    fn what_was_left_out_stands_only_while_the_chain_ends_early() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("l")).unwrap();
        let look = |graph: &Graph<'_>| Standing::of(graph, &ledger, &|_| false).unwrap();
        let (ended, whole) = (graph(Flow::Halt, "n1"), graph(Flow::Continue, "n1"));
        assert!(!look(&ended).is_settled && names(&look(&ended)).is_empty());
        run(&ended, &ledger, &["gate", "seed", "ready"]);
        assert!(look(&ended).is_settled && look(&ended).halted);
        run(&whole, &ledger, &["gate"]);
        assert_eq!((names(&look(&whole)), look(&whole).is_settled), (vec!["gate"], false));
        run(&whole, &ledger, &["seed"]);
        assert_eq!((names(&look(&whole)), look(&whole).is_settled), (vec!["gate", "seed"], false));
        run(&whole, &ledger, &["ready"]);
        assert!(look(&whole).is_settled && !look(&whole).halted);
    }

    /// Keys hold what a host computes with: a login host sees what the nodes did by its name.
    #[test]
    fn results_of_other_hosts_are_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("l")).unwrap();
        run(&graph(Flow::Continue, "node"), &ledger, &["gate", "seed", "ready"]);
        let here = graph(Flow::Continue, "login");
        assert!(!Standing::of(&here, &ledger, &|_| false).unwrap().is_settled);
        let others = done_by_name(&ledger).unwrap();
        assert!(Standing::with_keys(&here, &ledger, &|_| false, &others).unwrap().is_settled);
    }
}
