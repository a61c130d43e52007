//! Definitions, data and templates that are right, and the messages for those that are not.

use std::path::{Path, PathBuf};

use super::*;
use crate::checkpoint::hub_env::HubEnv;
use crate::record::Classified;

const ROWS: &str = r#"{"q": "One?", "choices": ["a", "b"], "gold": 1}
{"q": "2", "choices": ["a", "it's \"ü\""], "gold": 0}
"#;

const TASK: &str = "task: t\ndataset_path: x/y\noutput_type: multiple_choice\ntest_split: test\n\
                    doc_to_text: \"Q: {{q}}\\nA:\"\ndoc_to_target: gold\ndoc_to_choice: \"{{choices}}\"\n";

struct Files(tempfile::TempDir);

impl Files {
    fn new(task: &str, rows: &str) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.put("t.yaml", task);
        files.put("t.test.jsonl", rows);
        files
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        crate::base::atomic::write(&path, text.as_bytes()).unwrap();
        path
    }

    fn dir(&self) -> &Path {
        self.0.path()
    }

    fn load(&self, name: &str) -> Result<Suite, SuiteError> {
        load(&self.dir().join(name).display().to_string(), Some(self.dir()))
    }

    /// The message of the error, with the directory cut out.
    fn error(&self) -> String {
        let error = self.load("t.yaml").unwrap_err();
        let message = crate::record::failure::chain(&error);
        let hint = error.hint().map(|h| format!(" | {h}")).unwrap_or_default();
        format!("{message}{hint}").replace(&format!("{}/", self.dir().display()), "")
    }
}

/// A hub that nobody may ask and that knows nothing.
fn no_hub() -> HubEnv {
    HubEnv {
        endpoint: "http://127.0.0.1:1".to_owned(),
        cache: PathBuf::from("nowhere"),
        token: None,
        offline: true,
    }
}

fn error_of(task: &str, rows: &str) -> String {
    Files::new(task, rows).error()
}

#[test]
fn rows_are_rendered() {
    let task = &Files::new(TASK, ROWS).load("t.yaml").unwrap().tasks[0];
    let texts: Vec<_> = task.docs.iter().map(|d| d.text.as_str().unwrap()).collect();
    assert_eq!(texts, ["Q: One?\nA:", "Q: 2\nA:"]);
    assert_eq!(task.docs[1].choices, ["a", "it's \"ü\""]);
    assert_eq!(task.docs[0].gold().unwrap(), [1]);
    assert_eq!(task.config.primary_metric, MetricKind::AccNorm);
    assert_eq!(task.config.version, "Yaml");
}

#[test]
fn every_builtin_definition_parses() {
    for name in builtin_names() {
        match load_from(&name, None, &no_hub()) {
            Ok(_) | Err(SuiteError::NoData { .. }) => {}
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

#[test]
fn names_and_data_that_are_not_there() {
    let error = load_from("arc_esy", None, &no_hub()).unwrap_err();
    assert_eq!(error.to_string(), "unknown suite 'arc_esy'");
    assert!(error.hint().unwrap().contains("arc_easy"));
    let error = load_from("arc_easy", None, &no_hub()).unwrap_err();
    assert!(error.to_string().contains("allenai/ai2_arc is not to be had from the hub"));
    assert!(error.hint().unwrap().contains("DIR/arc_easy.test.jsonl"));
    let dir = tempfile::tempdir().unwrap();
    let error = load("arc_easy", Some(dir.path())).unwrap_err().to_string();
    assert!(error.contains("arc_easy.test.jsonl") && error.contains("arc_easy.validation.jsonl"), "{error}");
    assert!(load(" , ", None).is_err());
}

#[test]
fn keys_and_values_are_checked() {
    let with = |line: &str| error_of(&format!("{TASK}{line}\n"), ROWS);
    assert_eq!(with("doc_to_txt: x"), "t.yaml:8: unknown key 'doc_to_txt' | did you mean 'doc_to_text'?");
    assert!(
        with("metric_list:\n  - metric: acc\n    agregation: mean")
            .starts_with("t.yaml:10: unknown key 'agregation'")
    );
    assert!(
        with("metric_list:\n  - metric: f1").contains("t.yaml:8: metric_list: expected one of acc, acc_norm")
    );
    assert!(
        with("metric_list:\n  - metric: acc\n    aggregation: median")
            .contains("acc with aggregation median is not supported")
    );
    assert!(with("metric_list: []").contains("expected a list of metrics"));
    assert!(with("primary_metric: acc_bytes").contains("expected one of metric_list (acc, acc_norm)"));
    assert!(
        with("process_docs: !function utils.process_docs")
            .contains("process_docs: !function utils.process_docs is not supported")
    );
    assert!(with("process_results: !function utils.f").contains("!function utils.f is not supported"));
    assert!(with("description: !function utils.f").contains("!function utils.f is not supported"));
    assert!(with("filter_list:\n  - name: x").contains("filter_list is not supported"));
    assert!(with("repeats: 2").contains("repeating a request 2 times"));
    assert!(with("num_fewshot: -1").contains("expected a whole number"));
    assert!(with("fewshot_config:\n  sampler: balanced").contains("sampler balanced is not supported"));
    assert!(with("fewshot_config:\n  samplr: x").contains("unknown key 'samplr'"));
    assert!(with("include: nowhere.yaml").contains("nowhere.yaml: cannot be read"));
    assert!(with("include: t.yaml").contains("t.yaml: included by itself"));
    assert!(with("target_delimiter: !other x").contains("not a YAML mapping: target_delimiter: unknown tag"));
    assert!(error_of("- a\n", ROWS).contains("the top level is no mapping"));
    assert!(error_of("a: [", ROWS).contains("t.yaml: not a YAML mapping"));
    assert!(error_of("a: b\na: c\n", ROWS).contains("duplicate"));
    assert!(
        error_of(&TASK.replace("multiple_choice", "generate_until"), ROWS)
            .contains("generate_until is not supported")
    );
    assert!(error_of(&TASK.replace("multiple_choice", "choice"), ROWS).contains("expected multiple_choice"));
    assert!(error_of(&TASK.replace("doc_to_target: gold\n", ""), ROWS).contains("doc_to_target: missing"));
    assert!(error_of(&TASK.replace("test_split: test\n", ""), ROWS).contains("nothing to evaluate"));
    assert!(
        error_of(&TASK.replace("{{q}}", "{{q"), ROWS).contains("t.yaml: doc_to_text: not a valid template")
    );
}

#[test]
fn rows_are_checked() {
    let row = |line: &str| error_of(TASK, &format!("{ROWS}\n{line}\n"));
    assert_eq!(row("{\"q\": 1,}").split(':').take(2).collect::<Vec<_>>(), ["t.test.jsonl", "4"]);
    assert!(row("{\"q\": ").contains("t.test.jsonl:4: the JSON object is not complete"));
    assert!(row("[1]").contains("t.test.jsonl:4: a row must be a JSON object"));
    assert!(row("{\"q\": \"\u{0}\"}").contains("t.test.jsonl:4: not JSON"));
    assert_eq!(
        row(r#"{"q": "x", "gold": 1}"#),
        "t.test.jsonl:4: column 'choices' is missing; doc_to_choice of task t needs it"
    );
    assert!(
        row(r#"{"q": "x", "choices": ["a"], "gold": 1}"#)
            .contains("the answer 1 is no index of the 1 choices")
    );
    assert!(row(r#"{"q": "x", "choices": ["a", ""], "gold": 0}"#).contains("texts that are not empty"));
    assert!(row(r#"{"q": "x", "choices": [1, 2], "gold": 0}"#).contains("texts that are not empty"));
    assert!(row(r#"{"q": "x", "choices": [], "gold": 0}"#).contains("no choices"));
    assert!(row(r#"{"q": "x", "choices": "a", "gold": 0}"#).contains("t.test.jsonl:4"));
    assert!(row(r#"{"q": "x", "choices": ["a"], "gold": -1}"#).contains("the answer -1"));
    assert!(row(r#"{"q": "x", "choices": ["a"], "gold": "b"}"#).contains("none of the 1 choices"));
    assert!(error_of(TASK, "\n\n").contains("t.test.jsonl: holds no rows"));
    let strict = TASK.replace("{{q}}", "{{q.part}}");
    assert!(error_of(&strict, ROWS).contains("t.test.jsonl:1: doc_to_text of task t"));
}

#[test]
fn not_utf8() {
    let files = Files::new(TASK, ROWS);
    crate::base::atomic::write(&files.dir().join("t.test.jsonl"), b"{\"q\": \"\xff\"}\n").unwrap();
    assert!(files.error().contains("t.test.jsonl:1: not JSON"));
    crate::base::atomic::write(&files.dir().join("t.yaml"), b"task: \xff\n").unwrap();
    assert!(files.error().contains("t.yaml: cannot be read"));
}

/// Reference: Jinja2 3.1 with lm-eval's settings (`lm_eval.utils.apply_template`) on the same row.
#[test]
fn templates_as_jinja2() {
    let row = r#"{"q": "One?", "choices": ["a", "b"], "gold": 1, "l": ["x", "y"], "f": 2.0, "n": null, "b": true, "s": " a b  c ", "d": {"k": [1, "v"]}}"#;
    let cases = [
        ("i={{l.index('y')}}", "i=1"),
        ("{{l}} {{f}} {{n}} {{b}} {{d}}", "['x', 'y'] 2.0 None True {'k': [1, 'v']}"),
        (
            "{{s.split()}}|{{s.rsplit(None, 1)}}|{{s.rsplit(' ', 1)}}",
            "['a', 'b', 'c']|[' a b', 'c']|[' a b  c', '']",
        ),
        ("{{s.strip()}}|{{s.lstrip()}}|{{s.split(' ')[:-1]|join('-')}}", "a b  c|a b  c |-a-b--c"),
        ("{{'%s-%d'|format(q, gold)}}", "One?-1"),
        ("{{ q ~ gold ~ '!' }}{% if gold == 1 %} yes{% endif %}\n", "One?1! yes\n"),
        ("{% for c in choices %}{{loop.index}}. {{c}}\n{% endfor %}", "1. a\n2. b\n"),
        ("{{ s | regex_replace('(a) (b)', '\\\\2$\\\\1') }}", " b$a  c "),
        ("<b>{{ '<&>' }}</b>", "<b><&></b>"),
        ("{{ ['A','B','C'][gold] }}{{ d.k[1] }}{{ q|length }}{{ q.removesuffix('?') }}", "Bv4One"),
        ("{{ q.index('e') }}{{ choices|map('upper')|join(', ') }}", "2A, B"),
    ];
    for (template, expected) in cases {
        let source = serde_json::to_string(template).unwrap();
        let task = TASK.replace("\"Q: {{q}}\\nA:\"", &source);
        let suite = Files::new(&task, row).load("t.yaml");
        let suite = suite.unwrap_or_else(|e| panic!("{template}: {}", crate::record::failure::chain(&e)));
        assert_eq!(suite.tasks[0].docs[0].text, expected, "{template}");
    }
}

#[test]
fn includes_groups_and_tags() {
    let files = Files::new(TASK, ROWS);
    files.put("u.yaml", "include: t.yaml\ntask: u\ndata_stem: t\ntag: [few, both]\ndescription: hi\n");
    files.put("w.yaml", "include: [t.yaml]\ntask: w\ndata_stem: t\ntag: few\n");
    files.put("inner.yaml", "group: inner\ntask: [few]\n");
    files.put("broken.yaml", "a: [");
    files.put(
        "outer.yaml",
        "group: outer\ngroup_alias: all\ntask:\n  - inner\n  - t\n  - task: t\n    task_alias: x\n\
         aggregate_metric_list:\n  - metric: acc\n    weight_by_size: false\nmetadata:\n  version: 2\n",
    );
    // The inline member has other settings than the task of the same name.
    assert!(files.load("outer.yaml").unwrap_err().to_string().contains("t is defined twice, differently"));
    files.put("outer.yaml", "group: outer\ntask:\n  - inner\n  - t\n  - u\naggregate_metric_list:\n  - metric: acc\n    weight_by_size: false\n");
    let suite = files.load("outer.yaml").unwrap();
    let names: Vec<&str> = suite.tasks.iter().map(|t| t.config.task.as_str()).collect();
    assert_eq!(names, ["u", "w", "t"]);
    assert_eq!(suite.groups[0].members, ["u", "w"]);
    assert_eq!(suite.groups[1].members, ["inner", "t", "u"]);
    assert_eq!(suite.groups[1].tasks, ["u", "w", "t"], "u counts once");
    assert_eq!(suite.groups[1].version, "N/A");
    assert!(!suite.groups[1].aggregates[0].weight_by_size);
    assert_eq!(suite.tasks[0].notes, ["ignored 'tag': it does not change log-likelihoods"]);
    files.put("outer.yaml", "group: outer\ntask: [nowhere]\n");
    assert!(files.load("outer.yaml").unwrap_err().to_string().contains("unknown suite 'nowhere'"));
    files.put("outer.yaml", "group: outer\ntask: t\nmetrics: x\n");
    assert!(files.load("outer.yaml").unwrap_err().to_string().contains("unknown key 'metrics'"));
}

#[test]
fn a_split_that_is_not_there_is_passed_over() {
    let files =
        Files::new(&TASK.replace("test_split: test", "test_split: other\nvalidation_split: test"), ROWS);
    let suite = files.load("t.yaml").unwrap();
    assert_eq!(suite.tasks[0].split, "test");
    assert_eq!(suite.tasks[0].notes, ["evaluates split 'test': the data has no 'other'"]);
}

#[test]
fn digests_follow_definition_and_data() {
    let digest =
        |task: &str, rows: &str| Files::new(task, rows).load("t.yaml").unwrap().tasks[0].digest.clone();
    let base = digest(TASK, ROWS);
    assert_eq!(base, digest(TASK, ROWS));
    assert_ne!(base, digest(&format!("{TASK}description: x\n"), ROWS));
    assert_ne!(base, digest(TASK, &ROWS.replace("One", "Two")));
}

#[test]
fn ids_that_come_twice() {
    let row = |id: &str| format!(r#"{{"id": {id}, "q": "x", "choices": ["a"], "gold": 0}}"#);
    let twice = [row("\"a\""), row("\"b\""), row("\"a\"")].join("\n");
    assert_eq!(error_of(TASK, &twice), "t.test.jsonl:3: id \"a\" is also that of t.test.jsonl:1");
    let apart = [row("1"), row("\"1\""), row("null"), row("null")].join("\n");
    assert_eq!(Files::new(TASK, &apart).load("t.yaml").unwrap().tasks[0].docs.len(), 4);
}

#[test]
fn tasks_that_share_a_file_take_their_own_rows() {
    let task = format!("{TASK}dataset_name: b\ndata_subset_column: s\n");
    let row = |s: &str, q: &str| format!(r#"{{"s": "{s}", "q": "{q}", "choices": ["x"], "gold": 0}}"#);
    let rows = [row("a", "1"), row("b", "2"), row("b", "3")].join("\n");
    let files = Files::new(&task, &rows);
    files.put(
        "u.yaml",
        &task.replace("task: t", "task: u\ndata_stem: t").replace("dataset_name: b", "dataset_name: a"),
    );
    let suite = load(&format!("{0}/t.yaml,{0}/u.yaml", files.dir().display()), Some(files.dir())).unwrap();
    let places: Vec<_> = suite.tasks[0].docs.iter().map(|d| (d.id, d.place.line)).collect();
    assert_eq!(places, [(0, Some(2)), (1, Some(3))], "items are counted in the subset, lines in the file");
    assert_eq!(suite.tasks[1].docs.len(), 1);
    assert_ne!(suite.tasks[0].digest, suite.tasks[1].digest);
    assert!(
        error_of(&task.replace("dataset_name: b", "dataset_name: c"), &rows)
            .contains("no row has 'c' in column 's'")
    );
}

#[test]
fn several_files_make_one_split() {
    let files = Files::new(TASK, ROWS);
    let (one, two) = (files.put("1.jsonl", ROWS), files.put("2.jsonl", ROWS));
    let kwargs = |list: &str| {
        let task = TASK.replace("dataset_path: x/y", "dataset_path: json");
        files.put("t.yaml", &format!("{task}dataset_kwargs:\n  data_files:\n    test: {list}\n"));
        files.load("t.yaml")
    };
    let both = kwargs(&format!("[{}, {}]", one.display(), two.display())).unwrap();
    assert_eq!(both.tasks[0].docs.len(), 4);
    assert_eq!(both.tasks[0].docs[2].place.file, two.display().to_string());
    assert_eq!(kwargs(&one.display().to_string()).unwrap().tasks[0].docs.len(), 2);
    assert!(kwargs("3").is_err() && kwargs("[]").is_err());
    let rows: Vec<&str> = ROWS.lines().collect();
    let array = files.put("a.json", &format!(" [{}]\n", rows.join(",\n")));
    assert_eq!(kwargs(&array.display().to_string()).unwrap().tasks[0].docs.len(), 2);
    files.put("a.json", "[{\"q\": 1},\n 3]");
    let error = kwargs(&array.display().to_string()).unwrap_err().to_string();
    assert!(error.contains("a.json:2: not a JSON array of objects"), "{error}");
}

/// lm-eval's `utils.process_docs` is a name that many tasks use for different functions.
#[test]
fn functions_are_known_by_their_module() {
    let files = Files::new(&format!("{TASK}process_docs: !function utils.process_docs\n"), ROWS);
    assert!(files.error().contains("process_docs: !function utils.process_docs is not supported"));
    files.put("utils.py", "def process_docs(dataset):\n    return dataset\n");
    assert!(files.error().contains("process_docs: !function utils.process_docs is not supported"));
    files.put("t.yaml", &format!("{TASK}process_results: !function wikitext.process_results\n"));
    assert!(files.error().contains("expected a function for multiple_choice"));
}

#[test]
fn true_answers_are_labelled() {
    let task = format!("{TASK}process_results: !function truthfulqa.process_results_mc2\n");
    let row = |labels: &str| {
        let row = format!(
            r#"{{"q": "x", "choices": ["a", "b"], "gold": 0, "mc2_targets": {{"labels": {labels}}}}}"#
        );
        Files::new(&task, &row).load("t.yaml").map(|_| ()).map_err(|e| e.to_string())
    };
    row("[1, 0]").unwrap();
    assert!(row("[1]").unwrap_err().contains("1 labels for 2 choices"));
    assert!(row("[1, 2]").unwrap_err().contains("the label 2 is neither 0 nor 1"));
    assert!(row("3").unwrap_err().contains("no list of labels"));
    assert!(Files::new(&task, ROWS).error().contains("mc2_targets"));
}

#[test]
fn bundles_hold_their_tasks() {
    let Some(data) =
        Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data")).filter(|d| d.exists())
    else {
        return eprintln!("skipped: ../shared is not there");
    };
    let core = load("core", Some(&data)).unwrap();
    assert_eq!(core.tasks.len(), 10 + 57);
    assert!(core.groups.iter().any(|g| g.name == "mmlu" && g.tasks.len() == 57));
    assert!(core.groups.last().unwrap().aggregates.is_empty());
    assert_eq!(core.groups.last().unwrap().advisory, ["wikitext"]);
    let sizes: Vec<usize> = ["mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities"]
        .iter()
        .map(|name| core.groups.iter().find(|g| g.name == *name).unwrap().tasks.len())
        .collect();
    assert_eq!(sizes, [19, 13, 12, 13]);
    let quick: Vec<_> = load("quick", Some(&data)).unwrap().tasks.iter().map(|t| t.docs.len()).collect();
    assert_eq!(quick, [2376, 10042, 5153]);
}

/// A group that is called like its own task means the task; files that lead back to themselves are refused.
#[test]
fn a_group_is_no_part_of_itself() {
    let files = Files::new(TASK, ROWS);
    files.put("my.yaml", "group: arc_easy\ntask: [arc_easy]\n");
    files.put(
        "arc_easy.test.jsonl",
        r#"{"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}"#,
    );
    let suite = files.load("my.yaml").unwrap();
    assert_eq!(suite.tasks[0].config.dataset_path, "allenai/ai2_arc");
    assert_eq!(suite.groups[0].members, ["arc_easy"]);
    files.put("a.yaml", "group: a\ntask: [t, b]\n");
    files.put("b.yaml", "group: b\ntask: [c]\n");
    files.put("c.yaml", "group: c\ntask: [b]\n");
    let error = files.load("a.yaml").unwrap_err();
    assert!(error.hint().unwrap().contains("a name of its own"));
    let [first, _, last] = ["b.yaml", "c.yaml", "b.yaml: groups that contain each other"];
    let message = error.to_string();
    assert!(message.contains(&format!("{first} -> ")) && message.ends_with(last), "{message}");
    assert!(!message.contains("a.yaml"), "{message}");
    // However the path is written.
    let name = files.dir().file_name().unwrap().to_str().unwrap();
    files.put("i.yaml", &format!("include: ../{name}/i.yaml\n"));
    assert!(files.load("i.yaml").unwrap_err().to_string().contains("included by itself"));
    let own = files.dir().join("p.yaml");
    files.put("p.yaml", &format!("group: p\ntask: ['{}']\n", own.display()));
    assert!(files.load("p.yaml").unwrap_err().to_string().contains("groups that contain each other"));
}
