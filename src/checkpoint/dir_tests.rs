//! Opening good and broken directories.
#![expect(clippy::disallowed_methods, reason = "tests write their own broken files")]

use std::path::Path;

use serde_json::json;

use super::super::writer::{ShardWriter, TensorSpec};
use super::*;
use crate::record::{Classified, Failure, FailureClass};

/// Writes a file with U8 tensors of four equal bytes each.
fn shard(dir: &Path, file: &str, tensors: &[(&str, u8)]) {
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(name, _)| TensorSpec {
            name: (*name).to_owned(),
            dtype: safetensors::Dtype::U8,
            shape: vec![4],
        })
        .collect();
    let out = std::fs::File::create(dir.join(file)).unwrap();
    let mut writer = ShardWriter::new(out, &specs, &BTreeMap::new()).unwrap();
    for (name, byte) in tensors {
        writer.write_tensor(name, &[*byte; 4]).unwrap();
    }
    writer.finish().unwrap();
}

fn text(dir: &Path, file: &str, content: &str) {
    std::fs::write(dir.join(file), content).unwrap();
}

fn sharded(dir: &Path) {
    text(dir, CONFIG, r#"{"model_type": "llama"}"#);
    shard(dir, "model-00001-of-00002.safetensors", &[("b", 1), ("a", 2)]);
    shard(dir, "model-00002-of-00002.safetensors", &[("c", 3)]);
    index(dir, &json!({"a": 1, "b": 1, "c": 2}));
}

fn index(dir: &Path, map: &Value) {
    let map: BTreeMap<&String, String> = map
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, shard)| (name, format!("model-0000{shard}-of-00002.safetensors")))
        .collect();
    text(dir, INDEX, &json!({"metadata": {"total_size": 12}, "weight_map": map}).to_string());
}

fn open_error(dir: &Path) -> CheckpointError {
    Checkpoint::open(dir).unwrap_err()
}

#[test]
fn single_file() {
    let dir = tempfile::tempdir().unwrap();
    text(dir.path(), CONFIG, "{}");
    text(dir.path(), "tokenizer.json", "{}");
    text(dir.path(), "training_args.bin", "pickle");
    shard(dir.path(), SINGLE, &[("b", 1), ("a", 2)]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(checkpoint.get("a").unwrap().data, [2; 4]);
    assert_eq!(checkpoint.shards()[0].tensors, ["b", "a"]);
    checkpoint.release("a");
    assert_eq!(checkpoint.get("a").unwrap().data, [2; 4]);
    let place = checkpoint.location("a").unwrap();
    assert_eq!(std::fs::read(place.path).unwrap()[place.offset as usize..], [2; 4]);
    let names: Vec<_> = checkpoint.metadata_files();
    assert_eq!(names, [dir.path().join(CONFIG), dir.path().join("tokenizer.json")]);
    assert!(checkpoint.quantization_config().unwrap().is_none());
}

#[test]
fn shards_with_index() {
    let dir = tempfile::tempdir().unwrap();
    sharded(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(checkpoint.shards().len(), 2);
    assert_eq!(checkpoint.get("c").unwrap().data, [3; 4]);
}

#[test]
fn missing_tensor_names_the_closest() {
    let dir = tempfile::tempdir().unwrap();
    text(dir.path(), CONFIG, "{}");
    shard(dir.path(), SINGLE, &[("model.norm.weight", 1)]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let error = checkpoint.require("model.norm.weigth").unwrap_err().to_string();
    assert!(error.contains("the closest name is model.norm.weight"), "{error}");
    let error = Failure::from(checkpoint.require_f32("model.norm.weight").unwrap_err());
    assert!(error.message.contains("model.norm.weight: dtype U8"), "{}", error.message);
}

#[test]
fn index_against_shards() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    sharded(dir);
    index(dir, &json!({"a": 2, "b": 1, "c": 2}));
    assert!(
        matches!(open_error(dir), CheckpointError::WrongShard { tensor, actual: Some(_), .. } if tensor == "a")
    );
    index(dir, &json!({"a": 1, "b": 1, "c": 2, "d": 2}));
    assert!(
        matches!(open_error(dir), CheckpointError::WrongShard { tensor, actual: None, .. } if tensor == "d")
    );
    index(dir, &json!({"a": 1, "c": 2}));
    assert!(matches!(open_error(dir), CheckpointError::NotInIndex { tensor, .. } if tensor == "b"));
    index(dir, &json!({"a": 1, "b": 1, "c": 2, "d": 3}));
    assert!(matches!(open_error(dir), CheckpointError::MissingShard { tensor, .. } if tensor == "d"));
    index(dir, &json!({"a": 1, "b": 1, "c": 2}));
    shard(dir, "model-00002-of-00002.safetensors", &[("c", 3), ("a", 1)]);
    assert!(matches!(open_error(dir), CheckpointError::TwoShards { tensor, .. } if tensor == "a"));
}

#[test]
fn index_content() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    sharded(dir);
    for bad in [
        "",
        "[]",
        "{}",
        r#"{"weight_map": 1}"#,
        r#"{"weight_map": {"a": 1}}"#,
        r#"{"weight_map": {"a": "x.safetensors", "a": "x.safetensors"}}"#,
    ] {
        text(dir, INDEX, bad);
        assert!(matches!(open_error(dir), CheckpointError::Json { .. }), "{bad}");
    }
    for bad in [
        r#"{"weight_map": {}}"#,
        r#"{"weight_map": {"a": "../x.safetensors"}}"#,
        r#"{"weight_map": {"a": "/x.safetensors"}}"#,
        r#"{"weight_map": {"a": "pytorch_model.bin"}}"#,
    ] {
        text(dir, INDEX, bad);
        assert!(matches!(open_error(dir), CheckpointError::Field { .. }), "{bad}");
    }
}

#[test]
fn single_file_beside_a_foreign_index_is_ambiguous() {
    let dir = tempfile::tempdir().unwrap();
    sharded(dir.path());
    shard(dir.path(), SINGLE, &[("a", 9)]);
    assert!(matches!(open_error(dir.path()), CheckpointError::Ambiguous { .. }));
}

#[test]
fn pickle_is_refused_by_name() {
    for name in
        ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt", "pytorch_model-00001-of-00002.bin"]
    {
        let dir = tempfile::tempdir().unwrap();
        text(dir.path(), CONFIG, "{}");
        text(dir.path(), name, "");
        let error = open_error(dir.path());
        assert!(error.to_string().contains(name), "{error}");
        assert!(error.hint().unwrap().contains("safe_serialization"));
        assert_eq!(error.failure_class(), FailureClass::UserConfigError);
    }
}

#[test]
fn config_is_required_and_an_object() {
    let dir = tempfile::tempdir().unwrap();
    shard(dir.path(), SINGLE, &[("a", 1)]);
    assert!(matches!(open_error(dir.path()), CheckpointError::NoConfig { .. }));
    text(dir.path(), CONFIG, "{");
    assert!(matches!(open_error(dir.path()), CheckpointError::Json { .. }));
    text(dir.path(), CONFIG, "[1]");
    assert!(matches!(open_error(dir.path()), CheckpointError::Field { .. }));
    text(dir.path(), CONFIG, r#"{"quantization_config": {"quant_method": "gptq"}}"#);
    let failure = Failure::from(Checkpoint::open(dir.path()).unwrap().quantization_config().unwrap_err());
    assert_eq!(failure.class, FailureClass::ModelUnsupported);
    assert!(failure.message.contains("config.json") && failure.message.contains("gptq"), "{failure}");
}

#[test]
fn damaged_weights_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    text(dir.path(), CONFIG, "{}");
    shard(dir.path(), SINGLE, &[("a", 1), ("b", 2)]);
    let path = dir.path().join(SINGLE);
    let whole = std::fs::read(&path).unwrap();
    for cut in [0, 7, 8, 20, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let message = Failure::from(open_error(dir.path())).message;
        assert!(message.contains(SINGLE), "{message}");
    }
}

#[test]
fn no_directory_and_no_weights() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(open_error(&dir.path().join("x")), CheckpointError::NotADirectory { .. }));
    assert!(matches!(open_error(dir.path()), CheckpointError::NoWeights { found: None, .. }));
    shard(dir.path(), "adapter_model.safetensors", &[("a", 1)]);
    assert!(matches!(open_error(dir.path()), CheckpointError::NoWeights { found: Some(_), .. }));
}

#[test]
fn digest_covers_weights_config_and_tokenizer_only() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    sharded(dir);
    let digest = || Checkpoint::open(dir).unwrap().digest().unwrap();
    let first = digest();
    text(dir, "README.md", "hello");
    assert_eq!(digest(), first);
    text(dir, "tokenizer.json", "{}");
    let with_tokenizer = digest();
    assert_ne!(with_tokenizer, first);
    text(dir, CONFIG, r#"{"model_type": "qwen2"}"#);
    let with_config = digest();
    assert_ne!(with_config, with_tokenizer);
    shard(dir, "model-00002-of-00002.safetensors", &[("c", 4)]);
    assert_ne!(digest(), with_config);
}
