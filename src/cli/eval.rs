//! `day0 eval`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::{Settings, output};
use crate::base::{env_vars, json};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::source;
use crate::engine::{Engine, EngineOptions};
use crate::eval::endpoint::{ApiKey, EndpointOptions, EndpointScorer};
use crate::eval::local::LocalScorer;
use crate::eval::probe::{self, ProbeTarget};
use crate::eval::{EvalOptions, OutputInfo, Scorer};
use crate::exec::{Graph, Ledger, LocalExecutor};
use crate::gate;
use crate::model::tokenizer::Tokenizer;
use crate::record::eval::EvalRecord;
use crate::record::{Failure, FailureClass, Provenance};
use crate::release::score_units::EvalJob;
use crate::release::{ArmEngine, keys, prepare, program_digest};
use crate::suite;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Directory, .gguf file, hub id org/name[@revision], or day0-tiny.
    #[arg(long, value_name = "MODEL", required_unless_present = "endpoint")]
    model: Option<String>,
    /// OpenAI-compatible endpoint with echoed log-probs.
    #[arg(long, value_name = "URL", requires = "tokenizer", conflicts_with = "model")]
    endpoint: Option<String>,
    /// Model directory whose tokenizer the endpoint's model uses.
    #[arg(long, value_name = "MODEL")]
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
    /// Put prompts into the model's chat template.
    #[arg(long)]
    apply_chat_template: bool,
    /// Directory of local evaluation data.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Directory to write results and samples to; a killed evaluation resumes there.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(super) fn run(arguments: &Arguments, settings: &Settings) -> Result<u8, Failure> {
    let cache = env_vars::cache_dir();
    let suite = suite::load(&arguments.suite, arguments.data.as_deref())?;
    let named = arguments.model.as_deref().or(arguments.tokenizer.as_deref()).unwrap_or_default();
    let model = source::resolve(named, &cache)?;
    let checkpoint = Checkpoint::open(&model.dir)?;
    let tokenizer = Arc::new(Tokenizer::load(&model.dir)?);
    let provenance = Provenance::new(settings.threads.clone());
    let scorer = scorer(arguments, &checkpoint, &tokenizer, settings, &provenance)?;
    let options = EvalOptions {
        limit: arguments.limit.map(|n| n as usize),
        num_fewshot: arguments.num_fewshot,
        apply_chat_template: arguments.apply_chat_template,
        ..EvalOptions::new(scorer.max_len())
    };
    let tasks = prepare(&suite, &tokenizer, &options)?;
    let engine = match &arguments.endpoint {
        None => ArmEngine::Local,
        Some(url) => ArmEngine::Endpoint { url: url.clone(), api_key: None },
    };
    let digest = checkpoint.digest()?;
    let job = EvalJob {
        arm: "eval".to_owned(),
        stage: "eval",
        tasks: &tasks,
        info: OutputInfo { model_name: named, options: &options, groups: &suite.groups },
        key: keys::arm(digest.as_str(), tokenizer.digest(), &program_digest()?, &engine),
        scorer: Box::new(move || Ok(Arc::clone(&scorer))),
        out: arguments.out.clone(),
        provenance,
    };
    execute(&job)?;
    let record: EvalRecord = json::read(&arguments.out.join("record.json"))?;
    report(&record, settings)?;
    let decided = gate::run(&record);
    if let Some(class) = decided.failure_class {
        return Err(Failure::new(class, decided.detail));
    }
    Ok(0)
}

fn execute(job: &EvalJob<'_>) -> Result<(), Failure> {
    let ledger = Ledger::open(&job.out.join("ledger.jsonl"))?;
    let mut graph = Graph::default();
    for wave in job.waves() {
        graph.add(job.wave_node(wave, Vec::new()));
    }
    graph.add(job.merge_node("eval".to_owned(), job.wave_names()));
    let executor =
        LocalExecutor { ledger: &ledger, shared: None, retries_per_stage: 1, observer: &|_, _| () };
    super::run_graph(&executor, &graph).map(|_| ())
}

/// The built-in engine, or an endpoint that passed the log-prob self-test.
fn scorer(
    arguments: &Arguments,
    checkpoint: &Checkpoint,
    tokenizer: &Arc<Tokenizer>,
    settings: &Settings,
    provenance: &Provenance,
) -> Result<Arc<dyn Scorer>, Failure> {
    let Some(url) = &arguments.endpoint else {
        let engine = Engine::load(checkpoint, &EngineOptions::new(settings.threads.clone()))?
            .with_tokenizer_digest(tokenizer.digest().clone());
        return Ok(Arc::new(LocalScorer::new(Arc::new(engine))));
    };
    let api_key = arguments.api_key_file.as_deref().map(ApiKey::from_file).transpose()?;
    let options = EndpointOptions { api_key, ..EndpointOptions::new(url) };
    let record = probe::probe(&ProbeTarget {
        arm: "eval",
        options: &options,
        launched: false,
        attempts: 1,
        command: String::new(),
        startup_timeout: std::time::Duration::from_secs(5),
        expected_digest: &checkpoint.digest()?,
        text: &**tokenizer,
        tokenizer_digest: Some(tokenizer.digest()),
        provenance,
    });
    let report = gate::serve(&record);
    // The served model may be any other than the tokenizer's: only health and log-probs matter here.
    let blocking =
        report.findings.iter().find(|f| f.decides() && f.failure_class != FailureClass::ComparabilityFailed);
    if let Some(finding) = blocking {
        let failure = Failure::new(finding.failure_class, format!("{url}: {finding}"));
        return Err(failure.with_hint(finding.hint.clone()));
    }
    Ok(Arc::new(EndpointScorer::connect(&options, record.identity.clone())?))
}

fn report(record: &EvalRecord, settings: &Settings) -> Result<(), Failure> {
    if settings.json {
        return output::json(record);
    }
    output::line(&format!(
        "{:<24} {:>7}  {:<18} {:>10}  {:>8}",
        "task", "items", "metric", "value", "stderr"
    ));
    for (name, task) in &record.tasks {
        for (metric, value) in &task.metrics {
            let stderr = value.stderr.map_or_else(|| "N/A".to_owned(), |s| format!("{s:.4}"));
            output::line(&format!(
                "{name:<24} {:>7}  {metric:<18} {:>10.4}  {stderr:>8}",
                task.scored(),
                value.value
            ));
        }
    }
    Ok(())
}
