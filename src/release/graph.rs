//! The work graph of a release.

use std::time::Instant;

use super::arm::{Arm, ArmName};
use super::keys::{self, Keys};
use super::preflight::Inputs;
use super::quantize_units::{QuantizeJob, QuantizeOutput};
use super::run_dir::RunDir;
use super::score_units::{EvalJob, OpenJournal};
use super::{eval_units, quantize_units, ready_units};
use crate::base::{clock, json};
use crate::exec::{Context, Flow, FnUnit, Graph, Node, Output, Owner, Unit, UnitKey};
use crate::quantize::QuantizePlan;
use crate::record::provenance::{Timing, peak_memory_bytes};
use crate::record::serve::ServeRecord;
use crate::record::{Failure, GateReport, Provenance};

/// Names of nodes that others depend on.
pub mod names {
    use super::ArmName;

    /// What calibration saw.
    pub const CALIBRATION: &str = "quantize/calibration";
    /// The complete candidate.
    pub const FINISH: &str = "quantize/finish";
    /// The scan record.
    pub const SCAN: &str = "scan";
    /// Gate of the candidate's bytes.
    pub const GATE_PTQ: &str = "gate/ptq";
    /// Gate of the comparison.
    pub const GATE_COMPARE: &str = "gate/compare";

    /// The started and probed arm.
    pub fn serve(arm: ArmName) -> String {
        format!("serve/{arm}")
    }

    /// Gate of the started arm, before scoring.
    pub fn gate_serve(arm: ArmName) -> String {
        format!("gate/serve-{arm}")
    }

    /// The arm probed again, after scoring.
    pub fn serve_end(arm: ArmName) -> String {
        format!("serve/{arm}-end")
    }

    /// Gate of the arm over its whole life.
    pub fn gate_serve_end(arm: ArmName) -> String {
        format!("gate/serve-{arm}-end")
    }

    /// The arm's evaluation record.
    pub fn eval(arm: ArmName) -> String {
        format!("eval/{arm}")
    }

    /// Gate of the arm's evaluation.
    pub fn gate_run(arm: ArmName) -> String {
        format!("gate/run-{arm}")
    }
}

/// What the units of a release share.
pub struct Build<'a> {
    /// Validated inputs.
    pub inputs: &'a Inputs,
    /// Where artifacts go.
    pub run: &'a RunDir,
    /// Both arms: baseline, candidate.
    pub arms: [Arm; 2],
    /// Keys of the units.
    pub keys: Keys,
}

impl<'a> Build<'a> {
    /// The shared parts of a release in `run`.
    pub fn new(inputs: &'a Inputs, run: &'a RunDir) -> Self {
        let arm = |name: ArmName, dir| {
            let job = Owner::current().job.map_or_else(String::new, |job| format!("-{job}"));
            let log = run.join(format!("serve/{name}{job}.log"));
            Arm::new(name, dir, inputs.engines[name as usize].clone(), inputs.threads.clone(), log)
        };
        let arms =
            [arm(ArmName::Baseline, inputs.model.dir.clone()), arm(ArmName::Candidate, run.checkpoint())];
        Self { inputs, run, arms, keys: Keys::of(inputs) }
    }

    /// An arm.
    pub fn arm(&self, name: ArmName) -> &Arm {
        &self.arms[name as usize]
    }

    /// The common part of every record's origin.
    pub fn provenance(&self) -> Provenance {
        self.inputs.provenance()
    }

    /// The job of making the candidate.
    pub fn quantize_job(&self, plan: &'a QuantizePlan) -> QuantizeJob<'a> {
        let output = QuantizeOutput {
            plan,
            target: self.run.checkpoint(),
            record: Some(self.run.join("quantize/record.json")),
            key: self.keys.candidate.clone(),
        };
        QuantizeJob {
            outputs: vec![output],
            sync: true,
            own_targets: true,
            gpus: None,
            provenance: self.provenance(),
            calibration: self.inputs.calibration.as_ref(),
        }
    }

    /// The job of evaluating an arm.
    pub fn eval_job(&'a self, name: ArmName) -> EvalJob<'a> {
        EvalJob {
            arm: name.to_string(),
            stage: name.eval_stage(),
            tasks: &self.inputs.tasks,
            sequences: self.inputs.sequences(),
            info: self.inputs.output_info(),
            key: self.keys.arms[name as usize].clone(),
            decided_by: self.keys.compare.clone(),
            journal: OpenJournal::default(),
            scorer: Box::new(move |context: &Context<'_>| {
                let opening: ServeRecord = context.output(&names::serve(name))?;
                self.arm(name).scorer(&opening)
            }),
            diagnose: Box::new(move |failure| self.arm(name).diagnose(failure)),
            out: self.run.join(format!("eval/{name}")),
            provenance: self.provenance(),
        }
    }

    /// A node that decides, stores the report under `gates/` and halts the graph unless the verdict is ACCEPT.
    pub fn gate_node(
        &'a self,
        name: &str,
        stage: &'static str,
        subject: &UnitKey,
        after: Vec<String>,
        decide: impl Fn(&Context<'_>) -> Result<GateReport, Failure> + Send + Sync + 'a,
    ) -> Node<'a> {
        let file = name.trim_start_matches("gate/").trim_end_matches("-end").replace('-', "_");
        let path = self.run.join(format!("gates/{file}.json"));
        let unit = FnUnit::new(keys::derived(name, subject), move |context| {
            let report = decide(context)?;
            json::write(&path, &report)?;
            Output::with(&report, if report.pass { Flow::Continue } else { Flow::Halt })
        })
        // Deciding is cheap and pure: a resumed run decides again on the records it has now.
        .repeated()
        .reading(after.clone());
        node(name.to_owned(), stage, after, unit)
    }
}

/// Measures one unit.
pub struct Timer {
    started_at: String,
    start: Instant,
}

impl Timer {
    /// Starts timing.
    pub fn start() -> Self {
        Self { started_at: clock::now_iso8601(), start: Instant::now() }
    }

    /// Writes start, duration and peak memory into `provenance`.
    pub fn stop(self, mut provenance: Provenance) -> Provenance {
        provenance.timing = Timing {
            started_at: self.started_at,
            elapsed_s: self.start.elapsed().as_secs_f64(),
            peak_memory_bytes: peak_memory_bytes(),
        };
        provenance
    }
}

/// An ordinary node.
pub fn node<'a>(name: String, stage: &'static str, after: Vec<String>, unit: impl Unit + 'a) -> Node<'a> {
    Node { name, stage, after, always: false, shared: false, cost: 0, unit: Box::new(unit) }
}

/// The jobs of a release, which the graph's units borrow.
pub struct Jobs<'a> {
    quantize: QuantizeJob<'a>,
    evals: [EvalJob<'a>; 2],
}

impl<'a> Jobs<'a> {
    /// The jobs of `build`.
    pub fn new(build: &'a Build<'a>, plan: &'a QuantizePlan) -> Self {
        Self { quantize: build.quantize_job(plan), evals: ArmName::BOTH.map(|arm| build.eval_job(arm)) }
    }
}

/// The whole chain: quantize → scan → serve → eval → compare → readiness.
pub fn build<'a>(build: &'a Build<'a>, jobs: &'a Jobs<'a>) -> Graph<'a> {
    let mut graph = Graph::default();
    quantize_units::add_quantize(&mut graph, &jobs.quantize);
    quantize_units::add_scan(&mut graph, build);
    eval_units::add(&mut graph, build, &jobs.evals);
    ready_units::add(&mut graph, build);
    graph
}
