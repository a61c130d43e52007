//! A local HTTP server plays the hub.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::test_server::{Reply, Request, TestServer};
use super::super::writer::{ShardWriter, TensorSpec};
use super::*;
use crate::checkpoint::Checkpoint;
use crate::record::Failure;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn shard(name: &str) -> Vec<u8> {
    let spec = TensorSpec { name: name.to_owned(), dtype: safetensors::Dtype::U8, shape: vec![4] };
    let mut writer = ShardWriter::new(Vec::new(), &[spec], &BTreeMap::new()).unwrap();
    writer.write_tensor(name, &[1; 4]).unwrap();
    writer.finish().unwrap().0
}

/// A hub with one repository `org/name`; a token is required when one is given.
fn play_hub(files: Vec<(&'static str, Vec<u8>)>, token: Option<&'static str>) -> TestServer {
    TestServer::start(move |request: &Request| {
        if token.is_some_and(|t| request.header("authorization") != Some(&format!("Bearer {t}"))) {
            return Reply::new(401, b"{\"error\":\"Invalid username or password.\"}".to_vec());
        }
        if let Some(revision) = request.path.strip_prefix("/api/models/org/name/revision/") {
            if !["main", "v1", COMMIT, "refs%2Fpr%2F1"].contains(&revision) {
                return Reply::new(404, Vec::new());
            }
            let siblings: Vec<_> = files.iter().map(|(n, _)| serde_json::json!({"rfilename": n})).collect();
            return Reply::ok(serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string());
        }
        let prefix = format!("/org/name/resolve/{COMMIT}/");
        let file = request.path.strip_prefix(&prefix).and_then(|n| files.iter().find(|(f, _)| *f == n));
        match file {
            Some((name, body)) => Reply::range(request, body)
                .header("ETag", &format!("\"etag-of-{name}\""))
                .header("x-repo-commit", COMMIT),
            None => Reply::new(404, Vec::new()),
        }
    })
}

fn good() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        (".gitattributes", b"x".to_vec()),
        ("README.md", b"readme".to_vec()),
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{\"a\":1}".to_vec()),
        ("onnx/model.onnx", b"x".to_vec()),
        ("pytorch_model.bin", b"pickle".to_vec()),
        ("model.safetensors", shard("a")),
    ]
}

fn env(server: &TestServer, cache: &Path) -> HubEnv {
    HubEnv { endpoint: server.url(""), cache: cache.to_path_buf(), token: None, offline: false }
}

fn id(text: &str) -> HubId {
    HubId::parse(text).unwrap()
}

#[test]
fn ids() {
    assert_eq!(
        id("org/na.me-1"),
        HubId { kind: RepoKind::Model, repo: "org/na.me-1".to_owned(), revision: None }
    );
    assert_eq!(id("org/name@refs/pr/1").revision.as_deref(), Some("refs/pr/1"));
    for bad in
        ["name", "a/b/c", "./name", "../x", "org/", "/name", "org/name@", "org/..", "org/a b", "a/b@../x"]
    {
        assert_eq!(HubId::parse(bad), None, "{bad}");
    }
}

#[test]
fn fetches_what_is_needed_once_at_one_commit() {
    let dir = tempfile::tempdir().unwrap();
    let server = play_hub(good(), None);
    let env = env(&server, dir.path());
    let snapshot = fetch(&id("org/name"), &env).unwrap();
    assert_eq!(snapshot.commit, COMMIT);
    assert_eq!(snapshot.dir, dir.path().join("models--org--name/snapshots").join(COMMIT));
    assert_eq!(Checkpoint::open(&snapshot.dir).unwrap().names().collect::<Vec<_>>(), ["a"]);
    assert!(snapshot.dir.join("tokenizer.json").is_file());
    let asked = server.seen();
    assert!(!asked.iter().any(|r| r.path.contains("pytorch_model") || r.path.contains("README")));
    assert!(asked.iter().all(|r| r.header("authorization").is_none()));
    let before = asked.len();
    assert_eq!(fetch(&id("org/name@v1"), &env).unwrap(), snapshot);
    assert_eq!(server.seen().len(), before + 1, "only the revision is asked for again");
    // Both names of the commit are known offline, and so is the commit.
    let offline = HubEnv { offline: true, ..env };
    let before = server.seen().len();
    for name in ["org/name", "org/name@v1", &format!("org/name@{COMMIT}")] {
        assert_eq!(fetch(&id(name), &offline).unwrap(), snapshot);
    }
    assert_eq!(server.seen().len(), before, "offline means offline");
}

#[test]
fn shards_are_taken_from_the_index() {
    let dir = tempfile::tempdir().unwrap();
    let index = r#"{"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}"#;
    let mut files = vec![
        ("config.json", b"{}".to_vec()),
        ("model.safetensors.index.json", index.as_bytes().to_vec()),
        ("x-1.safetensors", shard("a")),
        ("x-2.safetensors", shard("b")),
        ("consolidated.safetensors", shard("c")),
    ];
    let server = play_hub(files.clone(), None);
    let snapshot = fetch(&id("org/name@refs/pr/1"), &env(&server, dir.path())).unwrap();
    assert_eq!(Checkpoint::open(&snapshot.dir).unwrap().names().count(), 2);
    assert!(!snapshot.dir.join("consolidated.safetensors").exists());
    files.remove(3);
    let other = tempfile::tempdir().unwrap();
    let error = fetch(&id("org/name"), &env(&play_hub(files, None), other.path())).unwrap_err();
    assert!(matches!(error, HubError::MissingFile { file, .. } if file == "x-2.safetensors"));
}

#[test]
fn token_is_sent_and_its_absence_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let server = play_hub(good(), Some("hf_secret"));
    let mut env = env(&server, dir.path());
    let error = fetch(&id("org/name"), &env).unwrap_err();
    assert!(matches!(error, HubError::Refused { status: 401, token_sent: false, .. }), "{error}");
    assert!(error.hint().unwrap().contains("HF_TOKEN"));
    env.token = Some("hf_secret".to_owned());
    fetch(&id("org/name"), &env).unwrap();
}

#[test]
fn gated_files_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start(|request: &Request| {
        if request.path.starts_with("/api/") {
            let files = r#"[{"rfilename":"config.json"},{"rfilename":"model.safetensors"}]"#;
            return Reply::ok(format!(r#"{{"sha":"{COMMIT}","siblings":{files}}}"#));
        }
        Reply::new(403, Vec::new())
    });
    let error = fetch(&id("org/name"), &env(&server, dir.path())).unwrap_err();
    assert!(matches!(error, HubError::Refused { status: 403, .. }), "{error}");
}

#[test]
fn what_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let server = play_hub(good(), None);
    for name in ["org/other", "org/name@v9"] {
        let error = fetch(&id(name), &env(&server, dir.path())).unwrap_err();
        assert!(matches!(error, HubError::NotFound { .. }), "{error}");
        assert_eq!(error.failure_class(), FailureClass::UserConfigError);
    }
    let down = HubEnv { endpoint: "http://127.0.0.1:1".to_owned(), ..env(&server, dir.path()) };
    let failure = Failure::from(fetch(&id("org/name"), &down).unwrap_err());
    assert_eq!(failure.class, FailureClass::InfraTransient);
}

#[test]
fn repositories_without_safetensors() {
    let dir = tempfile::tempdir().unwrap();
    let try_files = |files| fetch(&id("org/name"), &env(&play_hub(files, None), dir.path())).unwrap_err();
    let pickle = try_files(vec![("config.json", b"{}".to_vec()), ("pytorch_model.bin", b"x".to_vec())]);
    assert!(matches!(pickle, HubError::Pickle { ref file, .. } if file == "pytorch_model.bin"), "{pickle}");
    let gguf = try_files(vec![("m.Q4_K.gguf", b"x".to_vec())]);
    assert!(gguf.hint().unwrap().contains("m.Q4_K.gguf"));
    let empty = try_files(vec![("config.json", b"{}".to_vec())]);
    assert!(matches!(empty, HubError::NoWeights { found: None, .. }));
    let no_config = try_files(vec![("model.safetensors", shard("a"))]);
    assert!(matches!(no_config, HubError::MissingFile { file, .. } if file == "config.json"));
}

#[test]
fn offline_names_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let server = play_hub(good(), None);
    let online = env(&server, dir.path());
    let offline = HubEnv { offline: true, ..online.clone() };
    let error = fetch(&id("org/name"), &offline).unwrap_err();
    assert!(matches!(&error, HubError::Offline { what, .. } if what == "revision main"), "{error}");
    let snapshot = fetch(&id("org/name"), &online).unwrap();
    std::fs::remove_file(snapshot.dir.join("model.safetensors")).unwrap();
    let error = fetch(&id("org/name"), &offline).unwrap_err();
    assert!(matches!(&error, HubError::Offline { what, .. } if what == "model.safetensors"), "{error}");
}

#[test]
fn odd_answers() {
    let dir = tempfile::tempdir().unwrap();
    for body in ["", "[]", r#"{"sha":"../../x","siblings":[]}"#, r#"{"sha":1,"siblings":[]}"#] {
        let server = TestServer::start(move |_: &Request| Reply::ok(body));
        let error = fetch(&id("org/name"), &env(&server, dir.path())).unwrap_err();
        assert!(matches!(error, HubError::Answer { .. }), "{error}");
    }
}

/// A hub that is busy at first, and one that dies in the middle of the weights once: both deliver in the end.
#[test]
fn a_hub_that_recovers_is_waited_for() {
    let (busy, broken) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let server = hub_with_moods(move |request| {
        if request.path.contains("/revision/") && busy.fetch_add(1, Ordering::Relaxed) == 0 {
            return Some(Reply::new(429, Vec::new()).header("Retry-After", "0"));
        }
        let weights = request.path.ends_with("model.safetensors") && is_download(request);
        (weights && broken.fetch_add(1, Ordering::Relaxed) == 0)
            .then(|| from_hub_file(request).broken_off(20))
    });
    let dir = tempfile::tempdir().unwrap();
    let snapshot = fetch(&id("org/name"), &env(&server, dir.path())).unwrap();
    assert_eq!(std::fs::read(snapshot.dir.join("model.safetensors")).unwrap(), shard("a"));
}

/// A hub that keeps dying is a transient fault, and what it sent is never taken for the file.
#[test]
fn a_hub_that_keeps_breaking_off_leaves_no_file() {
    let server = hub_with_moods(|request| {
        let weights = request.path.ends_with("model.safetensors") && is_download(request);
        weights.then(|| from_hub_file(request).broken_off(0))
    });
    let dir = tempfile::tempdir().unwrap();
    let failure = Failure::from(fetch(&id("org/name"), &env(&server, dir.path())).unwrap_err());
    assert_eq!(failure.class, FailureClass::InfraTransient, "{}", failure.message);
    assert!(failure.message.contains("model.safetensors"), "{}", failure.message);
    let offline = HubEnv { offline: true, ..env(&server, dir.path()) };
    assert!(fetch(&id("org/name"), &offline).is_err());
}

/// A hub that stays busy is a transient fault too.
#[test]
fn a_hub_that_stays_busy_is_transient() {
    let server = hub_with_moods(|_| Some(Reply::new(429, Vec::new())));
    let dir = tempfile::tempdir().unwrap();
    let failure = Failure::from(fetch(&id("org/name"), &env(&server, dir.path())).unwrap_err());
    assert_eq!(failure.class, FailureClass::InfraTransient);
    assert!(failure.hint.unwrap().contains("limits requests"));
}

/// hf-hub asks for the first byte to learn size and commit; everything else is a download.
fn is_download(request: &Request) -> bool {
    request.header("range") != Some("bytes=0-0")
}

fn from_hub_file(request: &Request) -> Reply {
    let (_, body) = good().into_iter().find(|(name, _)| request.path.ends_with(name)).unwrap();
    let name = request.path.rsplit('/').next().unwrap_or_default().to_owned();
    Reply::range(request, &body)
        .header("ETag", &format!("\"etag-of-{name}\""))
        .header("x-repo-commit", COMMIT)
}

/// The good hub, but for the answers that `mood` gives instead.
fn hub_with_moods(mood: impl Fn(&Request) -> Option<Reply> + Send + 'static) -> TestServer {
    TestServer::start(move |request: &Request| {
        if let Some(reply) = mood(request) {
            return reply;
        }
        if request.path.contains("/revision/") {
            let siblings: Vec<_> = good().iter().map(|(n, _)| serde_json::json!({"rfilename": n})).collect();
            return Reply::ok(serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string());
        }
        from_hub_file(request)
    })
}
