//! Content-addressed keys of the units of a release: each key covers everything its output depends on.

use super::arm::{ArmEngine, ArmName};
use super::calibrate_units::CalibrateJob;
use super::preflight::Inputs;
use crate::base::digest::Digest;
use crate::eval::{ItemRef, PreparedTask};
use crate::exec::{KeyBuilder, UnitKey};

/// Key of a candidate: this recipe applied to this source by this build, with static input scales of this calibration.
pub fn candidate(source: &Digest, recipe: &Digest, build: &Digest, calibration: Option<&UnitKey>) -> UnitKey {
    let builder =
        KeyBuilder::new("candidate/1").part("source", source).part("recipe", recipe).part("build", build);
    match calibration {
        Some(key) => builder.part("calibration", key.as_str()),
        None => builder,
    }
    .finish()
}

/// Key of an arm: this checkpoint answered by this engine. `checkpoint` is its digest, or the candidate's key where
/// the checkpoint is yet to be made.
pub fn arm(checkpoint: &str, tokenizer: &Digest, build: &Digest, engine: &ArmEngine) -> UnitKey {
    let builder = KeyBuilder::new("arm/1")
        .part("checkpoint", checkpoint)
        .part("tokenizer", tokenizer)
        .part("build", build);
    match engine {
        ArmEngine::Local { dtype, place } => {
            builder.part("device", place.device()).part("kernel_path", place.kernel_path(*dtype))
        }
        ArmEngine::Command(spec) => builder.part("command", &spec.command),
        ArmEngine::Endpoint { url, .. } => builder.part("endpoint", url),
    }
    .finish()
}

/// Key of one wave: these items, on the arm with key `arm`.
pub fn wave(arm: &UnitKey, items: &[ItemRef<'_>]) -> UnitKey {
    let mut builder = KeyBuilder::new("score/2").part("arm", arm.as_str());
    let mut before = None;
    for (task, place) in items {
        if before != Some(&task.digest) {
            builder = builder.part("task", &task.digest);
            before = Some(&task.digest);
        }
        let item = &task.items[*place];
        builder = builder
            .part("document", item.doc_id)
            .part("prompt", &item.prompt_digest)
            .part("tokens", &item.token_digest);
    }
    builder.finish()
}

/// Key of a unit of `kind` that depends on the unit with key `on`.
pub fn derived(kind: &str, on: &UnitKey) -> UnitKey {
    KeyBuilder::new(kind).part("on", on.as_str()).finish()
}

/// Key of anything that depends on all scores of an arm.
pub fn evaluated(arm: &UnitKey, tasks: &[PreparedTask]) -> UnitKey {
    let mut builder = KeyBuilder::new("evaluated/1").part("arm", arm.as_str());
    for task in tasks {
        let items: Vec<ItemRef<'_>> = (0..task.items.len()).map(|place| (task, place)).collect();
        builder = builder.part("task", wave(arm, &items).as_str());
    }
    builder.finish()
}

/// The keys of one release.
pub struct Keys {
    /// The candidate.
    pub candidate: UnitKey,
    /// Both arms: baseline, candidate.
    pub arms: [UnitKey; 2],
    /// All scores of both arms.
    pub evaluated: [UnitKey; 2],
    /// The comparison.
    pub compare: UnitKey,
}

impl Keys {
    /// The keys that follow from `inputs`.
    pub fn of(inputs: &Inputs) -> Self {
        let calibration = inputs.calibration.as_ref().map(CalibrateJob::key);
        let candidate =
            candidate(&inputs.source_digest, &inputs.recipe.digest, &inputs.build, calibration.as_ref());
        let arm_key = |checkpoint: &str, name: ArmName| {
            arm(checkpoint, &inputs.tokenizer_digest, &inputs.build, &inputs.engines[name as usize])
        };
        let arms = [
            arm_key(inputs.source_digest.as_str(), ArmName::Baseline),
            arm_key(candidate.as_str(), ArmName::Candidate),
        ];
        let evaluated = [evaluated(&arms[0], &inputs.tasks), evaluated(&arms[1], &inputs.tasks)];
        let compare = KeyBuilder::new("compare/1")
            .part("baseline", evaluated[0].as_str())
            .part("candidate", evaluated[1].as_str())
            .part("config", inputs.config_digest())
            .finish();
        Self { candidate, arms, evaluated, compare }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::engine::EnginePlace;
    use crate::ops::kernel_path::ComputeDtype;

    /// Whatever answers may differ in has its own key, so that no arm is ever given another's numbers.
    #[test]
    fn everything_that_answers_depend_on_is_in_the_key() {
        let digest = |text: &str| Digest::of(text.as_bytes());
        let local = |dtype| ArmEngine::Local { dtype, place: EnginePlace::default() };
        let endpoint = |url: &str| ArmEngine::Endpoint { url: url.to_owned(), api_key: None };
        let arms = [
            arm("source", &digest("t"), &digest("b"), &local(ComputeDtype::F32)),
            arm("candidate", &digest("t"), &digest("b"), &local(ComputeDtype::F32)),
            arm("source", &digest("other"), &digest("b"), &local(ComputeDtype::F32)),
            arm("source", &digest("t"), &digest("other"), &local(ComputeDtype::F32)),
            arm("source", &digest("t"), &digest("b"), &local(ComputeDtype::Bf16)),
            arm("source", &digest("t"), &digest("b"), &endpoint("http://a")),
            arm("source", &digest("t"), &digest("b"), &endpoint("http://b")),
        ];
        let distinct: BTreeSet<&str> = arms.iter().map(UnitKey::as_str).collect();
        assert_eq!(distinct.len(), arms.len());
        let waves: BTreeSet<String> = arms.iter().map(|arm| wave(arm, &[]).as_str().to_owned()).collect();
        assert_eq!(waves.len(), arms.len());
    }
}
