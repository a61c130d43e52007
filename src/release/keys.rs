//! Content-addressed keys of the units of a release: each key covers everything its output depends on.

use super::arm::{ArmEngine, ArmName};
use super::preflight::Inputs;
use crate::base::digest::Digest;
use crate::engine;
use crate::eval::{ItemRef, PreparedTask};
use crate::exec::{KeyBuilder, UnitKey};

/// Key of a candidate: this recipe applied to this source by this build.
pub fn candidate(source: &Digest, recipe: &Digest, build: &Digest) -> UnitKey {
    KeyBuilder::new("candidate/1").part("source", source).part("recipe", recipe).part("build", build).finish()
}

/// Key of an arm: this checkpoint answered by this engine. `checkpoint` is its digest, or the candidate's key where
/// the checkpoint is yet to be made.
pub fn arm(checkpoint: &str, tokenizer: &Digest, build: &Digest, engine: &ArmEngine) -> UnitKey {
    let builder = KeyBuilder::new("arm/1")
        .part("checkpoint", checkpoint)
        .part("tokenizer", tokenizer)
        .part("build", build);
    match engine {
        ArmEngine::Local { dtype } => {
            builder.part("device", "cpu").part("kernel_path", engine::kernel_path(*dtype))
        }
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
        let candidate = candidate(&inputs.source_digest, &inputs.recipe.digest, &inputs.build);
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
