//! The work graph: named nodes in an order that respects their dependencies.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::ledger::Done;
use super::unit::Unit;
use crate::base::digest::{Digest, DigestBuilder};

/// One node: a unit with its place in the graph.
pub struct Node<'a> {
    /// Unique name, e.g. `quantize/shard-0`.
    pub name: String,
    /// Stage it belongs to; retry budgets are per stage.
    pub stage: &'static str,
    /// Names of the nodes that must be done first.
    pub after: Vec<String>,
    /// Whether it runs even when an earlier node halted or failed (a closeout).
    pub always: bool,
    /// Whether its output may be reused by other runs through the shared ledger.
    pub shared: bool,
    /// What it costs beside the other nodes of its stage: tokens, or bytes. 0: next to nothing.
    pub cost: u64,
    /// The work.
    pub unit: Box<dyn Unit + 'a>,
}

impl Node<'_> {
    /// Digest of the outputs that its own is made of and that can become others; `None` where there are none such.
    pub(super) fn inputs(&self, outputs: &BTreeMap<String, Value>) -> Option<Digest> {
        let reads = self.unit.reads();
        if reads.is_empty() {
            return None;
        }
        let mut digest = DigestBuilder::default();
        for name in reads {
            let output = outputs.get(name).and_then(|output| Digest::of_json(output).ok());
            digest.field(name.as_bytes()).field(output.as_ref().map_or("", Digest::as_str).as_bytes());
        }
        Some(digest.finish())
    }

    /// Whether a recorded result was made of these outputs of other nodes.
    pub fn is_made_of(&self, done: &Done, outputs: &BTreeMap<String, Value>) -> bool {
        done.inputs == self.inputs(outputs)
    }

    /// Whether a recorded result still stands beside these outputs of other nodes.
    pub fn holds(&self, done: &Done, outputs: &BTreeMap<String, Value>) -> bool {
        self.is_made_of(done, outputs) && self.unit.verify(&done.output)
    }
}

/// Nodes in execution order.
#[derive(Default)]
pub struct Graph<'a> {
    nodes: Vec<Node<'a>>,
    names: BTreeSet<String>,
}

impl<'a> Graph<'a> {
    /// Adds a node.
    ///
    /// # Panics
    /// When the name is taken or a dependency was not added before: a mistake of the program, not of its input.
    pub fn add(&mut self, node: Node<'a>) {
        for dependency in &node.after {
            assert!(
                self.names.contains(dependency),
                "node {} comes before its dependency {dependency}",
                node.name
            );
        }
        assert!(self.names.insert(node.name.clone()), "node {} was added twice", node.name);
        self.nodes.push(node);
    }

    /// The nodes in execution order.
    pub fn nodes(&self) -> &[Node<'a>] {
        &self.nodes
    }
}
