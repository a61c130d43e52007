//! What lies where `day0 quantize`, or a release, writes: another run's checkpoint is left alone, a killed run's files do
//! not get into another one's checkpoint, and a damaged checkpoint of the run itself is made anew.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::bad_input::{model, shard};
use super::common::{command, day0, read_json, turn};

/// Verifying takes longest when errors are measured.
const V1: [&str; 7] = ["quantize", "m", "--recipe", "w8a8", "--out", "q", "--errors"];

/// Every file of a directory with its content.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

/// Kills [`V1`] after its checkpoint got its name and before it is verified, so that the ledger is left beside it.
fn kill_while_verifying(dir: &Path) {
    let (checkpoint, ledger) = (dir.join("q"), dir.join("q.ledger.jsonl"));
    for _ in 0..50 {
        let mut child = command(dir, V1).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while !checkpoint.exists() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if ledger.exists() && checkpoint.exists() {
            return;
        }
        std::fs::remove_dir_all(&checkpoint).unwrap();
    }
    panic!("no run was killed while it verified");
}

/// Flips a bit of the last weight.
fn change_last_byte(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_checkpoint_of_another_run_is_left_as_it_is() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let source = model(dir.path());
    kill_while_verifying(dir.path());
    let (before, checkpoint) = (files(&dir.path().join("q")), dir.path().join("q"));
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    for (name, content) in files(&source) {
        std::fs::write(other.join(name), content).unwrap();
    }
    change_last_byte(&other.join("model.safetensors"));
    for args in [["other", "w8a8"], ["m", "fp8_dynamic"]] {
        day0(dir.path(), ["quantize", args[0], "--recipe", args[1], "--out", "q"])
            .expect(2)
            .says("exists already, made by another run")
            .says("hint: choose a new --out");
        assert_eq!(files(&checkpoint), before, "{args:?}");
    }
    // Its own run goes on, unless somebody changed a shard meanwhile.
    change_last_byte(&checkpoint.join("model.safetensors"));
    day0(dir.path(), V1).expect(2).says("model.safetensors in it is not what this one wrote");
    change_last_byte(&checkpoint.join("model.safetensors"));
    day0(dir.path(), V1).expect(0);
    assert_eq!(files(&checkpoint), before);
    assert!(!dir.path().join("q.ledger.jsonl").exists());
}

#[test]
fn files_of_another_killed_run_are_not_published() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let quantize = |out: &str| day0(dir.path(), ["quantize", "day0-tiny", "--recipe", "w8a8", "--out", out]);
    quantize("calm").expect(0);
    let staging = dir.path().join("q.partial");
    std::fs::create_dir_all(staging.join("folder")).unwrap();
    let stray = "model-00001-of-00002.safetensors";
    std::fs::copy(dir.path().join("calm/model.safetensors"), staging.join(stray)).unwrap();
    let index = json!({"weight_map": {"model.norm.weight": stray}});
    std::fs::write(staging.join("model.safetensors.index.json"), index.to_string()).unwrap();
    std::fs::write(staging.join("tokenizer.model"), "of another model").unwrap();
    quantize("q").expect(0);
    assert_eq!(files(&dir.path().join("q")), files(&dir.path().join("calm")));
}

/// The model's one weight file as two with an index.
fn split(model: &Path) {
    let (header, data) = shard(model);
    let header = header.as_object().unwrap();
    let tensors: Vec<&String> = header.keys().filter(|name| *name != "__metadata__").collect();
    let mut weight_map = Map::new();
    for (number, names) in tensors.chunks(tensors.len().div_ceil(2)).enumerate() {
        let file = format!("model-{:05}-of-00002.safetensors", number + 1);
        let (mut part, mut bytes) = (Map::new(), Vec::new());
        for name in names {
            let mut info = header[*name].clone();
            let at = |i: usize| info["data_offsets"][i].as_u64().unwrap() as usize;
            let begin = bytes.len();
            bytes.extend(&data[at(0)..at(1)]);
            info["data_offsets"] = json!([begin, bytes.len()]);
            part.insert((*name).clone(), info);
            weight_map.insert((*name).clone(), json!(file));
        }
        let text = Value::Object(part).to_string();
        let mut whole = (text.len() as u64).to_le_bytes().to_vec();
        whole.extend(text.bytes().chain(bytes));
        std::fs::write(model.join(file), whole).unwrap();
    }
    std::fs::remove_file(model.join("model.safetensors")).unwrap();
    let index = json!({"weight_map": weight_map});
    std::fs::write(model.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn a_release_makes_its_damaged_checkpoint_anew() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    split(&model(dir.path()));
    day0(dir.path(), ["release", "m", "--limit", "5", "--recipe", "w8a8", "--out", "run"]).expect(3);
    let checkpoint = dir.path().join("run/quantize/checkpoint");
    let before = files(&checkpoint);
    let digest = || read_json(dir.path().join("run/quantize/record.json"))["output_digest"].clone();
    let recorded = digest();
    change_last_byte(&checkpoint.join("model-00002-of-00002.safetensors"));
    std::fs::write(checkpoint.join("added_tokens.json"), "{}").unwrap();
    day0(dir.path(), ["release", "--resume", "run"]).expect(3);
    assert_eq!(files(&checkpoint), before);
    assert_eq!(digest(), recorded);
    assert!(!dir.path().join("run/quantize/checkpoint.partial").exists());
}
