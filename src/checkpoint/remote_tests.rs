//! A local server that serves ranges, plays the hub, or misbehaves.

use std::collections::BTreeMap;
use std::path::PathBuf;

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
    assert!(ranges[1].starts_with("bytes=262144-"), "{ranges:?}");
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
