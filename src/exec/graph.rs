//! The work graph: named nodes in an order that respects their dependencies.

use std::collections::BTreeSet;

use super::unit::Unit;

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
