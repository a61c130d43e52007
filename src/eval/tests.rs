//! Against lm-eval: the same prompts, hashes, token ids and metrics over whole splits, with a bigram as the model.
//!
//! Reference: tests/golden/lm_eval/lm_eval_golden.py, run with lm-eval 0.4.13 and transformers 5.17.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::*;
use crate::base::{env_vars, python};
use crate::model::tokenizer::Tokenizer;
use crate::record::eval::{EvalRecord, ItemError, ItemOrder, TaskStatus};
use crate::record::provenance::Provenance;
use crate::record::score::{EngineIdentity, ScoreRequest, ScoreResult};
use crate::record::serve::Confirmation;
use crate::suite;

/// ln p(token | previous) = −((7 previous + 13 token) mod 251 + 1) / 64; greedy if (previous + token) mod 3 = 0.
struct Bigram {
    max_len: usize,
    fail_every: Option<usize>,
}

impl Scorer for Bigram {
    fn identity(&self) -> EngineIdentity {
        EngineIdentity {
            engine: "bigram".to_owned(),
            device: "cpu".to_owned(),
            kernel_path: "test".to_owned(),
            checkpoint_digest: None,
            identity_proven: true,
            tokenizer_digest: None,
        }
    }

    fn max_len(&self) -> usize {
        self.max_len
    }

    fn score(&self, requests: &[ScoreRequest], progress: OnDone<'_>) -> Vec<Result<ScoreResult, ItemError>> {
        let answer = |(i, request): (usize, &ScoreRequest)| {
            progress(1);
            if self.fail_every.is_some_and(|n| i % n == 0) {
                return Err(ItemError { status: Some(503), transient: true, message: "busy".to_owned() });
            }
            let pairs = request.tokens[request.context_len - 1..].windows(2);
            let pairs: Vec<(u32, u32)> = pairs.map(|p| (p[0], p[1])).collect();
            let logprob = |&(p, t): &(u32, u32)| -(((7 * p + 13 * t) % 251 + 1) as f32) / 64.0;
            Ok(ScoreResult {
                token_logprobs: pairs.iter().map(logprob).collect(),
                token_is_greedy: pairs.iter().map(|(p, t)| (p + t) % 3 == 0).collect(),
            })
        };
        requests.iter().enumerate().map(answer).collect()
    }
}

fn manifest() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn shared(name: &str) -> Option<PathBuf> {
    let path = manifest().join("../shared").join(name);
    path.exists().then_some(path)
}

/// SmolLM2-135M: where DAY0_SMOLLM2 says, else `target/models/smollm2`.
fn smollm2() -> Option<PathBuf> {
    let default = || manifest().join("target/models/smollm2");
    let dir = env_vars::get_os(env_vars::DAY0_SMOLLM2).map_or_else(default, PathBuf::from);
    dir.join("model.safetensors").exists().then_some(dir)
}

fn tokenizer(name: &str) -> Option<Tokenizer> {
    let dir = match name {
        "stories260k" => shared("models/stories260k")?,
        _ => smollm2()?,
    };
    dir.join("tokenizer.json").exists().then(|| Tokenizer::load(&dir).unwrap())
}

fn sha(value: &Value) -> String {
    crate::base::digest::sha256_hex(python::json_dumps(value, None).as_bytes())
}

fn load(task: &str) -> Option<std::sync::Arc<suite::Task>> {
    let (name, data) = if task.starts_with("edges") {
        let dir = manifest().join("tests/golden/lm_eval");
        (dir.join(format!("{task}.yaml")).display().to_string(), dir)
    } else {
        (task.to_owned(), shared("data")?)
    };
    Some(suite::load(&name, Some(&data)).unwrap().tasks.remove(0))
}

#[test]
fn same_as_lm_eval() {
    let golden = include_str!("../../tests/golden/lm_eval/lm_eval_golden.jsonl").lines();
    for case in golden.map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let Some(name) = case["task"].as_str() else { continue };
        let label = format!("{name} with {} and {} shots", case["tokenizer"], case["num_fewshot"]);
        let (Some(task), Some(tokenizer)) = (load(name), tokenizer(case["tokenizer"].as_str().unwrap()))
        else {
            eprintln!("skipped: {label}: ../shared or target/models is not there");
            continue;
        };
        let number = |key: &str| case[key].as_u64().map(|n| n as usize);
        let options = EvalOptions {
            limit: number("limit"),
            num_fewshot: number("num_fewshot"),
            apply_chat_template: case["chat"].as_bool().unwrap(),
            ..EvalOptions::new(number("max_len").unwrap())
        };
        let prepared = prepare(&task, &tokenizer, &options).unwrap();
        assert_eq!(Some(prepared.items.len()), number("n"), "{label}");
        check_texts_and_tokens(&label, &prepared, &case);
        check_metrics(&label, &prepared, &case);
    }
}

/// All 57 subjects of MMLU with five examples, and the five groups over them, in results that lm-eval's readers take.
#[test]
fn mmlu_groups_as_lm_eval() {
    let golden = include_str!("../../tests/golden/lm_eval/lm_eval_golden.jsonl").lines();
    let mut cases = golden.map(|line| serde_json::from_str::<Value>(line).unwrap());
    let case = cases.find(|case| case["group"] == "mmlu").unwrap();
    let (Some(data), Some(tokenizer)) = (shared("data"), tokenizer("smollm2")) else {
        return eprintln!("skipped: ../shared is not there, or DAY0_SMOLLM2 names no model");
    };
    let number = |key: &str| case[key].as_u64().map(|n| n as usize);
    let max_len = number("max_len").unwrap();
    let suite = suite::load("mmlu", Some(&data)).unwrap();
    let options = EvalOptions {
        limit: number("limit"),
        num_fewshot: number("num_fewshot"),
        ..EvalOptions::new(max_len)
    };
    let scorer = Bigram { max_len, fail_every: None };
    let prepared: Vec<PreparedTask> =
        suite.tasks.iter().map(|task| prepare(task, &tokenizer, &options).unwrap()).collect();
    assert_eq!(prepared.len(), 57);
    assert_eq!(prepared.iter().map(|p| p.full_split).sum::<usize>(), 14042);
    let record =
        |p: &PreparedTask| task_record(p, score_items(&scorer, &all_items(p), &|_| ()), TaskStatus::Success);
    let record = eval_record(&scorer, prepared.iter().map(record).collect());
    let info = OutputInfo { model_name: "bigram", options: &options, groups: &suite.groups };
    let ours = results(&record, &prepared, &info);
    for (group, metrics) in case["groups"].as_object().unwrap() {
        for (key, theirs) in metrics.as_object().unwrap() {
            let (a, b) = (ours["groups"][group][key].as_f64().unwrap(), theirs.as_f64().unwrap());
            assert!((a - b).abs() <= 1e-12, "{group} {key}: {a}, lm-eval {b}");
        }
    }
    assert_eq!(ours["group_subtasks"]["mmlu"][1], "mmlu_other");
    assert_eq!(ours["versions"]["mmlu"], "2");
}

fn check_texts_and_tokens(label: &str, prepared: &PreparedTask, case: &Value) {
    let rolling = prepared.task.config.output_type == suite::OutputType::LoglikelihoodRolling;
    let mut arguments = Vec::new();
    let mut tokens = Vec::new();
    for item in &prepared.items {
        let texts = item
            .requests
            .iter()
            .map(|r| if rolling { json!([r.continuation]) } else { json!([r.context, r.continuation]) });
        arguments.push(texts.collect::<Value>());
        tokens
            .extend(item.requests.iter().flat_map(|r| &r.windows).map(|w| json!([w.tokens, w.context_len])));
    }
    assert_eq!(sha(&arguments.into()), case["arguments"], "{label}: texts");
    if let Some(all) = case["all_tokens"].as_array() {
        for (i, (ours, theirs)) in tokens.iter().zip(all).enumerate() {
            assert_eq!(ours, theirs, "{label}: tokens of request {i}");
        }
    }
    assert_eq!(sha(&tokens.into()), case["tokens"], "{label}: tokens");
}

fn check_metrics(label: &str, prepared: &PreparedTask, case: &Value) {
    let scorer = Bigram { max_len: case["max_len"].as_u64().unwrap() as usize, fail_every: None };
    let all = all_items(prepared);
    let done = AtomicUsize::new(0);
    let count = |n| {
        done.fetch_add(n, Ordering::Relaxed);
    };
    // Two waves give what one would.
    let (first, second) = all.split_at(all.len() / 3);
    let mut items = score_items(&scorer, second, &count);
    items.extend(score_items(&scorer, first, &count));
    assert_eq!(done.load(Ordering::Relaxed), prepared.num_requests(), "{label}");
    let record = task_record(prepared, items, TaskStatus::Success);
    let dir = tempfile::tempdir().unwrap();
    let options = EvalOptions::new(scorer.max_len());
    let info = OutputInfo { model_name: "bigram", options: &options, groups: &[] };
    let record = eval_record(&scorer, vec![record]);
    write_outputs(dir.path(), &record, std::slice::from_ref(prepared), &info).unwrap();
    let results: Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("results.json")).unwrap()).unwrap();
    assert_eq!(results["task_hashes"][prepared.name()], case["task_hash"], "{label}: documents and prompts");
    let ours = &results["results"][prepared.name()];
    for (key, theirs) in case["metrics"].as_object().unwrap() {
        let ours = &ours[key];
        match (ours.as_f64(), theirs.as_f64()) {
            (Some(a), Some(b)) => {
                assert!((a - b).abs() <= 1e-9 * b.abs(), "{label}: {key}: {a}, lm-eval {b}");
            }
            _ => assert_eq!(ours, theirs, "{label}: {key}"),
        }
    }
}

fn eval_record(scorer: &dyn Scorer, tasks: Vec<crate::record::eval::TaskRecord>) -> EvalRecord {
    EvalRecord {
        schema_version: crate::record::SCHEMA_VERSION,
        arm: "baseline".to_owned(),
        identity: scorer.identity(),
        tasks: tasks.into_iter().map(|t| (t.task.clone(), t)).collect::<BTreeMap<_, _>>(),
        groups: BTreeMap::new(),
        confirmations: Vec::new(),
        provenance: Provenance::new(crate::base::threads::detect(Some(1))),
    }
}

fn all_items(prepared: &PreparedTask) -> Vec<ItemRef<'_>> {
    (0..prepared.items.len()).map(|index| (prepared, index)).collect()
}

fn edges() -> Option<PreparedTask> {
    let tokenizer = tokenizer("stories260k")?;
    Some(prepare(&load("edges")?, &tokenizer, &EvalOptions::new(64)).unwrap())
}

#[test]
fn failed_items_have_no_score_and_a_reason() {
    let Some(prepared) = edges() else { return eprintln!("skipped: ../shared is not there") };
    let scorer = Bigram { max_len: 64, fail_every: Some(7) };
    let items = score_items(&scorer, &all_items(&prepared), &|_| ());
    let record = task_record(&prepared, items.clone(), TaskStatus::Success);
    assert!(record.failed() > 0 && record.scored() > 0);
    assert_eq!(record.expected, record.items.len());
    for item in &record.items {
        assert_eq!(item.error.is_some(), item.values.is_empty());
        assert_eq!(item.error.is_some(), item.loglikelihoods.is_empty());
    }
    // The items that did not fail have the scores that they have when none fails.
    let healthy = score_items(&Bigram { max_len: 64, fail_every: None }, &all_items(&prepared), &|_| ());
    for (a, b) in items.iter().zip(&healthy).filter(|(a, _)| a.error.is_none()) {
        assert_eq!(a, b);
    }
    let none = task_record(&prepared, Vec::new(), TaskStatus::Running);
    assert!(none.metrics.is_empty());
}

/// An engine that breaks its contract.
struct Broken(fn(usize) -> Option<ScoreResult>);

impl Scorer for Broken {
    fn identity(&self) -> EngineIdentity {
        Bigram { max_len: 1, fail_every: None }.identity()
    }

    fn max_len(&self) -> usize {
        64
    }

    fn score(&self, requests: &[ScoreRequest], _: OnDone<'_>) -> Vec<Result<ScoreResult, ItemError>> {
        requests.iter().filter_map(|r| (self.0)(r.tokens.len() - r.context_len)).map(Ok).collect()
    }
}

#[test]
fn answers_that_cannot_be_right_are_errors() {
    let Some(prepared) = edges() else { return eprintln!("skipped: ../shared is not there") };
    let message = |scorer: Broken| {
        let items = score_items(&scorer, &[(&prepared, 0)], &|_| ());
        items[0].error.clone().unwrap().message
    };
    assert!(message(Broken(|_| None)).contains("no result"));
    let short =
        |n: usize| Some(ScoreResult { token_logprobs: vec![-1.0; n + 1], token_is_greedy: vec![true; n] });
    assert!(message(Broken(short)).contains("log-probabilities for"));
    let nan =
        |n: usize| Some(ScoreResult { token_logprobs: vec![f32::NAN; n], token_is_greedy: vec![true; n] });
    assert!(message(Broken(nan)).contains("not finite"));
}

#[test]
fn a_permutation_is_a_sample_of_the_same_items() {
    let (Some(tokenizer), Some(task)) = (tokenizer("stories260k"), load("edges")) else {
        return eprintln!("skipped: ../shared is not there");
    };
    let full = prepare(&task, &tokenizer, &EvalOptions::new(64)).unwrap();
    let order = ItemOrder::Permuted { seed: 7 };
    let options = EvalOptions { limit: Some(5), order, ..EvalOptions::new(64) };
    let sample = prepare(&task, &tokenizer, &options).unwrap();
    // Reference: CPython, r = random.Random(7); l = list(range(14)); r.shuffle(l); l[:5].
    let ids: Vec<usize> = sample.items.iter().map(|i| i.doc_id).collect();
    assert_eq!(ids, [3, 11, 13, 7, 9]);
    for item in &sample.items {
        assert_eq!(item, &full.items[item.doc_id]);
    }
    assert_eq!((sample.limited_by.as_str(), sample.full_split), ("--limit 5", 14));
    assert_eq!(full.limited_by, "");
    assert_eq!(sample.digest, full.digest);
}

#[test]
fn requests_that_cannot_be_scored_are_named() {
    let Some(tokenizer) = tokenizer("smollm2") else {
        return eprintln!("skipped: target/models is not there");
    };
    let problem = |context: &str, choice: &str, max_len: usize| {
        let dir = tempfile::tempdir().unwrap();
        let yaml = include_str!("../../tests/golden/lm_eval/edges.yaml").replace("acc_mutual_info", "acc");
        let row = json!({"context": context, "choices": [choice], "gold": 0}).to_string();
        let path = dir.path().join("edges.yaml");
        crate::base::atomic::write(&path, yaml.as_bytes()).unwrap();
        crate::base::atomic::write(&dir.path().join("edges.test.jsonl"), row.as_bytes()).unwrap();
        let suite = suite::load(&path.display().to_string(), Some(dir.path())).unwrap();
        let prepared = prepare(&suite.tasks[0], &tokenizer, &EvalOptions::new(max_len)).unwrap();
        // Nothing is sent, and the item counts as failed with its reason.
        assert_eq!(prepared.num_requests(), 0);
        let scorer = Bigram { max_len, fail_every: None };
        let item = score_items(&scorer, &[(&prepared, 0)], &|_| ()).remove(0);
        assert!(item.values.is_empty() && item.loglikelihoods.is_empty());
        let error = item.error.unwrap();
        assert!(!error.transient);
        error.message
    };
    // The merge of both parts has as many tokens as the context alone.
    assert!(problem("unbeliev", "able", 64).ends_with("the continuation has no token of its own"));
    assert!(problem(" \n", "x", 64).contains("request 0: the context is only white space"));
    assert!(problem("a", " one two three four five", 3).ends_with("has 5 tokens, but the model takes 3"));
}

/// An engine that stops after some requests, as a kill would, or that turns out to be another one.
struct Fragile {
    scored: AtomicUsize,
    confirmations: AtomicUsize,
    changes_after: usize,
}

impl Fragile {
    fn new(changes_after: usize) -> Self {
        Self { scored: AtomicUsize::new(0), confirmations: AtomicUsize::new(0), changes_after }
    }
}

impl Scorer for Fragile {
    fn identity(&self) -> EngineIdentity {
        Bigram { max_len: 64, fail_every: None }.identity()
    }

    fn max_len(&self) -> usize {
        64
    }

    fn confirm(&self) -> Result<Option<Confirmation>, ItemError> {
        if self.confirmations.fetch_add(1, Ordering::Relaxed) < self.changes_after {
            return Ok(None);
        }
        Err(ItemError { status: Some(200), transient: false, message: "another one answers".to_owned() })
    }

    fn score(&self, requests: &[ScoreRequest], progress: OnDone<'_>) -> Vec<Result<ScoreResult, ItemError>> {
        self.scored.fetch_add(requests.len(), Ordering::Relaxed);
        Bigram { max_len: 64, fail_every: None }.score(requests, progress)
    }
}

#[test]
fn nothing_is_scored_twice_and_nothing_by_another_engine() {
    let (Some(task), Some(tokenizer)) = (load("arc_easy"), tokenizer("stories260k")) else {
        return eprintln!("skipped: ../shared is not there");
    };
    let options = EvalOptions { limit: Some(300), ..EvalOptions::new(512) };
    let prepared = prepare(&task, &tokenizer, &options).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("items.jsonl");
    let open = |arm: &str| Journal::open(&path, arm, &Fragile::new(0).identity()).unwrap();
    let run = |scorer: &Fragile, arm: &str| {
        let journal = open(arm);
        score_items_once(scorer, &all_items(&prepared), &journal, &|_| ()).map(|scored| scored.items)
    };
    // The second chunk of 128 may have been answered by another engine: nothing of it is kept.
    let swapped = Fragile::new(1);
    let error = run(&swapped, "a").unwrap_err();
    assert_eq!(
        crate::record::Classified::failure_class(&error),
        crate::record::FailureClass::ComparabilityFailed
    );
    let kept = std::fs::read_to_string(&path).unwrap();
    assert_eq!(kept.lines().count(), 128);
    // Half a line, a changed digit and a line of something else are not there.
    let mut lines: Vec<&str> = kept.lines().collect();
    let changed = lines[5].replacen("\"doc_id\":5", "\"doc_id\":6", 1);
    assert_ne!(changed, lines[5]);
    lines[5] = &changed;
    let damaged = format!("{}\n{}", lines.join("\n"), &lines[3][..lines[3].len() / 2]);
    crate::base::atomic::write(&path, damaged.as_bytes()).unwrap();
    let whole = Fragile::new(usize::MAX);
    let resumed = run(&whole, "a").unwrap();
    assert_eq!(resumed, score_items(&Fragile::new(0), &all_items(&prepared), &|_| ()));
    let pending: usize =
        prepared.items[128..].iter().chain([&prepared.items[5]]).map(PreparedItem::num_windows).sum();
    assert_eq!(whole.scored.load(Ordering::Relaxed), pending);
    let again = Fragile::new(0);
    assert_eq!(run(&again, "a").unwrap(), resumed);
    assert_eq!(again.scored.load(Ordering::Relaxed), 0);
    // Another arm takes nothing from it.
    let other = Fragile::new(usize::MAX);
    run(&other, "b").unwrap();
    assert_eq!(other.scored.load(Ordering::Relaxed), prepared.num_requests());
}

#[test]
fn an_engine_that_is_down_is_asked_once() {
    let (Some(task), Some(tokenizer)) = (load("arc_easy"), tokenizer("stories260k")) else {
        return eprintln!("skipped: ../shared is not there");
    };
    let options = EvalOptions { limit: Some(300), ..EvalOptions::new(512) };
    let prepared = prepare(&task, &tokenizer, &options).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let down = Bigram { max_len: 512, fail_every: Some(1) };
    let journal = Journal::open(&dir.path().join("items.jsonl"), "a", &down.identity()).unwrap();
    let done = AtomicUsize::new(0);
    let items = score_items_once(&down, &all_items(&prepared), &journal, &|n| {
        done.fetch_add(n, Ordering::Relaxed);
    });
    let items = items.unwrap().items;
    assert_eq!(items.len(), 300);
    assert!(items.iter().all(|i| i.error.as_ref().is_some_and(|e| e.status == Some(503) && e.transient)));
    let first: usize = prepared.items[..128].iter().map(PreparedItem::num_windows).sum();
    assert_eq!(done.load(Ordering::Relaxed), first);
    assert_eq!(std::fs::read(dir.path().join("items.jsonl")).unwrap(), b"", "failed items stay pending");
}

#[test]
fn ties_go_to_the_first() {
    assert_eq!(argmax(&[-1.0, -0.5, -0.5, -2.0]), 1);
    assert_eq!(argmax(&[-1.0]), 0);
}

/// Reference: lm-eval 0.4.13, `pooled_sample_stderr`, `unweighted_mean_stderr` and `aggregate_subtask_metrics` on
/// means 0.5 and 0.25 with standard errors 0.05 and 0.03 over 100 and 200 items.
#[test]
fn groups_as_lm_eval() {
    let task = |name: &str, value, stderr, n: usize| {
        let metric = crate::record::eval::Metric { value, stderr: Some(stderr), higher_is_better: true };
        let item = |doc_id| crate::record::eval::ItemRecord {
            doc_id,
            prompt_digest: crate::base::digest::Digest::of(b""),
            token_digest: crate::base::digest::Digest::of(b""),
            loglikelihoods: vec![0.0],
            is_greedy: vec![true],
            values: BTreeMap::new(),
            weight: 1.0,
            gold: None,
            target_digest: None,
            cluster: None,
            error: None,
        };
        let record = crate::record::eval::TaskRecord {
            task: name.to_owned(),
            version: "1.0".to_owned(),
            task_digest: crate::base::digest::Digest::of(b""),
            status: TaskStatus::Success,
            expected: n,
            full_split: n,
            limited_by: String::new(),
            order: None,
            truncated: 0,
            items: (0..n).map(item).collect(),
            primary_metric: crate::record::eval::MetricInfo {
                name: "acc".to_owned(),
                higher_is_better: true,
                scale: Some(1.0),
            },
            metrics: BTreeMap::from([("acc".to_owned(), metric)]),
            visit: None,
        };
        (name.to_owned(), record)
    };
    let tasks = BTreeMap::from([task("a", 0.5, 0.05, 100), task("b", 0.25, 0.03, 200)]);
    let group = |weight_by_size| suite::Group {
        name: "g".to_owned(),
        alias: "g".to_owned(),
        members: vec!["a".to_owned(), "b".to_owned()],
        tasks: vec!["a".to_owned(), "b".to_owned()],
        aggregates: vec![suite::GroupMetric { metric: "acc".to_owned(), weight_by_size }],
        advisory: Vec::new(),
        version: "N/A".to_owned(),
    };
    let check = |by_size, value: f64, stderr: f64| {
        let (metrics, n) = aggregate_group(&group(by_size), &tasks);
        assert_eq!(n, 300);
        assert!((metrics["acc"].value - value).abs() < 1e-12);
        assert!((metrics["acc"].stderr.unwrap() - stderr).abs() < 1e-12, "{:?}", metrics["acc"].stderr);
    };
    check(true, 0.3333333333333333, 0.026029152474168076);
    check(false, 0.375, 0.029154759474226504);
}

fn model(dir: &Path) -> (Tokenizer, local::LocalScorer) {
    let checkpoint = crate::checkpoint::Checkpoint::open(dir).unwrap();
    let options = crate::engine::EngineOptions::new(crate::base::threads::detect(None));
    let engine = crate::engine::Engine::load(&checkpoint, &options).unwrap();
    (Tokenizer::load(dir).unwrap(), local::LocalScorer::new(std::sync::Arc::new(engine)))
}

/// Reference: lm-eval 0.4.13, hf backend in float32 on the checkpoint imported from the Q4_1 GGUF in bf16:
/// `lm_eval --model hf --model_args pretrained=DIR,dtype=float32,softmax_dtype=float32 --tasks arc_easy --limit 200
/// --log_samples`, of which each line here keeps the responses and the accuracies. It gave acc 0.515, acc_norm 0.46.
fn scores_as_lm_eval(limit: usize) {
    let (Some(task), Some(dir)) = (load("arc_easy"), smollm2()) else {
        return eprintln!("skipped: ../shared is not there, or DAY0_SMOLLM2 names no model");
    };
    let (tokenizer, scorer) = model(&dir);
    let options = EvalOptions { limit: Some(limit), ..EvalOptions::new(scorer.max_len()) };
    let prepared = prepare(&task, &tokenizer, &options).unwrap();
    let items = score_items(&scorer, &all_items(&prepared), &|_| ());
    let golden = include_str!("../../tests/golden/lm_eval/smollm2_arc_easy.jsonl").lines();
    let mut worst: f64 = 0.0;
    let (mut greedy, mut accuracies) = (0, 0);
    for (item, line) in items.iter().zip(golden) {
        let theirs: Value = serde_json::from_str(line).unwrap();
        let lls: Vec<f64> = serde_json::from_value(theirs["loglikelihoods"].clone()).unwrap();
        assert_eq!(item.loglikelihoods.len(), lls.len());
        for (a, b) in item.loglikelihoods.iter().zip(&lls) {
            worst = worst.max((a - b).abs() / b.abs().max(10.0));
        }
        greedy += usize::from(json!(item.is_greedy) != theirs["greedy"]);
        accuracies += ["acc", "acc_norm"].iter().filter(|m| json!(item.values[**m]) != theirs[**m]).count();
    }
    let record = task_record(&prepared, items, TaskStatus::Success);
    let value = |name: &str| record.metrics[name].value;
    println!("acc {}, acc_norm {}, worst relative difference {worst:.1e}", value("acc"), value("acc_norm"));
    assert!(worst < 1e-4, "{worst:e}");
    assert_eq!((greedy, accuracies), (0, 0), "greedy flags and accuracies that differ");
}

/// Reference: tests/golden/lm_eval/lm_eval_samples.py, lm-eval's float32 log-likelihoods on stories260k: all output
/// types, a model that adds BOS, and contexts that are cut.
#[test]
fn samples_as_lm_eval() {
    let Some(dir) = shared("models/stories260k") else { return eprintln!("skipped: ../shared is not there") };
    let (tokenizer, scorer) = model(&dir);
    let mut by_task: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for line in include_str!("../../tests/golden/lm_eval/lm_eval_stories260k.jsonl").lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        by_task.entry(case["task"].as_str().unwrap().to_owned()).or_default().push(case);
    }
    assert_eq!(by_task.len(), 8);
    for (name, cases) in by_task {
        let task = load(&name).unwrap();
        let last = cases.iter().map(|c| c["doc_id"].as_u64().unwrap()).max().unwrap() as usize;
        let options = EvalOptions { limit: Some(last + 1), ..EvalOptions::new(scorer.max_len()) };
        let prepared = prepare(&task, &tokenizer, &options).unwrap();
        let asked: Vec<ItemRef<'_>> =
            cases.iter().map(|c| (&prepared, c["doc_id"].as_u64().unwrap() as usize)).collect();
        let items = score_items(&scorer, &asked, &|_| ());
        for (item, case) in items.iter().zip(&cases) {
            check_sample(&prepared, item, case);
        }
    }
}

fn check_sample(prepared: &PreparedTask, item: &crate::record::eval::ItemRecord, case: &Value) {
    let label = format!("{} document {}", prepared.name(), item.doc_id);
    let ours = sample(prepared, &prepared.items[item.doc_id], item);
    let hashes = ["doc_hash", "prompt_hash", "target_hash"].map(|h| ours[h].clone());
    assert_eq!(json!(hashes), case["hashes"], "{label}");
    for (a, b) in item.loglikelihoods.iter().zip(case["loglikelihoods"].as_array().unwrap()) {
        let b = b.as_f64().unwrap();
        assert!((a - b).abs() <= 1e-3_f64.max(1e-5 * b.abs()), "{label}: {a}, lm-eval {b}");
    }
    if case["is_greedy"] != json!([]) {
        assert_eq!(json!(item.is_greedy), case["is_greedy"], "{label}");
    }
    for (metric, theirs) in case["metrics"].as_object().unwrap() {
        match (&ours[metric], theirs) {
            (Value::Number(a), Value::Number(b)) => {
                let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
                assert!((a - b).abs() <= 1e-4, "{label}: {metric}: {a}, lm-eval {b}");
            }
            // Perplexities: log-likelihood and number of units.
            (Value::Array(a), Value::Array(b)) => assert_eq!(a[1], b[1], "{label}: {metric}"),
            (a, b) => panic!("{label}: {metric}: {a}, lm-eval {b}"),
        }
    }
}

/// All 200 items take minutes without optimization.
#[test]
fn items_score_as_lm_eval() {
    scores_as_lm_eval(if cfg!(debug_assertions) { 10 } else { 200 });
}
