//! The work graph of a release as jobs of a batch system: which units run together in one process.
//!
//! A job a stage; the quantizer's shards and the scored tasks are arrays. A task of the score array starts each arm's
//! engine once and runs all waves of its tasks with the looks between them, because starting an engine for a wave costs
//! more than the wave. A task whose waves depend on looks stays whole; the waves of others may lie apart. Units that
//! several tasks of an array need (the probe of an arm) are in each: leases see to it that one of them does the work.

use std::collections::{BTreeMap, BTreeSet};

use super::config::ReleaseConfig;
use super::preflight::Inputs;
use crate::base::units::human_seconds;
use crate::exec::Graph;
use crate::ops::kernel_path::ComputeDtype;

/// Stages in order. The last one closes the run.
pub const STAGES: [&str; 5] = ["quantize", "scan", "score", "compare", CLOSEOUT];
/// The job that ends every run.
pub const CLOSEOUT: &str = "closeout";

const QUANTIZE: usize = 0;
const SCAN: usize = 1;
const SCORE: usize = 2;
const COMPARE: usize = 3;

/// Tasks of an array unless the profile says otherwise.
const DEFAULT_TASKS: usize = 4;

/// A stage as one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageJob {
    /// Name of the stage.
    pub stage: &'static str,
    /// Nodes of each task; one entry for a job that is no array.
    pub parts: Vec<BTreeSet<String>>,
    /// Cost of each task.
    pub costs: Vec<u64>,
    /// What the cost counts.
    pub cost_unit: &'static str,
}

impl StageJob {
    /// All its nodes.
    pub fn nodes(&self) -> BTreeSet<&String> {
        self.parts.iter().flatten().collect()
    }

    /// Whether it may be an array.
    pub fn is_array(&self) -> bool {
        matches!(self.stage, "quantize" | "score")
    }
}

/// The jobs of a graph. `tasks` says how many tasks the array of a stage may have.
pub fn jobs(graph: &Graph<'_>, tasks: &dyn Fn(&str) -> Option<usize>) -> Vec<StageJob> {
    let stage_of = stages(graph);
    let job = |stage: usize| {
        let nodes = graph.nodes().iter().filter(|n| stage_of[n.name.as_str()] == stage);
        let nodes: Vec<(&str, u64)> = nodes.map(|n| (n.name.as_str(), n.cost)).collect();
        let looked: BTreeSet<&str> = nodes.iter().filter_map(|(n, _)| sequence(n, "look")).collect();
        let most =
            if matches!(stage, QUANTIZE | SCORE) { tasks(STAGES[stage]).unwrap_or(DEFAULT_TASKS) } else { 1 };
        let (parts, costs) = share_out(&nodes, most, &|name| chain(name, &looked));
        let cost_unit = if stage == QUANTIZE { "B" } else { "tokens" };
        StageJob { stage: STAGES[stage], parts, costs, cost_unit }
    };
    (QUANTIZE..=COMPARE).map(job).filter(|job| job.parts.iter().any(|p| !p.is_empty())).collect()
}

/// The stage of every node: what its name says, else the last before what needs it; never before what it needs.
fn stages<'g>(graph: &'g Graph<'_>) -> BTreeMap<&'g str, usize> {
    let mut stage: BTreeMap<&str, usize> =
        graph.nodes().iter().map(|n| (n.name.as_str(), named_stage(&n.name).unwrap_or(COMPARE))).collect();
    for node in graph.nodes().iter().rev() {
        let own = stage[node.name.as_str()];
        for before in node.after.iter().filter(|b| named_stage(b).is_none()) {
            if let Some(other) = stage.get_mut(before.as_str()) {
                *other = own.min(*other);
            }
        }
    }
    for node in graph.nodes() {
        let needs = node.after.iter().filter_map(|b| stage.get(b.as_str())).max().copied();
        if let Some(own) = stage.get_mut(node.name.as_str()) {
            *own = (*own).max(needs.unwrap_or(QUANTIZE));
        }
    }
    stage
}

fn named_stage(name: &str) -> Option<usize> {
    let mut words = name.split('/');
    match (words.next()?, words.next()) {
        ("quantize", Some(what)) if !what.starts_with("finish") => Some(QUANTIZE),
        ("quantize" | "scan", _) | ("gate", Some("ptq")) => Some(SCAN),
        ("score" | "look", _) => Some(SCORE),
        ("serve", Some(arm)) if !arm.ends_with("-end") => Some(SCORE),
        ("gate", Some(gate)) if gate.starts_with("serve-") && !gate.ends_with("-end") => Some(SCORE),
        _ => None,
    }
}

/// `SEQUENCE` of `look/SEQUENCE/WAVE` or `score/ARM/SEQUENCE/WAVE`.
fn sequence<'n>(name: &'n str, kind: &str) -> Option<&'n str> {
    let (_, rest) = name.split_once('/').filter(|(first, _)| *first == kind)?;
    let rest = if kind == "score" { rest.split_once('/')?.1 } else { rest };
    Some(rest.rsplit_once('/')?.0)
}

/// What must run in one task: a sequence with looks, else a wave of both arms, else a shard. `None`: every task runs it.
fn chain(name: &str, looked: &BTreeSet<&str>) -> Option<String> {
    if let Some(sequence) = sequence(name, "look") {
        return Some(sequence.to_owned());
    }
    if let Some(own) = sequence(name, "score") {
        let wave = name.rsplit('/').next().unwrap_or_default();
        return Some(if looked.contains(own) { own.to_owned() } else { format!("{own}/{wave}") });
    }
    name.starts_with("quantize/shard-").then(|| name.to_owned())
}

/// Shares chains out to at most `most` parts, the costliest first, each to the part with least.
fn share_out(
    nodes: &[(&str, u64)],
    most: usize,
    chain: &dyn Fn(&str) -> Option<String>,
) -> (Vec<BTreeSet<String>>, Vec<u64>) {
    let mut chains: BTreeMap<String, (u64, Vec<&str>)> = BTreeMap::new();
    let mut common = Vec::new();
    for (name, cost) in nodes {
        match chain(name) {
            Some(chain) => {
                let (sum, members) = chains.entry(chain).or_default();
                *sum += cost;
                members.push(name);
            }
            None => common.push((*name).to_owned()),
        }
    }
    let count = chains.len().clamp(1, most.max(1));
    let mut parts: Vec<BTreeSet<String>> = vec![common.into_iter().collect(); count];
    let mut costs = vec![0u64; count];
    let mut by_cost: Vec<(u64, Vec<&str>)> = chains.into_values().collect();
    by_cost.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
    for (cost, members) in by_cost {
        let least = (0..count).min_by_key(|i| costs[*i]).unwrap_or(0);
        costs[least] += cost;
        parts[least].extend(members.into_iter().map(str::to_owned));
    }
    (parts, costs)
}

/// Bytes a second of one CPU in the quantizer: a round number of the reference machine (two AVX-512 vCPUs), only to plan
/// with.
const BYTES_PER_CPU: f64 = 5e8;

/// FLOP/s of one CPU in the built-in engine: round numbers of the reference machine, only to plan with.
fn flops_per_cpu(dtype: ComputeDtype) -> f64 {
    match dtype {
        ComputeDtype::F32 => 5e10,
        ComputeDtype::Bf16 => 2e11,
    }
}

/// Seconds that the longest task of a job will probably take on `cpus` CPUs; `None` where another engine than the
/// built-in one serves an arm.
pub fn estimate(job: &StageJob, parameters: u64, cpus: u32, config: &ReleaseConfig) -> Option<f64> {
    let most = job.costs.iter().max().copied().unwrap_or(0) as f64;
    let cpus = f64::from(cpus.max(1));
    match job.stage {
        "quantize" => Some(most / (BYTES_PER_CPU * cpus)),
        "score" if config.uses_own_engine() => {
            Some(most * 2.0 * parameters as f64 / (flops_per_cpu(config.dtype) * cpus))
        }
        "score" => None,
        _ => Some(0.0),
    }
}

/// The stages of a graph that runs in this process, one a line: units, threads, device, estimated time.
pub fn local_table(graph: &Graph<'_>, inputs: &Inputs) -> Vec<String> {
    let mut lines = vec!["stage      units  threads  device     estimate".to_owned()];
    for job in jobs(graph, &|_| Some(1)) {
        let own = job.stage != STAGES[SCORE] || inputs.config.uses_own_engine();
        let parameters = inputs.source.num_elements();
        let on_gpu = own && job.stage == STAGES[SCORE] && inputs.gpus().is_some();
        let seconds = estimate(&job, parameters, inputs.threads.count as u32, &inputs.config);
        // Estimates are for CPUs.
        let seconds = seconds.filter(|_| !on_gpu);
        let device = if on_gpu { "cuda" } else { "cpu" };
        lines.push(format!(
            "{:<9} {:>6} {:>8}  {:<7} {:>11}",
            job.stage,
            job.nodes().len(),
            inputs.threads.count,
            if own { device } else { "engine" },
            seconds.map_or_else(|| "unknown".to_owned(), human_seconds),
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::config::ConfigFile;
    use super::*;
    use crate::exec::{FnUnit, KeyBuilder, Node, Output};

    fn graph(nodes: &[(&str, &[&str], u64)]) -> Graph<'static> {
        let mut graph = Graph::default();
        for (name, after, cost) in nodes {
            let key = KeyBuilder::new("t/1").part("name", name).finish();
            graph.add(Node {
                name: (*name).to_owned(),
                stage: "t",
                after: after.iter().map(|a| (*a).to_owned()).collect(),
                always: false,
                shared: false,
                cost: *cost,
                unit: Box::new(FnUnit::new(key, |_| Output::of(&0))),
            });
        }
        graph
    }

    fn whole() -> Graph<'static> {
        graph(&[
            ("quantize/calibration", &[], 0),
            ("quantize/shard-0", &["quantize/calibration"], 5),
            ("quantize/shard-1", &["quantize/calibration"], 9),
            ("quantize/finish", &["quantize/shard-0", "quantize/shard-1"], 0),
            ("scan", &["quantize/finish"], 0),
            ("gate/ptq", &["scan"], 0),
            ("serve/baseline", &["gate/ptq"], 0),
            ("gate/serve-baseline", &["serve/baseline"], 0),
            ("serve/candidate", &["gate/ptq"], 0),
            ("gate/serve-candidate", &["serve/candidate"], 0),
            ("score/baseline/a/0", &["gate/serve-baseline"], 10),
            ("score/candidate/a/0", &["gate/serve-candidate"], 10),
            ("look/a/0", &["score/baseline/a/0", "score/candidate/a/0"], 0),
            ("score/baseline/a/1", &["look/a/0"], 10),
            ("score/candidate/a/1", &["look/a/0"], 10),
            ("look/a/1", &["score/baseline/a/1", "score/candidate/a/1"], 0),
            ("score/baseline/b/0", &["gate/serve-baseline"], 30),
            ("score/candidate/b/0", &["gate/serve-candidate"], 30),
            ("score/baseline/b/1", &["gate/serve-baseline"], 5),
            ("score/candidate/b/1", &["gate/serve-candidate"], 5),
            ("serve/baseline-end", &["score/baseline/b/1"], 0),
            ("gate/serve-baseline-end", &["serve/baseline-end"], 0),
            ("something/new", &["gate/ptq"], 0),
            ("gate/compare", &["gate/serve-baseline-end"], 0),
        ])
    }

    fn names(part: &BTreeSet<String>) -> Vec<&str> {
        part.iter().map(String::as_str).collect()
    }

    #[test]
    fn every_node_is_in_a_job_that_comes_after_what_it_needs() {
        let graph = whole();
        let jobs = jobs(&graph, &|_| Some(2));
        assert_eq!(
            jobs.iter().map(|j| j.stage).collect::<Vec<_>>(),
            ["quantize", "scan", "score", "compare"]
        );
        let place = |name: &String| jobs.iter().position(|j| j.nodes().contains(name)).unwrap();
        for node in graph.nodes() {
            assert!(node.after.iter().all(|before| place(before) <= place(&node.name)), "{}", node.name);
        }
        assert_eq!(place(&"something/new".to_owned()), 3);
        assert_eq!(place(&"serve/baseline-end".to_owned()), 3);
    }

    #[test]
    fn sequences_stay_whole_and_waves_without_looks_are_shared_out() {
        let graph = whole();
        let jobs = jobs(&graph, &|_| Some(2));
        let score = &jobs[2];
        assert_eq!(score.costs, [60, 50]);
        assert!(names(&score.parts[0]).contains(&"score/candidate/b/0"));
        let second = names(&score.parts[1]);
        assert!(["look/a/0", "score/baseline/a/1", "score/baseline/b/1"].iter().all(|n| second.contains(n)));
        // Both tasks need the arms.
        assert!(
            score.parts.iter().all(|p| p.contains("serve/candidate") && p.contains("gate/serve-baseline"))
        );
        let quantize = &jobs[0];
        assert_eq!(quantize.parts.len(), 2);
        assert!(quantize.parts.iter().all(|p| p.contains("quantize/calibration")));
    }

    #[test]
    fn no_more_tasks_than_chains() {
        let graph = whole();
        let jobs = jobs(&graph, &|_| Some(100));
        assert_eq!((jobs[0].parts.len(), jobs[2].parts.len()), (2, 3));
        let one = super::jobs(&graph, &|_| Some(1));
        assert_eq!((one[0].parts.len(), one[2].parts.len()), (1, 1));
    }

    #[test]
    fn the_time_of_an_engine_that_is_not_ours_is_unknown() {
        let graph = whole();
        let jobs = jobs(&graph, &|_| Some(1));
        let score = jobs.iter().find(|job| job.stage == "score").unwrap();
        let seconds = |text: &str| {
            let file = ConfigFile::parse(text, "day0.yaml").unwrap();
            estimate(score, 1_000_000_000, 2, &file.validate().unwrap())
        };
        assert_eq!(seconds("{}"), Some(2.2));
        assert_eq!(seconds("dtype: bf16"), Some(0.55));
        for other in [
            "engine: {endpoint: 'http://h:1'}",
            "engine: {baseline_endpoint: 'http://h:1'}",
            "serve: {engine: {command: 'vllm serve {model} --port {port}'}}",
        ] {
            assert_eq!(seconds(other), None, "{other}");
        }
    }
}
