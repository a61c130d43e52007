//! Wrong input gets a message that names it, the right exit code, and leaves nothing behind.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::common::{Ran, cache, day0, ran, read_json, turn};

/// A copy of the embedded model, to be damaged.
pub fn model(dir: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/day0-tiny");
    let target = dir.join("m");
    std::fs::create_dir(&target).unwrap();
    for entry in std::fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, target.join(path.file_name().unwrap())).unwrap();
    }
    target
}

fn edit_config(model: &Path, edit: impl Fn(&mut Value)) {
    let path = model.join("config.json");
    let mut config = read_json(&path);
    edit(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

/// Header and data of the model's only shard.
pub fn shard(model: &Path) -> (Value, Vec<u8>) {
    let bytes = std::fs::read(model.join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), bytes[8 + length..].to_vec())
}

fn write_shard(model: &Path, header: &Value, data: &[u8]) {
    let text = header.to_string();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.extend(data);
    std::fs::write(model.join("model.safetensors"), bytes).unwrap();
}

const TENSOR: &str = "model.layers.0.self_attn.q_proj.weight";

/// Quantizes a damaged model: the exit code must be `code`, the message must hold all of `words`, and nothing may lie
/// under the final name.
#[track_caller]
fn refused(code: i32, words: &[&str], damage: impl Fn(&Path)) {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    damage(&model(dir.path()));
    let mut ran = day0(dir.path(), ["quantize", "m", "--recipe", "fp8_dynamic", "--out", "q"]).expect(code);
    for word in words {
        ran = ran.says(word);
    }
    assert!(!dir.path().join("q").exists());
}

#[test]
fn truncated_weights() {
    refused(2, &["model.safetensors"], |m| {
        let bytes = std::fs::read(m.join("model.safetensors")).unwrap();
        std::fs::write(m.join("model.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    });
}

#[test]
fn overlapping_tensors() {
    refused(2, &["model.safetensors"], |m| {
        let (mut header, data) = shard(m);
        let first = header["model.layers.0.self_attn.k_proj.weight"]["data_offsets"].clone();
        header["model.layers.0.self_attn.v_proj.weight"]["data_offsets"] = first;
        write_shard(m, &header, &data);
    });
}

#[test]
fn header_of_an_exabyte() {
    refused(2, &["model.safetensors"], |m| {
        std::fs::write(m.join("model.safetensors"), (1u64 << 60).to_le_bytes()).unwrap();
    });
}

#[test]
fn not_a_number_in_the_weights() {
    refused(4, &["MODEL_UNSUPPORTED", TENSOR], |m| {
        let (header, mut data) = shard(m);
        let at = header[TENSOR]["data_offsets"][0].as_u64().unwrap() as usize + 10;
        data[at..at + 2].copy_from_slice(&0x7fc0u16.to_le_bytes());
        write_shard(m, &header, &data);
    });
}

#[test]
fn missing_and_broken_config() {
    refused(2, &["config.json"], |m| std::fs::remove_file(m.join("config.json")).unwrap());
    refused(2, &["config.json"], |m| std::fs::write(m.join("config.json"), "{").unwrap());
}

#[test]
fn pickle_weights() {
    refused(2, &["pytorch_model.bin"], |m| {
        std::fs::rename(m.join("model.safetensors"), m.join("pytorch_model.bin")).unwrap();
    });
}

#[test]
fn missing_model_and_unwritable_target() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    day0(dir.path(), ["quantize", "./nowhere", "--recipe", "fp8", "--out", "q"]).expect(2).says("nowhere");
    day0(dir.path(), ["quantize", "day0-tiny", "--recipe", "fp8", "--out", "/proc/q"])
        .expect(2)
        .says("/proc");
    day0(dir.path(), ["import", "nowhere.gguf", "--out", "q"]).expect(2).says("nowhere.gguf");
    std::fs::write(dir.path().join("x.gguf"), b"GGUF\xff\xff\xff\xff").unwrap();
    day0(dir.path(), ["import", "x.gguf", "--out", "q"]).expect(2).says("x.gguf");
    assert!(!dir.path().join("q").exists());
}

#[test]
fn recipes_that_are_wrong_or_do_not_fit() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let quantize =
        |recipe: &str| day0(dir.path(), ["quantize", "day0-tiny", "--recipe", recipe, "--out", "q"]);
    quantize("fp8_dynamc").expect(2).says("fp8_dynamic");
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/w4a16.yaml")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("typo.yaml", &text.replace("group_size", "group_sise"));
    quantize("typo.yaml").expect(2).says("typo.yaml:").says("group_size");
    write("g96.yaml", &text.replace("128", "96"));
    quantize("g96.yaml").expect(4).says("MODEL_UNSUPPORTED").says("down_proj").says("64");
    assert!(!dir.path().join("q").exists());
}

#[test]
fn architecture_that_the_engine_does_not_know() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    edit_config(&model(dir.path()), |config| {
        config["architectures"] = json!(["NovelForCausalLM"]);
        config["model_type"] = json!("novel");
    });
    // Quantizing works by names and shapes; releasing needs an engine.
    day0(dir.path(), ["quantize", "m", "--recipe", "fp8", "--out", "q"]).expect(0);
    day0(dir.path(), ["serve", "m", "--port", "0"]).expect(4).says("Novel");
    let ran = day0(dir.path(), ["release", "m", "--out", "run"]).expect(4);
    ran.says("MODEL_UNSUPPORTED").says("Novel");
    assert!(!dir.path().join("run/quantize").exists());
}

#[test]
fn configurations_that_are_wrong() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        ("recipee: w8a8", "recipe"),
        ("margin: 7", "margin"),
        ("limit: 0", "limit"),
        ("tasks: {tiny_colour: {margin: 0.02}}", "tiny_colours"),
        ("suites: [arc_easi]", "arc_easy"),
    ];
    for (text, word) in cases {
        std::fs::write(dir.path().join("c.yaml"), text).unwrap();
        day0(dir.path(), ["release", "--config", "c.yaml", "--out", "run"]).expect(2).says(word);
    }
    day0(dir.path(), ["release", "--config", "none.yaml"]).expect(2).says("none.yaml");
    assert!(!dir.path().join("run").exists());
}

#[test]
fn gates_on_files_that_are_wrong() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("x.json"), "[1,").unwrap();
    day0(dir.path(), ["gate", "run", "--run", "x.json"]).expect(2).says("x.json");
    std::fs::write(dir.path().join("x.json"), "{}").unwrap();
    let report = day0(dir.path(), ["gate", "run", "--run", "x.json"]).expect(3).json();
    assert_eq!(report["failure_class"], json!("USER_CONFIG_ERROR"));
}

#[test]
fn infinity_in_the_weights() {
    refused(4, &["MODEL_UNSUPPORTED", TENSOR, "inf"], |m| {
        let (header, mut data) = shard(m);
        let at = header[TENSOR]["data_offsets"][0].as_u64().unwrap() as usize + 10;
        data[at..at + 2].copy_from_slice(&0xff80u16.to_le_bytes());
        write_shard(m, &header, &data);
    });
}

#[test]
fn keys_that_occur_twice() {
    refused(2, &["config.json", "'hidden_size' occurs twice", "line"], |m| {
        let text = std::fs::read_to_string(m.join("config.json")).unwrap();
        std::fs::write(m.join("config.json"), text.replacen('{', "{\"hidden_size\": 64,", 1)).unwrap();
    });
    refused(2, &["model.safetensors", TENSOR], |m| {
        let bytes = std::fs::read(m.join("model.safetensors")).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let text = std::str::from_utf8(&bytes[8..8 + length]).unwrap();
        // Another tensor of the same shape takes the name; the JSON keeps its length.
        let other = TENSOR.replace("layers.0", "layers.1");
        let mut doubled = bytes[..8].to_vec();
        doubled.extend(text.replace(&other, TENSOR).bytes());
        doubled.extend(&bytes[8 + length..]);
        std::fs::write(m.join("model.safetensors"), doubled).unwrap();
    });
}

#[test]
fn index_that_does_not_fit_its_shards() {
    let write = |m: &Path, text: &str| std::fs::write(m.join("model.safetensors.index.json"), text).unwrap();
    let whole = |m: &Path| {
        let (header, _) = shard(m);
        let names = header.as_object().unwrap().keys().filter(|k| *k != "__metadata__").cloned();
        names.map(|n| (n, json!("model.safetensors"))).collect::<serde_json::Map<_, _>>()
    };
    refused(2, &["index.json", "occurs twice", "norm"], |m| {
        let twice = r#"{"weight_map": {"norm": "model.safetensors", "norm": "model.safetensors"}}"#;
        write(m, twice);
    });
    refused(2, &["model-00002-of-00002.safetensors", "hint:"], |m| {
        let mut map = whole(m);
        map.insert(TENSOR.to_owned(), json!("model-00002-of-00002.safetensors"));
        write(m, &json!({"weight_map": map}).to_string());
    });
    refused(2, &["model.safetensors", TENSOR, "weight_map"], |m| {
        let mut map = whole(m);
        map.remove(TENSOR);
        write(m, &json!({"weight_map": map}).to_string());
    });
}

#[test]
fn weights_that_contradict_the_config() {
    refused(2, &["model.embed_tokens.weight", "[832, 256]", "[832, 512]", "hint:"], |m| {
        edit_config(m, |config| config["hidden_size"] = json!(512));
    });
    refused(2, &["k_proj", "head_dim"], |m| {
        edit_config(m, |config| config["num_key_value_heads"] = json!(4));
    });
    // A release does not begin: there is nothing to decide about.
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    edit_config(&model(dir.path()), |config| config["hidden_size"] = json!(512));
    for more in [&["--out", "run"][..], &["--plan"]] {
        let args = ["release", "m", "--limit", "5"].iter().chain(more);
        day0(dir.path(), args).expect(2).says("model.embed_tokens.weight").says("hint:");
    }
    assert!(!dir.path().join("run").exists());
}

#[test]
fn recipe_that_matches_nothing() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/fp8_dynamic.yaml"))
            .unwrap();
    std::fs::write(dir.path().join("none.yaml"), text.replace("[Linear]", "['re:.*no_such_layer$']"))
        .unwrap();
    day0(dir.path(), ["quantize", "day0-tiny", "--recipe", "none.yaml", "--out", "q"])
        .expect(4)
        .says("MODEL_UNSUPPORTED")
        .says("matches none of the")
        .says("--recipe");
    assert!(!dir.path().join("q").exists());
}

/// Quantizes into a small file system of its own, mounted with `options`; `None` where the system allows no mounts.
fn into_mount(options: &str) -> Option<Ran> {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("mount");
    std::fs::create_dir(&target).unwrap();
    let script = format!(
        "mount -t tmpfs -o {options} tmpfs mount || exit 99; exec \"$0\" quantize day0-tiny --recipe fp8 --out mount/q"
    );
    let mut unshare = std::process::Command::new("unshare");
    unshare.args(["-rm", "sh", "-c", &script, env!("CARGO_BIN_EXE_day0")]);
    unshare.current_dir(dir.path()).env("DAY0_CACHE", cache()).stdin(std::process::Stdio::null());
    let finished =
        unshare.output().ok().map(ran).filter(|r| r.code != Some(99) && !r.stderr.contains("unshare:"));
    if finished.is_none() {
        println!("skipped: this system lets nobody mount a file system");
    }
    finished
}

#[test]
fn full_and_read_only_targets() {
    let _turn = turn();
    // The model is in the cache before a disk is full.
    let dir = tempfile::tempdir().unwrap();
    day0(dir.path(), ["quantize", "day0-tiny", "--recipe", "fp8", "--out", "q", "--dry-run"]).expect(10);
    if let Some(ran) = into_mount("size=1m") {
        ran.expect(75).says("INFRA_TRANSIENT").says("mount/").says("hint:");
    }
    if let Some(ran) = into_mount("size=1m,ro") {
        ran.expect(2).says("Read-only file system").says("mount/");
    }
}

/// What a CI system shows is written for an ending without a record too, and is no obstacle to the run that follows.
#[test]
fn ci_files_are_written_for_a_release_that_never_began() {
    let dir = tempfile::tempdir().unwrap();
    let step = dir.path().join("step.md");
    let release = |recipe: &str| {
        let args = ["release", "--limit", "40", "--recipe", recipe, "--out", "run", "--ci"];
        let _turn = crate::common::turn();
        crate::common::ran(
            crate::common::command(dir.path(), args).env("GITHUB_STEP_SUMMARY", &step).output().unwrap(),
        )
    };
    let text = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    release("w8a9").expect(2);
    assert!(text("run/junit.xml").contains("<error type=\"USER_CONFIG_ERROR\""), "{}", text("run/junit.xml"));
    assert!(text("run/summary.md").contains("`USER_CONFIG_ERROR`"), "{}", text("run/summary.md"));
    assert_eq!(text("step.md"), text("run/summary.md"));
    release("w8a8").expect(3);
    assert!(text("run/junit.xml").contains("INSUFFICIENT_EVIDENCE"), "{}", text("run/junit.xml"));
    assert!(text("run/summary.md").starts_with("## day0: ANOMALOUS"), "{}", text("run/summary.md"));
    assert!(text("step.md").ends_with(&text("run/summary.md")), "one summary after the other");
    // Another release into the same directory is refused, and leaves the files of the one that is there.
    release("w8a8").expect(2).says("holds a run already");
    assert!(text("run/summary.md").starts_with("## day0: ANOMALOUS"));
}
