//! One line a stage on the terminal, and the events of the run.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::arm::ArmName;
use super::graph::{Build, names};
use crate::base::units::{human_bytes, human_seconds};
use crate::exec::{Done, Flow, Node};
use crate::record::GateReport;
use crate::record::quantize::QuantizeRecord;

/// Turns finished nodes into lines.
pub struct StageLines<'a> {
    build: &'a Build<'a>,
    say: &'a (dyn Fn(&str) + Sync),
    stages: Mutex<BTreeMap<&'static str, Stage>>,
}

/// What a stage has done so far.
#[derive(Default)]
struct Stage {
    seconds: f64,
    units: usize,
    reused: usize,
}

impl<'a> StageLines<'a> {
    /// Lines of one run, given to `say`.
    pub fn new(build: &'a Build<'a>, say: &'a (dyn Fn(&str) + Sync)) -> Self {
        Self { build, say, stages: Mutex::default() }
    }

    /// Notes a finished node; says a line where it ends a stage.
    pub fn done(&self, node: &Node<'_>, done: &Done) {
        self.build.run.event("done", &node.name, if done.reused { "reused" } else { "" });
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        let stage = stages.entry(node.stage).or_default();
        stage.seconds += done.elapsed_s;
        stage.units += 1;
        stage.reused += usize::from(done.reused);
        let report: Option<GateReport> = serde_json::from_value(done.output.clone()).ok();
        let ends = node.name == names::FINISH
            || (report.is_some() && (done.flow == Flow::Halt || !is_second_serve_gate(&node.name)));
        if !ends {
            return;
        }
        let verdict = report.as_ref().and_then(|r| r.verdict).map_or("done".to_owned(), |v| v.to_string());
        let mut detail = report.map_or_else(|| sizes(done), |r| r.detail);
        if stage.reused > 0 {
            let note = format!("{} of {} units reused from an earlier run", stage.reused, stage.units - 1);
            detail = if detail.is_empty() { note } else { format!("{detail} ({note})") };
        }
        let line = format!("{:<16} {verdict:<11} {:>11}  {detail}", node.stage, human_seconds(stage.seconds));
        (self.say)(line.trim_end());
    }
}

/// The gate after scoring says something only when it fails.
fn is_second_serve_gate(name: &str) -> bool {
    ArmName::BOTH.iter().any(|arm| name == names::gate_serve_end(*arm))
}

fn sizes(done: &Done) -> String {
    serde_json::from_value::<QuantizeRecord>(done.output.clone()).map_or_else(
        |_| String::new(),
        |r| {
            format!(
                "{} modules, {} -> {}",
                r.quantized_modules,
                human_bytes(r.source_tensor_bytes),
                human_bytes(r.output_tensor_bytes)
            )
        },
    )
}
