//! A local server plays the hub; the Parquet files are pyarrow's (testdata/parquet_rows.py).

use std::path::Path;

use serde_json::json;

use super::*;
use crate::checkpoint::test_server::{Reply, Request, TestServer};
use crate::record::{Classified, FailureClass};
use crate::suite;

const COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";
const PARQUET: &[u8] = include_bytes!("testdata/rows.parquet");
const ZSTD: &[u8] = include_bytes!("testdata/rows_zstd.parquet");
const ROWS: &str = include_str!("testdata/rows.jsonl");

const CARD: &str = "---\nlicense: mit\nconfigs:\n- config_name: easy\n  data_files:\n  - split: test\n    \
                    path: easy/test-*\n  - split: validation\n    path: [easy/val-00000.parquet]\n- config_name: \
                    other\n  data_files: other/**\n---\n# Card\n";

/// A hub with one data set `org/set` on its main branch, and `converted` files on the conversion bot's.
fn play_hub(main: Vec<(&'static str, Vec<u8>)>, converted: Vec<(&'static str, Vec<u8>)>) -> TestServer {
    TestServer::start(move |request: &Request| {
        let list = |files: &[(&str, Vec<u8>)], sha: &str| {
            let siblings: Vec<_> = files.iter().map(|(n, _)| json!({"rfilename": n})).collect();
            Reply::ok(json!({"sha": sha, "siblings": siblings}).to_string())
        };
        let bot = COMMIT.replace('8', "7");
        match request.path.strip_prefix("/api/datasets/org/set/revision/") {
            Some("main" | COMMIT) => return list(&main, COMMIT),
            Some("refs%2Fconvert%2Fparquet") if !converted.is_empty() => return list(&converted, &bot),
            _ => {}
        }
        let at = |sha: &str, files: &[(&'static str, Vec<u8>)]| {
            let name = request.path.strip_prefix(&format!("/datasets/org/set/resolve/{sha}/"))?;
            let (name, body) = files.iter().find(|(f, _)| *f == name)?;
            let tag = format!("\"etag-of-{}\"", name.replace('/', "-"));
            Some(Reply::range(request, body).header("ETag", &tag).header("x-repo-commit", sha))
        };
        at(COMMIT, &main).or_else(|| at(&bot, &converted)).unwrap_or_else(|| Reply::new(404, Vec::new()))
    })
}

fn env(server: &TestServer, cache: &Path) -> HubEnv {
    HubEnv { endpoint: server.url(""), cache: cache.to_path_buf(), token: None, offline: false }
}

fn task(subset: &str, kwargs: &str) -> String {
    format!(
        "task: t\ndataset_path: org/set\ndataset_name: {subset}\n{kwargs}output_type: multiple_choice\n\
         test_split: test\nvalidation_split: validation\ndoc_to_text: \"{{{{question}}}}\"\n\
         doc_to_target: \"{{{{choices.label.index(answerKey)}}}}\"\ndoc_to_choice: \"{{{{choices.text}}}}\"\n"
    )
}

fn load(dir: &Path, yaml: &str, env: &HubEnv) -> Result<suite::Suite, SuiteError> {
    let path = dir.join("t.yaml");
    crate::base::atomic::write(&path, yaml.as_bytes()).unwrap();
    suite::load_from(&path.display().to_string(), None, env)
}

/// The fixture's last row has an empty choice, which no request can be made of.
fn usable_rows() -> Vec<u8> {
    ROWS.lines().take(3).collect::<Vec<_>>().join("\n").into_bytes()
}

#[test]
fn parquet_holds_the_same_rows_as_json_lines() {
    let dir = tempfile::tempdir().unwrap();
    let read = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        crate::base::atomic::write(&path, bytes).unwrap();
        crate::suite::parquet_rows::read("f", &path)
            .map(|rows| rows.into_iter().map(|(_, r)| r).collect::<Vec<_>>())
    };
    let expected: Vec<serde_json::Map<_, _>> =
        ROWS.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(read("a.parquet", PARQUET).unwrap(), expected);
    assert_eq!(read("b.parquet", ZSTD).unwrap(), expected);
    // Damaged files are errors wherever they are cut or changed, never a panic and never other rows unnoticed by all.
    for cut in (0..PARQUET.len()).step_by(97) {
        assert!(read("c.parquet", &PARQUET[..cut]).is_err(), "cut at {cut}");
    }
    for at in (4..PARQUET.len()).step_by(61) {
        let mut bytes = PARQUET.to_vec();
        bytes[at] ^= 0xff;
        let _ = read("d.parquet", &bytes);
    }
}

#[test]
fn splits_by_the_card_and_offline() {
    let dir = tempfile::tempdir().unwrap();
    let files = vec![
        ("README.md", CARD.as_bytes().to_vec()),
        ("easy/test-00000-of-00001.jsonl", usable_rows()),
        ("easy/val-00000.parquet", PARQUET.to_vec()),
        ("easy/train.parquet", b"not asked for".to_vec()),
    ];
    let server = play_hub(files, Vec::new());
    let online = env(&server, dir.path());
    let suite = load(dir.path(), &task("easy", ""), &online).unwrap();
    let loaded = &suite.tasks[0];
    assert_eq!((loaded.docs.len(), loaded.split.as_str()), (3, "test"));
    assert_eq!(loaded.data_revision(), Some(COMMIT));
    assert_eq!(loaded.docs[1].choices, ["im Wald", "„im Meer“"]);
    assert!(!server.seen().iter().any(|r| r.path.contains("val-00000") || r.path.contains("train")));
    let before = server.seen().len();
    let offline = HubEnv { offline: true, ..online.clone() };
    let again = load(dir.path(), &task("easy", ""), &offline).unwrap();
    assert_eq!(again.tasks[0].digest, loaded.digest);
    assert_eq!(server.seen().len(), before, "offline means offline");
    let pinned = format!("dataset_kwargs:\n  revision: {COMMIT}\n");
    assert_eq!(load(dir.path(), &task("easy", &pinned), &online).unwrap().tasks[0].docs, loaded.docs);
    let unknown = load(dir.path(), &task("easy", "dataset_kwargs:\n  revision: v9\n"), &online).unwrap_err();
    assert!(crate::record::failure::chain(&unknown).contains("org/set@v9: not found"), "{unknown}");
    assert_eq!(unknown.failure_class(), FailureClass::UserConfigError);
}

#[test]
fn the_converted_branch_is_the_last_resort() {
    let dir = tempfile::tempdir().unwrap();
    let script = vec![("README.md", b"# no head".to_vec()), ("set.py", b"code".to_vec())];
    let server = play_hub(script, vec![("easy/validation/0000.parquet", ZSTD.to_vec())]);
    let online = env(&server, dir.path());
    let error = load(dir.path(), &task("easy", ""), &online).unwrap_err();
    let message = crate::record::failure::chain(&error);
    assert!(
        message.contains("row 4")
            || message.contains("split 'validation'")
            || message.contains("0000.parquet:4"),
        "{message}"
    );
    assert!(message.contains("texts that are not empty"), "{message}");
    let none = load(dir.path(), &task("hard", ""), &online).unwrap_err();
    assert!(
        crate::record::failure::chain(&none).contains("no JSON lines or Parquet files for the subset 'hard'")
    );
    let down = HubEnv { endpoint: "http://127.0.0.1:1".to_owned(), ..online.clone() };
    assert_eq!(
        load(dir.path(), &task("easy", ""), &down).unwrap_err().failure_class(),
        FailureClass::InfraTransient
    );
    let empty = tempfile::tempdir().unwrap();
    let offline = HubEnv { offline: true, cache: empty.path().to_path_buf(), ..online };
    let error = load(dir.path(), &task("easy", ""), &offline).unwrap_err();
    assert!(error.hint().unwrap().contains("--data DIR"), "{error}");
}

#[test]
fn splits_by_file_names() {
    let names = |list: &[&str]| -> BTreeSet<String> { list.iter().map(|n| (*n).to_owned()).collect() };
    let found = by_name(
        &names(&[
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
            "data/test-00000-of-00001.parquet",
            "dev.jsonl",
            "README.md",
            "data/lambada_test_de.csv",
        ]),
        None,
    );
    assert_eq!(found["train"].len(), 2);
    assert_eq!(found["test"], ["data/test-00000-of-00001.parquet"]);
    assert_eq!(found["validation"], ["dev.jsonl"]);
    let found = by_name(&names(&["boolq/validation/0.parquet", "copa/validation/0.parquet"]), Some("boolq"));
    assert_eq!(found["validation"], ["boolq/validation/0.parquet"]);
    assert!(by_name(&names(&["latest.jsonl", "contest.parquet"]), None).is_empty());
}

#[test]
fn cards() {
    let names: BTreeSet<String> =
        ["a/x.parquet", "a/b/y.parquet", "z.json"].iter().map(|n| (*n).to_owned()).collect();
    let card = |configs: &str| format!("---\nconfigs:\n{configs}---\n");
    let one = card("- config_name: main\n  data_files:\n    test: 'a/**'\n");
    assert_eq!(read_configs(&one, None, &names)["test"], ["a/b/y.parquet", "a/x.parquet"]);
    let dir = card("- config_name: main\n  data_dir: a\n  data_files: '*.parquet'\n");
    assert_eq!(read_configs(&dir, Some("main"), &names)["train"], ["a/x.parquet"]);
    for nothing in ["", "---\n: [\n---\n", "---\nconfigs: 3\n---\n", "# text"] {
        assert!(read_configs(nothing, None, &names).is_empty(), "{nothing:?}");
    }
    let two = card("- config_name: a\n  data_files: z.json\n- config_name: b\n  data_files: z.json\n");
    assert!(read_configs(&two, None, &names).is_empty(), "which of two is meant is not guessed");
    assert_eq!(read_configs(&two, Some("b"), &names)["train"], ["z.json"]);
}
