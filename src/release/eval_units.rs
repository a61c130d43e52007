//! Units of the stages serve, eval and compare of a release.

use serde::Deserialize;
use serde_json::Value;

use super::arm::{ArmEngine, ArmName};
use super::graph::{Build, Timer, names, node};
use super::noise_units::{self, NOISE};
use super::score_units::{EvalJob, Wave, WaveId};
use super::waves::LookUnit;
use super::{keys, last_looks};
use crate::base::json;
use crate::eval::{self, PreparedTask};
use crate::exec::{Context, FnUnit, Graph, Node, Output};
use crate::gate;
use crate::record::Failure;
use crate::record::eval::EvalRecord;
use crate::record::serve::ServeRecord;

/// Adds everything after `gate/ptq`. `jobs` are the evaluations of baseline and candidate.
pub fn add<'a>(graph: &mut Graph<'a>, build: &'a Build<'a>, jobs: &'a [EvalJob<'a>; 2]) {
    let groups: Vec<Vec<ArmName>> = if both_arms_fit(build) {
        vec![ArmName::BOTH.to_vec()]
    } else {
        ArmName::BOTH.iter().map(|arm| vec![*arm]).collect()
    };
    let mut noise = false;
    for arms in groups {
        for arm in &arms {
            graph.add(serve_node(build, *arm));
            graph.add(gate_serve_node(build, *arm, names::serve(*arm), &names::gate_serve(*arm)));
        }
        // One wave scores the same items on both arms, then a look may stop the task. An arm that is served alone comes
        // before any look: all its items are scored.
        let looks = arms.contains(&ArmName::Candidate);
        for id in jobs[0].wave_ids() {
            for arm in &arms {
                let after = vec![names::serve(*arm), names::gate_serve(*arm)];
                let wave = jobs[*arm as usize].wave_node(id, after, looks);
                graph.add(Node { shared: is_shared(build, *arm), ..wave });
            }
            if looks && let Some(look) = look_node(jobs, id) {
                graph.add(look);
            }
        }
        if arms.contains(&ArmName::Baseline)
            && build.inputs.config.noise_floor
            && let Some(node) = noise_units::noise_node(build, &jobs[0])
        {
            graph.add(node);
            noise = true;
        }
        for arm in &arms {
            graph.add(serve_end_node(build, &jobs[*arm as usize], *arm, noise));
            graph.add(gate_serve_node(build, *arm, names::serve_end(*arm), &names::gate_serve_end(*arm)));
        }
    }
    for arm in ArmName::BOTH {
        let mut after = jobs[arm as usize].wave_names();
        after.extend(jobs[arm as usize].look_names());
        after.push(names::gate_serve_end(arm));
        graph.add(jobs[arm as usize].merge_node(names::eval(arm), after));
        graph.add(gate_run_node(build, arm));
    }
    graph.add(gate_compare_node(build, noise));
}

/// The look after a wave of what may stop early.
fn look_node<'a>(jobs: &'a [EvalJob<'a>; 2], (index, wave): WaveId) -> Option<Node<'a>> {
    let sequence = &jobs[0].sequences[index];
    let tasks = || sequence.tasks.iter().map(|task| &jobs[0].tasks[*task]);
    let keys = (0..=wave).flat_map(|w| jobs.iter().map(move |job| job.wave_key((index, w)))).collect();
    let unit = LookUnit {
        name: &sequence.name,
        tasks: tasks().map(PreparedTask::name).collect(),
        metric: tasks().next().map(|task| eval::primary_metric(&task.task))?,
        rule: sequence.rule?,
        wave,
        after: keys,
        arms: ArmName::BOTH.map(|arm| arm.to_string()),
    };
    Some(unit.node("compare"))
}

/// Whether both engines can be in memory at once, with half of what is available to spare.
pub(super) fn both_arms_fit(build: &Build<'_>) -> bool {
    let launched = build.inputs.engines.iter().find_map(|engine| match engine {
        ArmEngine::Command(spec) => Some(spec.both_at_once),
        _ => None,
    });
    if let Some(both) = launched {
        return both;
    }
    let [ArmEngine::Local { place, .. }, ArmEngine::Local { place: other, .. }] = &build.inputs.engines
    else {
        return true;
    };
    if place.is_apart_from(other) {
        return true;
    }
    let weights = crate::engine::memory_bytes(&build.inputs.source, build.inputs.config.dtype);
    place.available_bytes().is_none_or(|available| weights.saturating_mul(2) < available / 2)
}

/// Results of the baseline on the built-in engine may serve later releases.
fn is_shared(build: &Build<'_>, arm: ArmName) -> bool {
    arm == ArmName::Baseline && matches!(build.inputs.engines[0], ArmEngine::Local { .. })
}

/// A failed start is not a result to keep: a resumed run starts the engine again.
fn came_up(output: &Value) -> bool {
    ServeRecord::deserialize(output).is_ok_and(|record| gate::serve(&record).pass)
}

fn serve_node<'a>(build: &'a Build<'a>, arm: ArmName) -> Node<'a> {
    let unit = FnUnit::new(keys::derived("serve/1", &build.keys.arms[arm as usize]), move |_| {
        let timer = Timer::start();
        let mut record = build.arm(arm).probe(&build.provenance())?;
        record.provenance = timer.stop(record.provenance);
        Output::of(&record)
    })
    .verified_by(came_up);
    let node = node(names::serve(arm), arm.serve_stage(), vec![names::GATE_PTQ.to_owned()], unit);
    Node { shared: is_shared(build, arm), ..node }
}

fn serve_end_node<'a>(build: &'a Build<'a>, job: &EvalJob<'_>, arm: ArmName, noise: bool) -> Node<'a> {
    let key = keys::derived("serve-end/3", &build.keys.evaluated[arm as usize]);
    let waves = job.wave_names();
    let mut after = waves.clone();
    let unit = FnUnit::new(key, move |context| {
        let opening: ServeRecord = context.output(&names::serve(arm))?;
        if !build.arm(arm).is_running() {
            // Where the waves were scored by other processes, each has looked at its own engine when it was done.
            if let Some(record) = last_looks::worst(build.run, arm, &opening)? {
                return Output::of(&record);
            }
            // An engine that ended with an interrupted process cannot be looked at, and another one would say nothing
            // about it: the looks at every wave must do.
            if is_launched(build, arm) && all_confirmed(&waves, context)? {
                return Output::of(&opening);
            }
        }
        // After the last score: nothing that is measured can disturb one.
        let speed = if build.arm(arm).is_running() { build.arm(arm).speed() } else { None };
        let mut record = build.arm(arm).probe_again(&opening, &build.provenance())?;
        record.speed = speed;
        build.arm(arm).stop();
        Output::of(&record)
    })
    // An arm that answered in this process has to be asked again whether it stayed up.
    .verified_by(move |output: &Value| came_up(output) && !build.arm(arm).is_running())
    // What was scored again was perhaps answered by another process. The built-in engine is the same in each, and its
    // result may serve other runs, which need other waves.
    .reading(if is_shared(build, arm) { Vec::new() } else { job.wave_names() });
    after.push(names::serve(arm));
    after.extend((noise && arm == ArmName::Baseline).then(|| NOISE.to_owned()));
    let node = node(names::serve_end(arm), arm.serve_stage(), after, unit);
    Node { shared: is_shared(build, arm), ..node }
}

/// Whether day0 starts the arm's engine from a command.
fn is_launched(build: &Build<'_>, arm: ArmName) -> bool {
    matches!(build.inputs.engines[arm as usize], ArmEngine::Command(_))
}

/// Whether the engine was shown to be the probed one after each of these waves.
fn all_confirmed(waves: &[String], context: &Context<'_>) -> Result<bool, Failure> {
    for name in waves {
        if !context.output::<Wave>(name)?.is_confirmed() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Decides about the serve record that node `of` left.
fn gate_serve_node<'a>(build: &'a Build<'a>, arm: ArmName, of: String, name: &str) -> Node<'a> {
    let subject = keys::derived(&of, &build.keys.evaluated[arm as usize]);
    let after = vec![of.clone()];
    build.gate_node(name, arm.serve_stage(), &subject, after, move |context| {
        let record: ServeRecord = context.output(&of)?;
        json::write(&build.run.join(format!("serve/{arm}.json")), &record)?;
        Ok(gate::serve(&record).about(arm.to_string()))
    })
}

fn read_eval(build: &Build<'_>, arm: ArmName) -> Result<EvalRecord, Failure> {
    Ok(json::read(&build.run.join(format!("eval/{arm}/record.json")))?)
}

fn gate_run_node<'a>(build: &'a Build<'a>, arm: ArmName) -> Node<'a> {
    let subject = &build.keys.evaluated[arm as usize];
    build.gate_node(&names::gate_run(arm), arm.eval_stage(), subject, vec![names::eval(arm)], move |_| {
        Ok(gate::run(&read_eval(build, arm)?).about(arm.to_string()))
    })
}

fn gate_compare_node<'a>(build: &'a Build<'a>, with_noise: bool) -> Node<'a> {
    let mut after = ArmName::BOTH.map(names::gate_run).to_vec();
    after.extend(with_noise.then(|| NOISE.to_owned()));
    build.gate_node(names::GATE_COMPARE, "compare", &build.keys.compare, after, move |context| {
        let (baseline, candidate) =
            (read_eval(build, ArmName::Baseline)?, read_eval(build, ArmName::Candidate)?);
        let mut options = build.inputs.config.compare_options(&baseline);
        if with_noise {
            options.noise = context.output(NOISE)?;
        }
        Ok(gate::compare(&baseline, &candidate, &options))
    })
}
