//! A local server that serves ranges, plays the hub, or misbehaves.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use safetensors::Dtype;

use super::super::test_server::{Reply, Request, TestServer};
use super::super::writer::{ShardWriter, TensorSpec};
use super::*;

/// A file of U8 tensors of this many bytes each.
fn shard(tensors: &[(&str, usize)]) -> Vec<u8> {
    let specs: Vec<_> = tensors
        .iter()
        .map(|(name, len)| TensorSpec { name: (*name).to_owned(), dtype: Dtype::U8, shape: vec![*len] })
        .collect();
    let mut writer = ShardWriter::new(Vec::new(), &specs, &BTreeMap::new()).unwrap();
    for (name, len) in tensors {
        writer.write_tensor(name, &vec![7; *len]).unwrap();
    }
    writer.finish().unwrap().0
}

fn env(endpoint: &str) -> HubEnv {
    HubEnv {
        endpoint: endpoint.to_owned(),
        cache: PathBuf::new(),
        token: Some("secret".to_owned()),
        offline: false,
    }
}

fn serve(files: Vec<(&'static str, Vec<u8>)>) -> TestServer {
    TestServer::start(move |request: &Request| {
        files
            .iter()
            .find(|(path, _)| *path == request.path)
            .map_or_else(|| Reply::new(404, Vec::new()), |(_, body)| Reply::range(request, body))
    })
}

fn open_at(server: &TestServer, path: &str) -> Result<RemoteCheckpoint, RemoteError> {
    open_with(&server.url(path), &env("https://elsewhere.example"))
}

#[test]
fn single_file_reads_only_the_header() {
    let file = shard(&[("a", 4), ("b", 3 << 20)]);
    let size = file.len() as u64;
    let server = serve(vec![("/m/model.safetensors", file), ("/m/config.json", b"{\"x\":1}".to_vec())]);
    for path in ["/m", "/m/", "/m/model.safetensors"] {
        let remote = open_at(&server, path).unwrap();
        assert_eq!(remote.shards[0].header.get("b").unwrap().shape, [3 << 20]);
        assert_eq!(remote.shards[0].file_bytes, size);
        assert_eq!(remote.config.as_ref().unwrap()["x"], 1);
    }
    assert!(server.seen().iter().all(|r| r.header("authorization").is_none()), "no token for strangers");
}

#[test]
fn long_header_takes_a_second_request() {
    let names: Vec<String> = (0..6000).map(|i| format!("model.layers.{i}.self_attn.q_proj.weight")).collect();
    let tensors: Vec<(&str, usize)> = names.iter().map(|n| (n.as_str(), 1)).collect();
    let server = serve(vec![("/model.safetensors", shard(&tensors))]);
    assert_eq!(open_at(&server, "").unwrap().shards[0].header.tensors.len(), 6000);
    let ranges: Vec<_> = server.seen().iter().filter_map(|r| r.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges.len(), 2);
    assert!(ranges[1].starts_with("bytes=32768-"), "{ranges:?}");
}

/// What the server sent is what the counter says, and next to nothing of the model.
#[test]
fn counter_is_what_the_server_sent() {
    let files = [shard(&[("a", 3 << 20)]), shard(&[("b", 5 << 20)])];
    let total: u64 = files.iter().map(|f| f.len() as u64).sum();
    let index = br#"{"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}"#.to_vec();
    let sent = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&sent);
    let server = TestServer::start(move |request: &Request| {
        let reply = match request.path.as_str() {
            "/model.safetensors.index.json" => Reply::ok(index.clone()),
            "/x-1.safetensors" => Reply::range(request, &files[0]),
            "/x-2.safetensors" => Reply::range(request, &files[1]),
            _ => return Reply::new(404, Vec::new()),
        };
        counter.fetch_add(reply.body().len() as u64, Ordering::Relaxed);
        reply
    });
    let transfer = open_at(&server, "").unwrap().transfer;
    assert_eq!(transfer.bytes_read, sent.load(Ordering::Relaxed));
    assert_eq!((transfer.weight_file_bytes, transfer.requests), (total, 4));
    assert!(transfer.bytes_read * 100 < total, "{transfer:?}");
}

/// The hub answers with a redirect to a store, which gets the range but not the token.
#[test]
fn redirects_keep_the_range_and_not_the_token() {
    let file = shard(&[("a", 1 << 20)]);
    let store = serve(vec![("/blob/1", file)]);
    let target = store.url("/blob/1");
    let hub = TestServer::start(move |request: &Request| match request.path.as_str() {
        "/org/name/resolve/main/model.safetensors" => Reply::new(302, Vec::new()).header("Location", &target),
        _ => Reply::new(404, Vec::new()),
    });
    let remote = open_with(&hub.url("/org/name"), &env(&hub.url(""))).unwrap();
    assert_eq!(remote.shards[0].header.tensors.len(), 1);
    let seen = store.seen();
    assert!(seen.iter().all(|r| r.header("range").is_some() && r.header("authorization").is_none()));
    let turning = TestServer::start(|_| Reply::new(302, Vec::new()).header("Location", "/again"));
    let error = open_at(&turning, "").unwrap_err();
    assert!(matches!(error, RemoteError::Http(HttpError::Request { .. })), "{error}");
}

/// Answers that are too short, too long, or of a file that changes between two requests.
#[test]
fn lying_answers_are_errors() {
    let names: Vec<String> = (0..2000).map(|i| format!("model.layers.{i}.self_attn.q_proj.weight")).collect();
    let tensors: Vec<(&str, usize)> = names.iter().map(|n| (n.as_str(), 1)).collect();
    let file = shard(&tensors);
    let cut = |at: usize| {
        let (file, part) = (file.clone(), file[32768..].to_vec());
        TestServer::start(move |request: &Request| match request.header("range") {
            Some("bytes=0-32767") => Reply::range(request, &file),
            Some(_) if request.path == "/model.safetensors" => {
                let whole = file.len() + at;
                let last = 32768 + part.len() - 1;
                let body = part[..part.len() - 10 * at].to_vec();
                Reply::new(206, body).header("Content-Range", &format!("bytes 32768-{last}/{whole}"))
            }
            _ => Reply::new(404, Vec::new()),
        })
    };
    let error = open_at(&cut(1), "").unwrap_err();
    assert!(matches!(error, RemoteError::Http(_)), "{error}");
    let shrunk = shard(&tensors[..1990]);
    let changing = TestServer::start(move |request: &Request| match request.header("range") {
        Some("bytes=0-32767") => Reply::range(request, &file),
        Some(_) if request.path == "/model.safetensors" => Reply::range(request, &shrunk),
        _ => Reply::new(404, Vec::new()),
    });
    assert!(open_at(&changing, "").is_err());
}

#[test]
fn shards_with_index_on_the_hub() {
    let index = r#"{"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}"#;
    let server = serve(vec![
        ("/org/name/resolve/main/model.safetensors.index.json", index.into()),
        ("/org/name/resolve/main/x-1.safetensors", shard(&[("a", 4)])),
        ("/org/name/resolve/main/x-2.safetensors", shard(&[("b", 4)])),
    ]);
    let env = env(&server.url(""));
    for page in ["/org/name", "/org/name/tree/main"] {
        let remote = open_with(&server.url(page), &env).unwrap();
        assert_eq!(remote.shards.len(), 2);
        assert!(remote.config.is_none());
    }
    assert!(server.seen().iter().all(|r| r.header("authorization") == Some("Bearer secret")));
}

#[test]
fn index_is_checked_against_the_shards() {
    let index = r#"{"weight_map": {"a": "x-1.safetensors", "b": "x-1.safetensors"}}"#;
    let server = serve(vec![
        ("/model.safetensors.index.json", index.into()),
        ("/x-1.safetensors", shard(&[("a", 4)])),
    ]);
    let error = open_at(&server, "").unwrap_err();
    assert!(matches!(error, RemoteError::Content(CheckpointError::WrongShard { .. })), "{error}");
}

#[test]
fn failures_are_clear() {
    assert!(matches!(open_at(&serve(vec![]), ""), Err(RemoteError::NoWeights { .. })));
    let empty = serve(vec![("/model.safetensors", Vec::new())]);
    assert!(matches!(
        open_at(&empty, ""),
        Err(RemoteError::Header { source: HeaderError::TooShort { .. }, .. })
    ));
    let huge = serve(vec![("/model.safetensors", (1u64 << 60).to_le_bytes().to_vec())]);
    assert!(matches!(
        open_at(&huge, ""),
        Err(RemoteError::Header { source: HeaderError::TooLarge { .. }, .. })
    ));
    let mut cut = shard(&[("a", 4)]);
    cut.truncate(cut.len() - 1);
    let cut = serve(vec![("/model.safetensors", cut)]);
    assert!(matches!(open_at(&cut, ""), Err(RemoteError::Header { .. })));
    let file = shard(&[("a", 4)]);
    let no_range = TestServer::start(move |r| {
        if r.path.ends_with(".safetensors") { Reply::ok(file.clone()) } else { Reply::new(404, Vec::new()) }
    });
    let error = open_at(&no_range, "").unwrap_err();
    assert!(matches!(error, RemoteError::Http(HttpError::NoRange { .. })), "{error}");
    assert!(error.hint().unwrap().contains("download"));
}
