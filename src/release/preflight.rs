//! Everything that can be decided before work starts: the model is there, the recipe applies, the engine knows the
//! architecture, the tasks load and their requests can be made.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::arm::ArmEngine;
use super::calibrate_units::{self, CalibrateJob};
use super::config::ReleaseConfig;
use super::decided::{Decided, PlannedTask};
use super::waves::Sequence;
use crate::base::closest::suggestion;
use crate::base::digest::{Digest, DigestBuilder};
use crate::base::env_vars;
use crate::base::threads::Threads;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::source::{self, ResolvedModel};
use crate::engine::{self, EnginePlace};
use crate::eval::endpoint::ApiKey;
use crate::eval::{self, EvalError, EvalOptions, OutputInfo, PreparedTask};
use crate::gate::Margin;
use crate::model::tokenizer::Tokenizer;
use crate::quantize::{Arithmetic, QuantizePlan};
use crate::recipe::{self, Recipe};
use crate::record::eval::ItemOrder;
use crate::record::{Failure, FailureClass, Provenance};
use crate::suite::{self, Group, Suite};

/// The inputs of a release, validated.
pub struct Inputs {
    /// Effective configuration.
    pub config: ReleaseConfig,
    /// The resolved model.
    pub model: ResolvedModel,
    /// Its checkpoint.
    pub source: Arc<Checkpoint>,
    /// Digest of the checkpoint.
    pub source_digest: Digest,
    /// Recipe.
    pub recipe: Recipe,
    /// What the recipe does to this checkpoint, or why it cannot.
    pub plan: Result<QuantizePlan, Failure>,
    /// The calibration, where the recipe needs one.
    pub calibration: Option<CalibrateJob>,
    /// Why the built-in engine cannot run this model, if it is needed and cannot.
    pub engine_gap: Option<Failure>,
    /// Tasks with their requests.
    pub tasks: Vec<PreparedTask>,
    groups: Vec<Group>,
    options: EvalOptions,
    /// Digest of the tokenizer.
    pub tokenizer_digest: Digest,
    /// Engines of both arms: baseline, candidate.
    pub engines: [ArmEngine; 2],
    /// Worker threads.
    pub threads: Threads,
    /// Digest of the running program: results of another build are never reused.
    pub build: Digest,
    /// Cache directory.
    pub cache: PathBuf,
    config_digest: Digest,
}

impl Inputs {
    /// Validates `config`. An error here is a usage error: nothing has run yet. What makes the release INFEASIBLE is
    /// kept inside, because it is a verdict.
    pub fn gather(config: ReleaseConfig, threads: Threads) -> Result<Self, Failure> {
        let cache = env_vars::cache_dir();
        let recipe = recipe::load(&config.recipe)?;
        let suite = suite::load(&config.suites.join(","), config.data.as_deref())?;
        let engines = engines(&config)?;
        let model = source::resolve(&config.model, &cache)?;
        let source = Arc::new(Checkpoint::open(&model.dir)?);
        let source_digest = source.digest()?;
        let tokenizer = Tokenizer::load(&model.dir)?;
        let plan = QuantizePlan::new(Arc::clone(&source), recipe.clone(), Arithmetic::F32);
        let plan = verdict_or_mistake(plan.map_err(Failure::from))?;
        let build = program_digest()?;
        let calibration = match &plan {
            Ok(plan) => {
                let plans = std::iter::once(plan);
                calibrate_units::job(&source, plans, &config.calibration, &threads, &build)
            }
            Err(_) => Ok(None),
        };
        let (calibration, plan) = match verdict_or_mistake(calibration)? {
            Ok(job) => (job, plan),
            Err(failure) => (None, Err(failure)),
        };
        let local = engines.iter().any(|e| matches!(e, ArmEngine::Local { .. }));
        let supported = if local { engine::check_supported(&source) } else { Ok(()) };
        let engine_gap = verdict_or_mistake(supported.map_err(Failure::from))?.err();
        let options = EvalOptions {
            limit: config.limit,
            order: ItemOrder::Permuted { seed: config.seed },
            num_fewshot: config.num_fewshot,
            fewshot_seed: config.fewshot_seed,
            apply_chat_template: config.apply_chat_template,
            system_instruction: config.system_instruction.clone(),
            ..EvalOptions::new(max_len(&source, &engines))
        };
        let tasks = prepare(&suite, &tokenizer, &options)?;
        check_scorable(&tasks)?;
        check_task_names(&config, &tasks, &suite.groups)?;
        let config_digest = Digest::of_json(&config).map_err(|e| {
            Failure::new(FailureClass::Unknown, format!("the configuration is not JSON: {e}"))
        })?;
        Ok(Self {
            config,
            config_digest,
            model,
            source,
            source_digest,
            recipe,
            plan,
            calibration,
            engine_gap,
            groups: suite.groups,
            options,
            tasks,
            tokenizer_digest: tokenizer.digest().clone(),
            engines,
            threads,
            build,
            cache,
        })
    }

    /// What makes this release impossible before anything runs.
    pub fn impossible(&self) -> Option<&Failure> {
        self.engine_gap.as_ref().or(self.plan.as_ref().err())
    }

    /// Largest drop that each task may have.
    pub fn margins(&self) -> BTreeMap<String, Margin> {
        let Decided { options, .. } = decided(&self.config, &self.tasks, &self.groups);
        options.tasks.into_iter().filter_map(|(task, options)| Some((task, options.margin?))).collect()
    }

    /// Digest of the effective configuration.
    pub fn config_digest(&self) -> &Digest {
        &self.config_digest
    }

    /// What `results.json` says beside the scores.
    pub fn output_info(&self) -> OutputInfo<'_> {
        OutputInfo { model_name: &self.config.model, options: &self.options, groups: &self.groups }
    }

    /// The common part of every record's origin.
    pub fn provenance(&self) -> Provenance {
        let mut provenance = Provenance::new(self.threads.clone());
        let inputs = [
            ("build", &self.build),
            ("recipe", &self.recipe.digest),
            ("source", &self.source_digest),
            ("tokenizer", &self.tokenizer_digest),
        ];
        provenance.inputs = inputs.into_iter().map(|(name, d)| (name.to_owned(), d.clone())).collect();
        provenance.seeds.insert("permutation".to_owned(), self.config.seed);
        let place = self.gpus().cloned().unwrap_or_default();
        (provenance.device, provenance.kernel_path) = (place.device(), place.kernel_path(self.config.dtype));
        provenance
    }

    /// The GPUs that the built-in engine computes an arm on, if it does.
    pub fn gpus(&self) -> Option<&EnginePlace> {
        self.engines.iter().find_map(|engine| match engine {
            ArmEngine::Local { place, .. } if !place.is_cpu() => Some(place),
            _ => None,
        })
    }

    /// What is scored in which waves: each task by itself, or those of a group together where looks at the group may stop
    /// them early.
    pub fn sequences(&self) -> Vec<Sequence> {
        let Decided { subjects, rules, .. } = decided(&self.config, &self.tasks, &self.groups);
        let rule = |name: &str| rules.get(name).copied().filter(|_| self.config.early_stop);
        let mut taken: Vec<&str> = Vec::new();
        let mut sequences = Vec::new();
        for subject in subjects.iter().filter(|subject| subject.pooled && subject.decides()) {
            let Some(rule) = rule(&subject.name) else { continue };
            let within = |task: &PreparedTask| subject.tasks.iter().any(|name| name == task.name());
            let members = self.tasks.iter().enumerate().filter(|(_, task)| within(task));
            let sizes: Vec<(usize, usize)> = members.map(|(index, task)| (index, task.items.len())).collect();
            taken.extend(subject.tasks.iter().map(String::as_str));
            let seed = self.config.seed.wrapping_add(1);
            sequences.push(Sequence::of_group(&subject.name, &sizes, rule, seed));
        }
        for (index, task) in self.tasks.iter().enumerate().filter(|(_, task)| !taken.contains(&task.name())) {
            sequences.push(Sequence::of_task(task.name(), index, task.items.len(), rule(task.name())));
        }
        sequences
    }

    /// What this plan cannot accept whatever is scored, in words: known before any work.
    pub fn uncertifiable(&self) -> Vec<String> {
        decided(&self.config, &self.tasks, &self.groups).uncertifiable()
    }

    /// Digest over everything that decides the outcome.
    pub fn digest(&self) -> Digest {
        let mut digest = DigestBuilder::default();
        for part in [&self.config_digest, &self.source_digest, &self.recipe.digest, &self.tokenizer_digest] {
            digest.field(part.as_str().as_bytes());
        }
        if let Some(job) = &self.calibration {
            digest.field(job.text_digest().as_str().as_bytes());
        }
        for task in &self.tasks {
            digest.field(task.digest.as_str().as_bytes());
        }
        digest.finish()
    }
}

/// A model that cannot be quantized, calibrated or run is a verdict; anything else that is wrong is a mistake, and ends
/// the release before it begins.
fn verdict_or_mistake<T>(result: Result<T, Failure>) -> Result<Result<T, Failure>, Failure> {
    match result {
        Err(failure) if failure.class != FailureClass::ModelUnsupported => Err(failure),
        verdict => Ok(verdict),
    }
}

/// Requests of all tasks.
pub fn prepare(
    suite: &Suite,
    tokenizer: &Tokenizer,
    options: &EvalOptions,
) -> Result<Vec<PreparedTask>, Failure> {
    let tasks = suite.tasks.iter().map(|task| eval::prepare(task, tokenizer, options));
    Ok(tasks.collect::<Result<Vec<_>, _>>()?)
}

/// What the gate will decide, and which of it may stop early.
fn decided(config: &ReleaseConfig, tasks: &[PreparedTask], groups: &[Group]) -> Decided {
    let planned: Vec<PlannedTask<'_>> =
        tasks.iter().map(|task| (task.task.as_ref(), task.items.len())).collect();
    Decided::of(config, &planned, groups)
}

/// A release compares all items: one that cannot be scored is found before hours of work.
fn check_scorable(tasks: &[PreparedTask]) -> Result<(), Failure> {
    for task in tasks {
        if let Some((doc_id, problem)) = task.problems().next() {
            let (task, count) = (task.name().to_owned(), task.problems().count());
            return Err(EvalError::Unscorable { task, count, doc_id, problem: problem.to_owned() }.into());
        }
    }
    Ok(())
}

/// Settings of what is not evaluated, or is decided as a part of something else, are a mistake, found before hours of
/// work.
fn check_task_names(config: &ReleaseConfig, tasks: &[PreparedTask], groups: &[Group]) -> Result<(), Failure> {
    let known: Vec<&str> =
        tasks.iter().map(PreparedTask::name).chain(groups.iter().map(|g| g.name.as_str())).collect();
    if let Some(name) = config.tasks.keys().find(|name| !known.contains(&name.as_str())) {
        return Err(Failure::config(format!("tasks.{name}: the suites hold no such task or suite"))
            .with_hint(suggestion(name, &known)));
    }
    let Decided { subjects, .. } = decided(config, tasks, groups);
    let part = |name: &String| subjects.iter().find(|subject| subject.name == *name)?.part_of.clone();
    for (name, settings) in &config.tasks {
        let decides = settings.margin.is_some() || settings.tier.is_some() || settings.published.is_some();
        if let Some(group) = part(name).filter(|_| decides) {
            let message = format!("tasks.{name}: is decided as a part of {group}, not by itself");
            return Err(Failure::config(message)
                .with_hint(format!("set tasks.{group}.pooled: false to decide each of its tasks")));
        }
    }
    Ok(())
}

/// Longest input of both arms. An endpoint generates one token beyond the scored ones, which takes two places.
fn max_len(source: &Checkpoint, engines: &[ArmEngine; 2]) -> usize {
    let whole = engine::max_len(source.config());
    let endpoint = engines.iter().any(|e| !matches!(e, ArmEngine::Local { .. }));
    if endpoint { whole.saturating_sub(2) } else { whole }
}

fn engines(config: &ReleaseConfig) -> Result<[ArmEngine; 2], Failure> {
    let api_key = config.engine.api_key_file.as_deref().map(ApiKey::from_file).transpose()?;
    let is_local = |url: &Option<String>| url.is_none() && config.serve.engine.is_none();
    let urls = [&config.engine.baseline_endpoint, &config.engine.endpoint];
    let place = match urls.map(is_local) {
        [false, false] => EnginePlace::default(),
        _ => EnginePlace::open(&config.device)?,
    };
    let places = if urls.map(is_local) == [true, true] { place.halves() } else { [place.clone(), place] };
    let engine = |(url, place): (&Option<String>, EnginePlace)| match (url, &config.serve.engine) {
        (None, None) => ArmEngine::Local { dtype: config.dtype, place },
        (None, Some(spec)) => ArmEngine::Command(spec.clone()),
        (Some(url), _) => ArmEngine::Endpoint { url: url.clone(), api_key: api_key.clone() },
    };
    let [of_baseline, of_candidate] = places;
    Ok([engine((urls[0], of_baseline)), engine((urls[1], of_candidate))])
}

/// Digest of the running executable.
pub fn program_digest() -> Result<Digest, Failure> {
    let path = std::env::current_exe().map_err(|e| Failure::io("the running program", &e))?;
    Digest::of_file(&path).map_err(|e| Failure::io(path.display(), &e))
}
