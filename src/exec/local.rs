//! The local executor: runs the graph in this process, one unit after the other (units are parallel inside).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::graph::{Graph, Node};
use super::ledger::{Claim, Done, Ledger};
use super::unit::{Context, Flow};
use crate::base::{interrupt, progress};
use crate::record::provenance::peak_memory_bytes;
use crate::record::{Failure, FailureClass};

/// A unit that runs this long has its lease renewed.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// Pauses between two looks for a unit that another process runs, the first and the longest: each look takes the ledger's
/// lock, on which all processes wait, and a unit may take minutes.
const POLL: Duration = Duration::from_millis(200);
const LONGEST_POLL: Duration = Duration::from_secs(3);

/// What became of a graph.
#[derive(Debug, Default)]
pub struct RunSummary {
    /// Outputs of the nodes that are done, by name.
    pub outputs: BTreeMap<String, Value>,
    /// Nodes whose result came from the shared ledger.
    pub reused: BTreeSet<String>,
    /// Seconds per stage, counting work done now and before.
    pub stage_seconds: BTreeMap<&'static str, f64>,
    /// Largest peak resident memory in bytes of the processes that did the work, now and before, if known.
    pub peak_memory_bytes: Option<u64>,
    /// Nodes that did not run because an earlier one halted or failed.
    pub skipped: Vec<String>,
    /// Whether a gate ended the chain.
    pub halted: bool,
    /// The first failure, with the node's name.
    pub failure: Option<(String, Failure)>,
    /// Signal that stopped the run.
    pub interrupted: Option<i32>,
}

impl RunSummary {
    fn take(&mut self, node: &Node<'_>, done: Done) {
        *self.stage_seconds.entry(node.stage).or_default() += done.elapsed_s;
        self.peak_memory_bytes = self.peak_memory_bytes.max(done.peak_memory_bytes);
        if done.reused {
            self.reused.insert(node.name.clone());
        }
        self.halted |= done.flow == Flow::Halt;
        self.outputs.insert(node.name.clone(), done.output);
    }

    /// The output of node `name`, if it is done and of this type.
    pub fn output<T: serde::de::DeserializeOwned>(&self, name: &str) -> Option<T> {
        T::deserialize(self.outputs.get(name)?).ok()
    }
}

/// Runs graphs.
pub trait Executor {
    /// Runs every node that is not done. Errors of units are in the summary; an `Err` means that the ledger failed.
    fn run(&self, graph: &Graph<'_>) -> Result<RunSummary, Failure>;
}

/// Runs a graph in this process.
pub struct LocalExecutor<'a> {
    /// Ledger of the run.
    pub ledger: &'a Ledger,
    /// Ledger shared between runs, for nodes that allow it.
    pub shared: Option<&'a Ledger>,
    /// How often a stage may repeat a unit after a transient fault.
    pub retries_per_stage: usize,
    /// Told of every node that is done, in order.
    pub observer: &'a (dyn Fn(&Node<'_>, &Done) + Sync),
    /// Which nodes this process runs.
    pub share: Share<'a>,
}

/// How much of a graph a process runs.
#[derive(Debug, Clone, Copy)]
pub enum Share<'a> {
    /// All of it. A unit that another process runs is a fault: nobody else should be there.
    Whole,
    /// Only the nodes with these names, beside other processes: results of all others are taken from the ledger as they
    /// are, and a unit that another process runs is waited for.
    Part(&'a BTreeSet<String>),
}

impl Executor for LocalExecutor<'_> {
    fn run(&self, graph: &Graph<'_>) -> Result<RunSummary, Failure> {
        let mut summary = RunSummary::default();
        let mut stopped = false;
        let mut retries: BTreeMap<&'static str, usize> = BTreeMap::new();
        for node in graph.nodes() {
            summary.interrupted = summary.interrupted.or_else(interrupt::received);
            if summary.interrupted.is_some() {
                summary.skipped.push(node.name.clone());
                continue;
            }
            if let Share::Part(names) = self.share
                && !names.contains(&node.name)
            {
                if let Some(done) = self.ledger.done(node.unit.key())? {
                    stopped |= done.flow == Flow::Halt;
                    summary.take(node, done);
                }
                continue;
            }
            let ready = node.after.iter().all(|name| summary.outputs.contains_key(name));
            if !node.always && (stopped || !ready) {
                summary.skipped.push(node.name.clone());
                continue;
            }
            match self.run_node(node, &summary.outputs, &mut retries)? {
                Ok(done) => {
                    stopped |= done.flow == Flow::Halt;
                    (self.observer)(node, &done);
                    summary.take(node, done);
                }
                Err(failure) => {
                    stopped = true;
                    summary.interrupted = interrupt::received();
                    summary.failure.get_or_insert((node.name.clone(), failure));
                }
            }
        }
        Ok(summary)
    }
}

impl<'a> LocalExecutor<'a> {
    /// Runs the whole graph on this ledger alone, without a second try, and tells nobody.
    pub fn new(ledger: &'a Ledger) -> Self {
        Self { ledger, shared: None, retries_per_stage: 0, observer: &|_, _| (), share: Share::Whole }
    }

    fn run_node(
        &self,
        node: &Node<'_>,
        outputs: &BTreeMap<String, Value>,
        retries: &mut BTreeMap<&'static str, usize>,
    ) -> Result<Result<Done, Failure>, Failure> {
        loop {
            // Each attempt claims the unit anew.
            match self.find_done(node, outputs) {
                Ok(Some(done)) => return Ok(Ok(done)),
                Ok(None) => {}
                // A signal while waiting stops the run, not the ledger.
                Err(failure) if failure.signal.is_some() => return Ok(Err(failure)),
                Err(failure) => return Err(failure),
            }
            let start = Instant::now();
            match self.with_heartbeat(node, || node.unit.run(&Context::new(outputs))) {
                Ok(output) => {
                    let elapsed_s = start.elapsed().as_secs_f64();
                    let private = output.private;
                    let peak_memory_bytes = peak_memory_bytes();
                    let (output, flow) = (output.value, output.flow);
                    let inputs = node.inputs(outputs);
                    let done = Done { output, flow, elapsed_s, peak_memory_bytes, reused: false, inputs };
                    if !self.ledger.finish(node.unit.key(), &node.name, &done)? {
                        progress::note(&format!("{}: another process took this unit over", node.name));
                        continue;
                    }
                    if let Some(shared) = self.shared.filter(|_| node.shared && !private) {
                        shared.publish(node.unit.key(), &node.name, &done)?;
                    }
                    return Ok(Ok(done));
                }
                Err(failure) => {
                    self.ledger.fail(node.unit.key(), &node.name, &failure)?;
                    let used = retries.entry(node.stage).or_default();
                    if failure.class != FailureClass::InfraTransient
                        || *used >= self.retries_per_stage
                        || interrupt::received().is_some()
                    {
                        return Ok(Err(failure));
                    }
                    *used += 1;
                    progress::note(&format!("{}: {failure}; trying once more", node.name));
                }
            }
        }
    }

    /// The node's result from an earlier run, if it still holds; otherwise the unit is ours.
    fn find_done(&self, node: &Node<'_>, outputs: &BTreeMap<String, Value>) -> Result<Option<Done>, Failure> {
        let key = node.unit.key();
        let stands = |done: &Done| !node.unit.is_repeated() && node.holds(done, outputs);
        let mut announced = false;
        let mut pause = POLL;
        loop {
            let claim = match self.ledger.claim(key, &node.name)? {
                Claim::Done(done) if stands(&done) => return Ok(Some(done)),
                Claim::Done(_) => self.ledger.claim_again(key, &node.name)?,
                claim => claim,
            };
            let Claim::Busy(owner) = claim else { break };
            let whose =
                format!("unit '{}' is being run by process {} on {}", node.name, owner.pid, owner.place());
            if matches!(self.share, Share::Whole) {
                let failure = Failure::new(FailureClass::InfraTransient, whose);
                return Err(failure.with_hint("wait for that process, or stop it and resume"));
            }
            if let Some(signal) = interrupt::received() {
                return Err(Failure::interrupted(signal));
            }
            if !announced {
                progress::note(&format!("{whose}; waiting for it"));
                announced = true;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_POLL);
        }
        let Some(shared) = self.shared.filter(|_| node.shared) else { return Ok(None) };
        let Some(mut done) = shared.done(key)?.filter(stands) else {
            return Ok(None);
        };
        done.reused = true;
        done.elapsed_s = 0.0;
        done.peak_memory_bytes = None;
        self.ledger.finish(key, &node.name, &done)?;
        Ok(Some(done))
    }

    /// Runs `work` while a thread renews the unit's lease.
    fn with_heartbeat<T>(&self, node: &Node<'_>, work: impl FnOnce() -> T) -> T {
        std::thread::scope(|scope| {
            let (stop, stopped) = mpsc::channel::<()>();
            scope.spawn(move || {
                while stopped.recv_timeout(HEARTBEAT) == Err(mpsc::RecvTimeoutError::Timeout) {
                    if let Err(error) = self.ledger.renew(node.unit.key(), &node.name) {
                        progress::note(&format!("{}: the lease was not renewed: {error}", node.name));
                    }
                }
            });
            let result = work();
            drop(stop);
            result
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::unit::{FnUnit, KeyBuilder, Output, Unit};
    use super::*;

    fn node<'a>(
        name: &str,
        after: &[&str],
        runs: &'a AtomicUsize,
        result: impl Fn(usize) -> Result<Output, Failure> + Send + Sync + 'static,
    ) -> Node<'a> {
        Node {
            name: name.to_owned(),
            stage: "test",
            after: after.iter().map(|s| (*s).to_owned()).collect(),
            always: false,
            shared: true,
            cost: 0,
            unit: Box::new(FnUnit::new(KeyBuilder::new("test/1").part("name", name).finish(), move |_| {
                result(runs.fetch_add(1, Ordering::SeqCst))
            })),
        }
    }

    fn ok(_: usize) -> Result<Output, Failure> {
        Output::of(&1)
    }

    #[test]
    fn second_run_does_nothing_and_shared_results_are_copied() {
        let dir = tempfile::tempdir().unwrap();
        let shared = Ledger::open(&dir.path().join("shared.jsonl")).unwrap();
        let runs = AtomicUsize::new(0);
        let mut graph = Graph::default();
        graph.add(node("a", &[], &runs, ok));
        graph.add(node("b", &["a"], &runs, ok));
        for (run, reused) in [("one", 0), ("one", 0), ("two", 2)] {
            let ledger = Ledger::open(&dir.path().join(run)).unwrap();
            let executor = LocalExecutor { shared: Some(&shared), ..LocalExecutor::new(&ledger) };
            let summary = executor.run(&graph).unwrap();
            assert_eq!(summary.outputs.len(), 2);
            assert_eq!(summary.reused.len(), reused);
        }
        assert_eq!(runs.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn halt_and_failure_stop_all_but_the_closeout() {
        let dir = tempfile::tempdir().unwrap();
        let runs = AtomicUsize::new(0);
        let mut graph = Graph::default();
        graph.add(node("gate", &[], &runs, |_| Output::with(&1, Flow::Halt)));
        graph.add(node("next", &["gate"], &runs, ok));
        graph.add(Node { always: true, ..node("closeout", &[], &runs, ok) });
        let ledger = Ledger::open(&dir.path().join("l")).unwrap();
        let executor = LocalExecutor::new(&ledger);
        let summary = executor.run(&graph).unwrap();
        assert_eq!(summary.skipped, ["next"]);
        assert_eq!(summary.outputs.len(), 2);
    }

    #[test]
    fn two_parts_of_a_graph_share_its_units() {
        let dir = tempfile::tempdir().unwrap();
        let runs = AtomicUsize::new(0);
        let slow = |_| {
            std::thread::sleep(Duration::from_millis(50));
            Output::of(&1)
        };
        let mut graph = Graph::default();
        graph.add(node("both", &[], &runs, slow));
        graph.add(node("left", &["both"], &runs, ok));
        graph.add(node("right", &["both"], &runs, ok));
        graph.add(node("end", &["left", "right"], &runs, ok));
        let run = |names: &[&str]| {
            let part: BTreeSet<String> = names.iter().map(|n| (*n).to_owned()).collect();
            let ledger = Ledger::open(&dir.path().join("l")).unwrap();
            let executor = LocalExecutor { share: Share::Part(&part), ..LocalExecutor::new(&ledger) };
            executor.run(&graph).unwrap()
        };
        assert_eq!(run(&["end"]).skipped, ["end"], "what others have not done yet cannot be used");
        std::thread::scope(|scope| {
            let left = scope.spawn(|| run(&["both", "left"]));
            assert!(run(&["both", "right"]).failure.is_none());
            assert!(left.join().unwrap().failure.is_none());
        });
        assert_eq!(run(&["end"]).outputs.len(), 4);
        // Two handles of one process are one owner, so the shared unit may have run twice, but no other.
        assert!(matches!(runs.load(Ordering::SeqCst), 4 | 5));
    }

    /// What was made of an output that has changed is made again, and nothing else; a repeated unit always is.
    #[test]
    fn results_of_what_was_done_again_do_not_hold() {
        let dir = tempfile::tempdir().unwrap();
        let runs: [AtomicUsize; 4] = Default::default();
        let count = || runs.each_ref().map(|runs| runs.load(Ordering::SeqCst));
        let ledger = Ledger::open(&dir.path().join("l")).unwrap();
        let run = |holds: bool, value: i32| {
            let key = |name: &str| KeyBuilder::new("test/1").part("name", name).finish();
            let unit = |index: usize, value: i32| {
                let runs = &runs[index];
                FnUnit::new(key(&index.to_string()), move |_| {
                    runs.fetch_add(1, Ordering::SeqCst);
                    Output::of(&value)
                })
            };
            let changing = unit(0, value).verified_by(move |_: &Value| holds);
            let units: [(&[&str], Box<dyn Unit + '_>); 4] = [
                (&[], Box::new(changing)),
                (&["0"], Box::new(unit(1, 1).reading(vec!["0".to_owned()]))),
                (&["0"], Box::new(unit(2, 2))),
                (&["1"], Box::new(unit(3, 3).repeated())),
            ];
            let mut graph = Graph::default();
            for (index, (after, unit)) in units.into_iter().enumerate() {
                let after = after.iter().map(|name| (*name).to_owned()).collect();
                let name = index.to_string();
                graph.add(Node { name, stage: "test", after, always: false, shared: false, cost: 0, unit });
            }
            let executor = LocalExecutor::new(&ledger);
            assert!(executor.run(&graph).unwrap().failure.is_none());
        };
        run(true, 7);
        assert_eq!(count(), [1, 1, 1, 1]);
        run(true, 7);
        assert_eq!(count(), [1, 1, 1, 2]);
        // Done again with the same result.
        run(false, 7);
        assert_eq!(count(), [2, 1, 1, 3]);
        run(false, 8);
        assert_eq!(count(), [3, 2, 1, 4]);
    }

    #[test]
    fn transient_faults_are_tried_again_within_the_budget() {
        let dir = tempfile::tempdir().unwrap();
        let fault = || Err(Failure::new(FailureClass::InfraTransient, "lost"));
        for (budget, faults, succeeds) in [(1, 1, true), (1, 2, false), (0, 1, false)] {
            let runs = AtomicUsize::new(0);
            let mut graph = Graph::default();
            graph.add(node("a", &[], &runs, move |n| if n < faults { fault() } else { Output::of(&1) }));
            let ledger = Ledger::open(&dir.path().join(format!("{budget}-{faults}"))).unwrap();
            let executor = LocalExecutor { retries_per_stage: budget, ..LocalExecutor::new(&ledger) };
            assert_eq!(executor.run(&graph).unwrap().failure.is_none(), succeeds);
        }
    }
}
