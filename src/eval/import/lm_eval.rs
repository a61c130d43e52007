//! lm-eval's results and samples, and the samples that day0 writes in the same format.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::f64::consts::LN_2;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::metrics::{Inferred, Results, Score, directed, metric_info, scores};
use super::{ImportError, Imported, entries, lines};
use crate::base::digest::{Digest, DigestBuilder};
use crate::base::{json, python};
use crate::record::eval::{
    EvalRecord, GroupRecord, ItemOrder, ItemRecord, TaskRecord, TaskStatus, unknown_digest,
};

/// Metrics that decide where nobody names one, in order of preference.
const PREFERRED: [&str; 4] = ["acc", "exact_match", "bits_per_byte", "word_perplexity"];

/// Texts of one item, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemText {
    /// Context of the first request; the whole text of a rolling one.
    pub prompt: String,
    /// Continuations in request order.
    pub choices: Vec<String>,
    /// The right answer as the sample file has it.
    pub target: String,
}

/// Reads all tasks of a results file.
pub(super) fn read(
    dir: &Path,
    results: &Path,
    metric_of: &dyn Fn(&str) -> Option<String>,
) -> Result<Imported, ImportError> {
    let value: Value = json::read(results)?;
    let (mut tasks, mut inferred) = (BTreeMap::new(), Inferred::new());
    for name in value["configs"].as_object().into_iter().flatten().map(|(name, _)| name) {
        let Some(samples) = samples_of(dir, name)? else { continue };
        let file = Results { path: results, value: &value };
        tasks.insert(name.clone(), task(name, file, &samples, metric_of(name), &mut inferred)?);
    }
    if tasks.is_empty() {
        return Err(ImportError::NoItems(dir.to_path_buf()));
    }
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let engine = match value["day0_version"].as_str() {
        Some(_) => text(&value["model_source"]),
        None => format!("lm-eval {} {}", text(&value["lm_eval_version"]), text(&value["config"]["model"])),
    };
    let config = &value["config"];
    let model = serde_json::json!([config["model_args"], config["model_sha"], value["model_name"]]);
    let groups = groups(&value, &tasks);
    let note = |(what, tasks): (String, Vec<String>)| format!("inferred for {}: {what}", tasks.join(", "));
    let record = EvalRecord { groups, ..super::record(engine, &text(&config["device"]), &model, tasks) };
    Ok((record, inferred.into_iter().map(note).collect()))
}

/// Groups with the metrics that their scores combine. Results do not say how tasks count in them: by size if that gives
/// the stated score, alike if that does; a score that neither gives is left out.
fn groups(results: &Value, tasks: &BTreeMap<String, TaskRecord>) -> BTreeMap<String, GroupRecord> {
    let subtasks = &results["group_subtasks"];
    let record = |name: &String| {
        let mut members = tasks_below(subtasks, name, tasks, &mut BTreeSet::new());
        members.sort();
        let how = |(metric, (stated, _)): (String, Score)| {
            let parts: Option<Vec<(f64, f64)>> = members
                .iter()
                .map(|task| Some((tasks[task].metrics.get(&metric)?.value, tasks[task].scored() as f64)))
                .collect();
            let parts = parts?;
            let total: f64 = parts.iter().map(|(_, n)| n).sum();
            let by_size = parts.iter().map(|(value, n)| value * n).sum::<f64>() / total;
            let alike = parts.iter().map(|(value, _)| value).sum::<f64>() / parts.len() as f64;
            let is_stated = |value: f64| (value - stated).abs() <= 1e-9;
            match (is_stated(by_size), is_stated(alike)) {
                (true, _) => Some((metric, true)),
                (_, true) => Some((metric, false)),
                _ => None,
            }
        };
        let metrics = scores(&results["groups"][name]).into_iter().filter_map(how).collect();
        (name.clone(), GroupRecord { tasks: members, metrics, advisory: Vec::new() })
    };
    let names = subtasks.as_object().into_iter().flatten().map(|(name, _)| name);
    names.map(record).filter(|(_, group)| !group.tasks.is_empty()).collect()
}

/// Tasks below a group, each once; a group that holds itself ends there.
fn tasks_below<'a>(
    subtasks: &'a Value,
    name: &'a str,
    tasks: &BTreeMap<String, TaskRecord>,
    seen: &mut BTreeSet<&'a str>,
) -> Vec<String> {
    if !seen.insert(name) {
        return Vec::new();
    }
    if tasks.contains_key(name) {
        return vec![name.to_owned()];
    }
    let members = subtasks[name].as_array().into_iter().flatten().filter_map(Value::as_str);
    members.flat_map(|member| tasks_below(subtasks, member, tasks, seen)).collect()
}

/// The newest samples file of a task: `samples_<task>.jsonl` or `samples_<task>_<date>.jsonl`.
fn samples_of(dir: &Path, task: &str) -> Result<Option<PathBuf>, ImportError> {
    let is_samples = |path: &PathBuf| {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let rest = name.strip_prefix("samples_").and_then(|r| r.strip_prefix(task));
        rest.and_then(|r| r.strip_suffix(".jsonl"))
            // A date begins with the year; `_norm` would be another task.
            .is_some_and(|r| r.is_empty() || r.strip_prefix("_2").is_some_and(|d| d.contains('T')))
    };
    Ok(entries(dir)?.into_iter().rfind(is_samples))
}

fn task(
    name: &str,
    file: Results<'_>,
    samples: &Path,
    metric: Option<String>,
    inferred: &mut Inferred,
) -> Result<TaskRecord, ImportError> {
    let results = file.value;
    let scores = scores(&results["results"][name]);
    let stated = |wanted: &str| scores.contains_key(wanted).then(|| wanted.to_owned());
    let primary = metric
        .and_then(|m| stated(&m))
        .or_else(|| PREFERRED.iter().find_map(|m| stated(m)))
        .or_else(|| scores.keys().next().cloned())
        .unwrap_or_default();
    let (items, doc_hashes) = read_items(samples, &primary)?;
    let mut digest = DigestBuilder::default();
    let version = python::str(&results["versions"][name]);
    digest.field(format!("{name} {version} {}", results["n-shot"][name]).as_bytes());
    for hash in doc_hashes.values() {
        digest.field(hash.as_bytes());
    }
    let Planned { expected, full_split, limited_by, order } = planned(name, results, &items);
    Ok(TaskRecord {
        task: name.to_owned(),
        task_digest: digest.finish(),
        version,
        status: TaskStatus::Success,
        expected,
        full_split,
        limited_by,
        order,
        truncated: 0,
        primary_metric: metric_info(name, primary, file, &items, inferred)?,
        items,
        metrics: directed(scores, &results["higher_is_better"][name]),
        visit: None,
    })
}

/// The items of a samples file in ascending `doc_id`, and lm-eval's hash of each document.
fn read_items(
    samples: &Path,
    primary: &str,
) -> Result<(Vec<ItemRecord>, BTreeMap<usize, String>), ImportError> {
    let (mut items, mut doc_hashes) = (Vec::new(), BTreeMap::new());
    for (line, sample) in lines(samples)? {
        let wrong = |what: String| ImportError::Line { path: samples.to_path_buf(), line, what };
        let item = item(&sample, primary).map_err(wrong)?;
        // One line for each filter of a document; the first is the one that results name without a suffix.
        if let Entry::Vacant(place) = doc_hashes.entry(item.doc_id) {
            place.insert(python::str(&sample["doc_hash"]));
            items.push(item);
        }
    }
    items.sort_by_key(|item| item.doc_id);
    Ok((items, doc_hashes))
}

/// How many items were planned, and which.
struct Planned {
    expected: usize,
    full_split: usize,
    limited_by: String,
    order: Option<ItemOrder>,
}

/// `--limit` keeps the first items, `--samples` those that somebody chose. Versions that do not count the split say at
/// least whether there was a limit.
fn planned(name: &str, results: &Value, items: &[ItemRecord]) -> Planned {
    let counts = &results["n-samples"][name];
    let count = |key: &str| counts[key].as_u64().map(|n| n as usize);
    let (full_split, expected) =
        (count("original").unwrap_or(items.len()), count("effective").unwrap_or(items.len()));
    let first = items.iter().enumerate().all(|(place, item)| item.doc_id == place);
    let uncounted = count("original").is_none() && !(first && results["config"]["limit"].is_null());
    let limited_by = match first {
        _ if expected >= full_split && !uncounted => String::new(),
        true => format!("--limit {expected}, first items"),
        false => format!("{expected} chosen items"),
    };
    Planned { expected, full_split, limited_by, order: first.then_some(ItemOrder::Dataset) }
}

fn item(sample: &Value, primary: &str) -> Result<ItemRecord, String> {
    let doc_id = sample["doc_id"].as_u64().ok_or("doc_id is not a number")? as usize;
    let target = python::str(sample.get("target").ok_or("no target, so no right answer")?);
    let requests = requests(sample);
    let mut prompts = DigestBuilder::default();
    for (context, continuation) in &requests {
        prompts.field(context.as_bytes()).field(continuation.as_bytes());
    }
    let (loglikelihoods, is_greedy) = answers(&sample["filtered_resps"])?;
    let mut values = BTreeMap::new();
    let mut weight = 1.0;
    let names = sample["metrics"].as_array().into_iter().flatten().filter_map(Value::as_str);
    for name in names.chain([primary]) {
        let Some((value, units)) = metric_value(name, &sample[name]) else { continue };
        values.insert(name.to_owned(), value);
        if name == primary {
            weight = units;
        }
    }
    if !values.contains_key(primary) {
        return Err(format!("no value of {primary}"));
    }
    Ok(ItemRecord {
        doc_id,
        prompt_digest: if requests.is_empty() { unknown_digest() } else { prompts.finish() },
        token_digest: unknown_digest(),
        loglikelihoods,
        is_greedy,
        values,
        weight,
        gold: target.parse().ok().filter(|i| *i < requests.len()),
        target_digest: Some(Digest::of(target.as_bytes())),
        cluster: None,
        error: None,
    })
}

/// Context and continuation of each request: `{"gen_args_0": {"arg_0": …, "arg_1": …}}`, or lists in older versions. A
/// rolling request has only a text.
fn requests(sample: &Value) -> Vec<(String, String)> {
    let list: Vec<&Value> = match &sample["arguments"] {
        Value::Object(map) => (0..map.len()).filter_map(|i| map.get(&format!("gen_args_{i}"))).collect(),
        Value::Array(list) => list.iter().collect(),
        _ => Vec::new(),
    };
    let text = |request: &Value, index: usize| {
        let value = request.get(format!("arg_{index}")).or_else(|| request.get(index));
        value.and_then(Value::as_str).map(str::to_owned)
    };
    let pair = |request: &Value| match (text(request, 0), text(request, 1)) {
        (Some(context), Some(continuation)) => (context, continuation),
        (whole, _) => (String::new(), whole.unwrap_or_default()),
    };
    list.into_iter().map(pair).collect()
}

/// Log-likelihoods and greedy flags of `[["-1.5", "False"], …]`, or of `["-1.5"]` for a rolling request; none where the
/// answers are texts.
fn answers(responses: &Value) -> Result<(Vec<f64>, Vec<bool>), String> {
    let number = |v: &Value| v.as_f64().or_else(|| v.as_str()?.parse().ok());
    let (mut loglikelihoods, mut is_greedy) = (Vec::new(), Vec::new());
    for response in responses.as_array().into_iter().flatten() {
        let (ll, greedy) = match response {
            Value::Array(pair) => (pair.first().unwrap_or(&Value::Null), pair.get(1)),
            single => (single, None),
        };
        match number(ll) {
            Some(ll) => loglikelihoods.push(ll),
            None if loglikelihoods.is_empty() && ll.is_string() => return Ok((Vec::new(), Vec::new())),
            None => return Err(format!("filtered_resps: {ll} is not a log-likelihood")),
        }
        is_greedy.push(greedy.is_some_and(|g| g.as_bool() == Some(true) || g.as_str() == Some("True")));
    }
    Ok((loglikelihoods, is_greedy))
}

/// A metric on one document in day0's terms, with its weight: `[ll, units]` is a log-likelihood over bytes or words.
fn metric_value(name: &str, value: &Value) -> Option<(f64, f64)> {
    if let Some(single) = value.as_f64() {
        return Some((if name == "perplexity" { -single } else { single }, 1.0));
    }
    if let Some(flag) = value.as_bool() {
        return Some((f64::from(u8::from(flag)), 1.0));
    }
    let (ll, units) = (value.get(0)?.as_f64()?, value.get(1)?.as_f64().filter(|u| *u > 0.0)?);
    let per_unit = -ll / units;
    Some((if name == "bits_per_byte" { per_unit / LN_2 } else { per_unit }, units))
}

/// Removes what other harnesses do not say, so that it is no difference between their record and this one.
pub fn blank_what_others_lack(record: &mut EvalRecord) {
    record.identity.tokenizer_digest = None;
    "unknown".clone_into(&mut record.identity.kernel_path);
    for task in record.tasks.values_mut() {
        task.task_digest = Digest::of(task.task.as_bytes());
        task.items.iter_mut().for_each(|item| item.token_digest = unknown_digest());
    }
}

/// Texts of the documents `doc_ids` of a task, from the samples file in `dir`; empty where there is none.
pub fn item_texts(
    dir: &Path,
    task: &str,
    doc_ids: &BTreeSet<usize>,
) -> Result<BTreeMap<usize, ItemText>, ImportError> {
    let Some(samples) = samples_of(dir, task)? else { return Ok(BTreeMap::new()) };
    let mut texts = BTreeMap::new();
    for (_, sample) in lines(&samples)? {
        let Some(doc_id) = sample["doc_id"].as_u64().map(|id| id as usize) else { continue };
        if !doc_ids.contains(&doc_id) || texts.contains_key(&doc_id) {
            continue;
        }
        let requests = requests(&sample);
        let prompt = match requests.first() {
            Some((context, continuation)) if context.is_empty() => continuation.clone(),
            Some((context, _)) => context.clone(),
            None => String::new(),
        };
        let choices = requests.into_iter().map(|(_, continuation)| continuation).collect();
        texts.insert(doc_id, ItemText { prompt, choices, target: python::str(&sample["target"]) });
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        crate::base::atomic::write(&path, text.as_bytes()).unwrap();
        path
    }

    /// A task of `values` of one metric, whose results are completed by `more`.
    fn task_of(metric: &str, values: &[f64], more: &Value) -> Result<(TaskRecord, Vec<String>), ImportError> {
        let dir = tempfile::tempdir().unwrap();
        let line = |(doc_id, value): (usize, &f64)| {
            let mut line = json!({"doc_id": doc_id, "doc_hash": "d", "target": "0", "metrics": [metric],
                "arguments": {"gen_args_0": {"arg_0": "q", "arg_1": " c"}}, "filtered_resps": [["-1.5", "False"]]});
            line[metric] = json!(value);
            line.to_string()
        };
        let lines: Vec<String> = values.iter().enumerate().map(line).collect();
        write(dir.path(), "samples_t.jsonl", &lines.join("\n"));
        let mut results = json!({"results": {"t": {}}, "configs": {"t": {}}});
        results["results"]["t"][format!("{metric},none")] =
            json!(values.iter().sum::<f64>() / values.len() as f64);
        results.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let path = write(dir.path(), "results.json", &results.to_string());
        let (mut record, notes) = read(dir.path(), &path, &|_| None)?;
        Ok((record.tasks.remove("t").unwrap(), notes))
    }

    #[test]
    fn a_direction_is_declared_or_known_and_never_assumed() {
        for (metric, higher, scale) in [
            ("acc", true, Some(1.0)),
            ("exact_match", true, Some(1.0)),
            ("bits_per_byte", false, None),
            ("word_perplexity", false, None),
            ("perplexity", false, None),
            ("brier_score", false, None),
        ] {
            let (task, notes) = task_of(metric, &[0.5, 0.25], &json!({})).unwrap();
            let info = &task.primary_metric;
            assert_eq!((info.higher_is_better, info.scale), (higher, scale), "{metric}");
            assert_eq!(task.metrics[metric].higher_is_better, higher);
            assert_eq!(
                notes,
                [format!("inferred for t: {} {metric} is better", if higher { "more" } else { "less" })]
            );
            let declared = json!({"higher_is_better": {"t": {metric: higher}}});
            assert!(task_of(metric, &[0.5, 0.25], &declared).unwrap().1.is_empty(), "nothing is inferred");
        }
        let refused = |metric: &str, more: &Value| task_of(metric, &[0.5], more).unwrap_err().to_string();
        let error = refused("loss", &json!({}));
        assert!(
            error.ends_with(
                "results.json: higher_is_better.t.loss: whether more of loss is better is not said"
            )
        );
        let wrong = json!({"higher_is_better": {"t": {"bits_per_byte": true}}});
        assert!(refused("bits_per_byte", &wrong).ends_with("is said to be true, which is not so"));
    }

    #[test]
    fn a_scale_is_known_or_seen() {
        let scale = |values: &[f64], higher: bool| {
            let declared = json!({"higher_is_better": {"t": {"quality": higher}}});
            let (task, notes) = task_of("quality", values, &declared).unwrap();
            (task.primary_metric.scale, notes.len())
        };
        assert_eq!(scale(&[0.0, 0.5, 1.0], true), (Some(1.0), 1));
        assert_eq!(scale(&[0.0, 0.5, 1.5], true), (None, 0));
        assert_eq!(scale(&[0.0, 0.5, 1.0], false), (None, 0));
    }

    #[test]
    fn right_answers_and_documents_are_told() {
        let more = |hash: &str| json!({"versions": {"t": hash}});
        let (task, _) = task_of("acc", &[1.0, 0.0], &more("1.0")).unwrap();
        assert_eq!(task.items[0].target_digest, Some(Digest::of(b"0")));
        assert_eq!(task.items[0].gold, Some(0));
        assert_ne!(task.task_digest, task_of("acc", &[1.0, 0.0], &more("2.0")).unwrap().0.task_digest);
        let sample =
            json!({"doc_id": 0, "metrics": ["acc"], "acc": 1.0, "filtered_resps": [["-1.5", "False"]]});
        assert!(item(&sample, "acc").unwrap_err().contains("no target"));
    }

    #[test]
    fn a_prefix_says_so() {
        let counts = json!({"n-samples": {"t": {"original": 9, "effective": 2}}});
        let (task, _) = task_of("acc", &[1.0, 0.0], &counts).unwrap();
        assert_eq!((task.limited_by.as_str(), task.full_split), ("--limit 2, first items", 9));
        assert_eq!(task.order, Some(ItemOrder::Dataset));
        assert!(!task.is_sample());
        let (task, _) = task_of("acc", &[1.0, 0.0], &json!({"config": {"limit": 2.0}})).unwrap();
        assert!(!task.is_sample(), "a version that does not count the split");
        assert!(task_of("acc", &[1.0, 0.0], &json!({})).unwrap().0.is_sample());
    }

    /// Two tasks of four and two items, and groups whose scores count them by size, alike, and in no way that is known.
    #[test]
    fn groups_count_their_tasks_as_their_scores_say() {
        let dir = tempfile::tempdir().unwrap();
        let right = [("a", vec![1.0, 1.0, 1.0, 0.0]), ("b", vec![1.0, 0.0])];
        for (task, values) in &right {
            let line = |(doc_id, acc): (usize, &f64)| {
                json!({"doc_id": doc_id, "target": "0", "arguments": {"gen_args_0": {"arg_0": "q", "arg_1": " c"}},
                       "filtered_resps": [["-1.5", "False"]], "metrics": ["acc"], "acc": acc})
                .to_string()
            };
            let lines: Vec<String> = values.iter().enumerate().map(line).collect();
            let name = format!("samples_{task}_2026-11-29T10-00-00.000001.jsonl");
            write(dir.path(), &name, &lines.join("\n"));
        }
        let results = json!({
            "results": {"a": {"acc,none": 0.75}, "b": {"acc,none": 0.5}},
            "configs": {"a": {}, "b": {}},
            "groups": {"by_size": {"acc,none": 4.0 / 6.0}, "alike": {"acc,none": 0.625}, "other": {"acc,none": 0.7}},
            "group_subtasks": {"by_size": ["inner", "b"], "inner": ["a", "inner"], "alike": ["a", "b"], "other": ["a", "b"],
                               "gone": ["c"]},
        });
        let path = write(dir.path(), "results_2026-11-29T10-00-00.000001.json", &results.to_string());
        let (record, _) = read(dir.path(), &path, &|_| None).unwrap();
        let found =
            |name: &str| (record.groups[name].tasks.clone(), record.groups[name].metrics.get("acc").copied());
        let both = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(found("by_size"), (both.clone(), Some(true)));
        assert_eq!(found("alike"), (both.clone(), Some(false)));
        assert_eq!(found("other"), (both, None));
        assert_eq!(found("inner"), (vec!["a".to_owned()], None));
        assert_eq!(record.groups.len(), 4);
    }
}
