//! `day0 eval`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::{Settings, output};
use crate::base::digest::Digest;
use crate::base::{env_vars, json, progress};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::source;
use crate::device::cuda::DeviceChoice;
use crate::engine::{Engine, EngineOptions, EnginePlace};
use crate::eval::endpoint::{ApiKey, EndpointOptions, EndpointScorer};
use crate::eval::local::LocalScorer;
use crate::eval::probe::{self, ProbeTarget};
use crate::eval::{self, EvalOptions, OutputInfo, PreparedTask, Scorer};
use crate::exec::{Graph, Ledger, LocalExecutor};
use crate::gate;
use crate::model::tokenizer::Tokenizer;
use crate::ops::kernel_path::ComputeDtype;
use crate::record::eval::{EvalRecord, Metric};
use crate::record::serve::FingerprintReading;
use crate::record::{Failure, FailureClass, Provenance};
use crate::release::score_units::{EvalJob, OpenJournal};
use crate::release::{ArmEngine, keys, prepare, program_digest};
use crate::suite::{self, Group};

/// Nats by which the fixed prompts may differ when an evaluation is resumed: no two models are that near. An engine that
/// repeats itself less exactly is asked everything again.
const SAME_READING_NATS: f64 = 1e-3;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Directory, .gguf file, hub id org/name[@revision], or day0-tiny; of an endpoint the checkpoint that it serves.
    #[arg(long, value_name = "MODEL", required_unless_present = "endpoint")]
    model: Option<String>,
    /// OpenAI-compatible endpoint with echoed log-probs.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Model to ask the endpoint for; the first one it lists by default.
    #[arg(long, value_name = "NAME", requires = "endpoint")]
    served_model: Option<String>,
    /// Prompts in one request to the endpoint.
    #[arg(long, value_name = "N", requires = "endpoint", value_parser = clap::value_parser!(u64).range(1..))]
    batch_size: Option<u64>,
    /// Requests to the endpoint at once.
    #[arg(long, value_name = "N", requires = "endpoint", value_parser = clap::value_parser!(u64).range(1..))]
    concurrency: Option<u64>,
    /// Longest time one request to the endpoint may take.
    #[arg(long, value_name = "SECONDS", requires = "endpoint", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: Option<u64>,
    /// Model directory whose tokenizer the endpoint's model uses [default: --model's]. Without --model the checkpoint is
    /// what the endpoint says, and unknown if it says nothing.
    #[arg(long, value_name = "MODEL", requires = "endpoint")]
    tokenizer: Option<String>,
    /// File holding the endpoint's API key.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Suites or tasks, comma-separated.
    #[arg(long, value_name = "S")]
    suite: String,
    /// Only the first N items of each task.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Number of examples before each question, over the task's own.
    #[arg(long, value_name = "N")]
    num_fewshot: Option<usize>,
    /// Seed that draws the examples.
    #[arg(long, value_name = "N", default_value_t = suite::DEFAULT_FEWSHOT_SEED)]
    seed: u64,
    /// Put prompts into the model's chat template.
    #[arg(long)]
    apply_chat_template: bool,
    /// Directory of local evaluation data.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// What linear layers multiply; bf16 is faster.
    #[arg(long, value_parser = super::dtype_parser(), default_value = "f32", conflicts_with = "endpoint")]
    dtype: ComputeDtype,
    /// Where the built-in engine computes: cpu, auto, cuda or cuda:N,M.
    #[arg(long, default_value = "cpu", value_name = "DEVICE", conflicts_with = "endpoint")]
    device: DeviceChoice,
    /// New tokens of one forward pass of the built-in engine.
    #[arg(long, value_name = "N", conflicts_with = "endpoint", value_parser = clap::value_parser!(u64).range(1..))]
    batch_tokens: Option<u64>,
    /// Print the requests of the first N items of each task before scoring.
    #[arg(long, value_name = "N", default_value_t = 0)]
    show_prompts: usize,
    /// Directory to write results and samples to; a killed evaluation resumes there.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(super) fn run(arguments: &Arguments, settings: &Settings) -> Result<u8, Failure> {
    let cache = env_vars::cache_dir();
    let suite = suite::load(&arguments.suite, arguments.data.as_deref())?;
    let resolve = |name: &String| source::resolve(name, &cache);
    let model = arguments.model.as_ref().map(resolve).transpose()?;
    let checkpoint = model.as_ref().map(|model| Checkpoint::open(&model.dir)).transpose()?;
    let declared = checkpoint.as_ref().map(Checkpoint::digest).transpose()?;
    let of_tokenizer = arguments.tokenizer.as_ref().map(resolve).transpose()?;
    let dir = of_tokenizer.as_ref().or(model.as_ref()).map(|model| &model.dir);
    let dir = dir.ok_or_else(|| {
        Failure::config(
            "--endpoint needs --model, the checkpoint that it serves, or at least its --tokenizer",
        )
    })?;
    let named = arguments.model.as_deref().or(arguments.tokenizer.as_deref()).unwrap_or_default();
    let tokenizer = Arc::new(Tokenizer::load(dir)?);
    let place = match &arguments.endpoint {
        None => EnginePlace::open(&arguments.device)?,
        Some(_) => EnginePlace::default(),
    };
    let provenance = provenance(settings, &place, arguments.dtype);
    let (scorer, fingerprint) = match (&arguments.endpoint, &checkpoint) {
        (Some(url), _) => endpoint(arguments, url, declared.as_ref(), &tokenizer, &provenance)?,
        (None, Some(checkpoint)) => (built_in(arguments, checkpoint, &tokenizer, (settings, &place))?, None),
        (None, None) => return Err(Failure::config("--model is missing")),
    };
    let options = EvalOptions {
        limit: arguments.limit.map(|n| n as usize),
        num_fewshot: arguments.num_fewshot,
        fewshot_seed: arguments.seed,
        apply_chat_template: arguments.apply_chat_template,
        ..EvalOptions::new(scorer.max_len())
    };
    let tasks = prepare(&suite, &tokenizer, &options)?;
    for task in &tasks {
        announce(task, arguments.show_prompts);
    }
    let engine = match &arguments.endpoint {
        None => ArmEngine::Local { dtype: arguments.dtype, place },
        Some(url) => ArmEngine::Endpoint { url: url.clone(), api_key: None },
    };
    let checkpoint = declared.as_ref().map_or("not declared", Digest::as_str);
    let key = keys::arm(checkpoint, tokenizer.digest(), &program_digest()?, &engine);
    // An address says nothing about what answers there: scores of another model behind it are never taken over.
    let served = fingerprint.map(|now| reading_of(&arguments.out, now)).transpose()?;
    let key = served.map_or(key.clone(), |served| keys::derived(&format!("served/{served}"), &key));
    let job = EvalJob {
        arm: "eval".to_owned(),
        stage: "eval",
        tasks: &tasks,
        sequences: EvalJob::plain_waves(&tasks),
        info: OutputInfo { model_name: named, options: &options, groups: &suite.groups },
        decided_by: keys::evaluated(&key, &tasks),
        journal: OpenJournal::default(),
        key,
        scorer: Box::new(move |_| Ok(Arc::clone(&scorer))),
        diagnose: Box::new(|failure| failure),
        out: arguments.out.clone(),
        provenance,
    };
    execute(&job)?;
    let record: EvalRecord = json::read(&arguments.out.join("record.json"))?;
    report(&record, &suite.groups, settings)?;
    let decided = gate::run(&record);
    if let Some(class) = decided.failure_class {
        return Err(Failure::new(class, decided.detail));
    }
    Ok(0)
}

/// The common part of the record's origin.
fn provenance(settings: &Settings, place: &EnginePlace, dtype: ComputeDtype) -> Provenance {
    let mut provenance = Provenance::new(settings.threads.clone());
    if !place.is_cpu() {
        (provenance.device, provenance.kernel_path) = (place.device(), place.kernel_path(dtype));
    }
    provenance
}

fn execute(job: &EvalJob<'_>) -> Result<(), Failure> {
    let ledger = Ledger::open(&job.out.join("ledger.jsonl"))?;
    let mut graph = Graph::default();
    for wave in job.wave_ids() {
        graph.add(job.wave_node(wave, Vec::new(), false));
    }
    graph.add(job.merge_node("eval".to_owned(), job.wave_names()));
    let executor = LocalExecutor { retries_per_stage: 1, ..LocalExecutor::new(&ledger) };
    super::run_graph(&executor, &graph).map(|_| ())
}

fn built_in(
    arguments: &Arguments,
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    (settings, place): (&Settings, &EnginePlace),
) -> Result<Arc<dyn Scorer>, Failure> {
    let mut options =
        EngineOptions { dtype: arguments.dtype, ..EngineOptions::at(settings.threads.clone(), place) };
    options.max_batched_tokens = arguments.batch_tokens.map_or(options.max_batched_tokens, |n| n as usize);
    let engine =
        Engine::load_at(checkpoint, &options, place)?.with_tokenizer_digest(tokenizer.digest().clone());
    Ok(Arc::new(LocalScorer::new(Arc::new(engine))))
}

/// An endpoint that passed the log-prob self-test, with its fingerprint. It must not say that it serves another checkpoint
/// than the declared one.
fn endpoint(
    arguments: &Arguments,
    url: &str,
    declared: Option<&Digest>,
    tokenizer: &Arc<Tokenizer>,
    provenance: &Provenance,
) -> Result<(Arc<dyn Scorer>, Option<FingerprintReading>), Failure> {
    let options = endpoint_options(arguments, url)?;
    let record = probe::probe(&ProbeTarget {
        arm: "eval",
        options: &options,
        launched: false,
        directory: None,
        attempts: 1,
        command: String::new(),
        startup_timeout: Duration::from_secs(5),
        expected_digest: declared,
        text: &**tokenizer,
        tokenizer_digest: Some(tokenizer.digest()),
        provenance,
    });
    let report = gate::serve(&record);
    // What keeps an endpoint from answering says more than that it therefore does not name its checkpoint.
    let deciding = || report.findings.iter().filter(|f| f.decides());
    let blocking = deciding().find(|f| f.failure_class != FailureClass::ComparabilityFailed);
    if let Some(finding) = blocking.or_else(|| deciding().next()) {
        let failure = Failure::new(finding.failure_class, format!("{url}: {finding}"));
        return Err(failure.with_hint(finding.hint.clone()));
    }
    let scorer = EndpointScorer::connect(&options, record.identity.clone())?;
    let Some(fingerprint) = record.fingerprint else { return Ok((Arc::new(scorer), None)) };
    let start = fingerprint.start.clone();
    let scorer = scorer.watching(probe::fingerprint_prompts(&**tokenizer), Some(fingerprint))?;
    Ok((Arc::new(scorer), Some(start)))
}

/// Identifies the reading of the fixed prompts that the outcomes in `out` belong to: the one stored there if `now` is the
/// same, else `now`, which is stored.
fn reading_of(out: &Path, now: FingerprintReading) -> Result<Digest, Failure> {
    let path = out.join("fingerprint.json");
    let stored = json::read::<FingerprintReading>(&path).ok();
    let same = stored.filter(|stored| stored.distance(&now) <= SAME_READING_NATS);
    if same.is_none() {
        std::fs::create_dir_all(out).map_err(|e| Failure::io(out.display(), &e))?;
        json::write(&path, &now)?;
    }
    let reading = same.unwrap_or(now);
    Digest::of_json(&reading.loglikelihoods).map_err(|e| Failure::new(FailureClass::Unknown, e.to_string()))
}

fn endpoint_options(arguments: &Arguments, url: &str) -> Result<EndpointOptions, Failure> {
    let defaults = EndpointOptions::new(url);
    Ok(EndpointOptions {
        model: arguments.served_model.clone(),
        api_key: arguments.api_key_file.as_deref().map(ApiKey::from_file).transpose()?,
        batch_size: arguments.batch_size.map_or(defaults.batch_size, |n| n as usize),
        concurrency: arguments.concurrency.map_or(defaults.concurrency, |n| n as usize),
        timeout: arguments.timeout.map_or(defaults.timeout, Duration::from_secs),
        ..defaults
    })
}

/// Says what the task assumes, which items it cannot score, and what its first prompts look like.
fn announce(task: &PreparedTask, prompts: usize) {
    for note in &task.task.notes {
        progress::detail(&format!("{}: {note}", task.name()));
    }
    for (doc_id, problem) in task.problems() {
        progress::note(&format!("{}: document {doc_id} is not scored: {problem}", task.name()));
    }
    for item in task.items.iter().take(prompts) {
        for (index, request) in item.requests.iter().enumerate() {
            let (context, continuation) = (&request.context, &request.continuation);
            let tokens: Vec<_> = request.windows.iter().map(|w| (w.context_len, w.tokens.len())).collect();
            let name = task.name();
            progress::note(&format!(
                "{name} document {}, request {index}, (given, all) tokens {tokens:?}:\n{context}[[{continuation}]]",
                item.doc_id
            ));
        }
    }
}

fn report(record: &EvalRecord, groups: &[Group], settings: &Settings) -> Result<(), Failure> {
    if settings.json {
        return output::json(record);
    }
    output::line(&format!(
        "{:<24} {:>7}  {:<18} {:>10}  {:>8}",
        "task", "items", "metric", "value", "stderr"
    ));
    for (name, task) in &record.tasks {
        report_metrics(name, task.scored(), &task.metrics);
    }
    for group in groups.iter().filter(|g| !g.aggregates.is_empty()) {
        let (metrics, items) = eval::aggregate_group(group, &record.tasks);
        report_metrics(&format!("[{}]", group.name), items, &metrics);
    }
    Ok(())
}

fn report_metrics(name: &str, items: usize, metrics: &BTreeMap<String, Metric>) {
    for (metric, value) in metrics {
        let stderr = value.stderr.map_or_else(|| "N/A".to_owned(), |s| format!("{s:.4}"));
        output::line(&format!("{name:<24} {items:>7}  {metric:<18} {:>10.4}  {stderr:>8}", value.value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_belong_to_the_reading_they_were_made_with() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let reading = |value: f64| FingerprintReading {
            digest: Digest::of(b"the same, rounded"),
            loglikelihoods: vec![-10.0, value],
        };
        let first = reading_of(&out, reading(-20.05)).unwrap();
        // On either side of a rounding it is the same model, ...
        assert_eq!(reading_of(&out, reading(-20.0500001)).unwrap(), first);
        // ... and within one rounding another.
        let second = reading_of(&out, reading(-20.08)).unwrap();
        assert_ne!(second, first);
        assert_eq!(reading_of(&out, reading(-20.08)).unwrap(), second);
        std::fs::write(out.join("fingerprint.json"), "torn").unwrap();
        assert_eq!(reading_of(&out, reading(-20.08)).unwrap(), second);
    }
}
