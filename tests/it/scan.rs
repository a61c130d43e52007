//! `day0 scan` of anything, and what `day0 quantize` says before it runs and checks afterwards.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::common::{Ran, command, day0, ran, read_json, turn};

/// Writes a llama-shaped checkpoint of one layer: (name, shape) of bf16 tensors between ±2⁻⁷ and ±2⁻⁵.
fn write_model(dir: &Path, tensors: &[(&str, [usize; 2])]) -> PathBuf {
    write_values(dir, tensors, |i| 0x3c00 + (i * 7919 % 256) as u16 + if i % 3 == 0 { 0x8000 } else { 0 })
}

/// The same with the bits of element i given.
fn write_values(dir: &Path, tensors: &[(&str, [usize; 2])], bits: impl Fn(usize) -> u16) -> PathBuf {
    let model = dir.join("m");
    std::fs::create_dir(&model).unwrap();
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in tensors {
        let begin = data.len();
        data.extend((0..shape[0] * shape[1]).flat_map(|i| bits(i).to_le_bytes()));
        let info = json!({"dtype": "BF16", "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert((*name).to_owned(), info);
    }
    let text = Value::Object(header).to_string();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.extend(data);
    std::fs::write(model.join("model.safetensors"), bytes).unwrap();
    let config = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 1,
        "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": true});
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    model
}

/// A layer of hidden size 576, as SmolLM2's.
const SMALL: [(&str, [usize; 2]); 4] = [
    ("model.layers.0.self_attn.q_proj.weight", [576, 576]),
    ("model.layers.0.self_attn.k_proj.weight", [192, 576]),
    ("model.layers.0.self_attn.v_proj.weight", [192, 576]),
    ("model.layers.0.mlp.down_proj.weight", [576, 1536]),
];

/// What the server does with a range.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Honest,
    NoRanges,
    Short,
    Lying,
}

/// Serves the files of a directory until the test ends; the hub's stand-in.
fn serve(dir: &Path, manner: Manner) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let dir = dir.to_path_buf();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // A client may hang up whenever it likes.
            let _ = answer(&stream, &dir, manner);
        }
    });
    format!("http://{address}")
}

fn answer(stream: &TcpStream, dir: &Path, manner: Manner) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut range = None;
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            range = value.split_once('-').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        }
    }
    let mut out = stream;
    let path = request.split(' ').nth(1).unwrap_or("/").trim_start_matches('/').to_owned();
    let Ok(file) = std::fs::read(dir.join(path)) else {
        return out.write_all(b"HTTP/1.1 404 X\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    };
    let (status, body, extra) = match range.filter(|_| manner != Manner::NoRanges) {
        None => (200, &file[..], String::new()),
        Some((first, last)) => {
            let (first, last): (usize, usize) = (first, last);
            let last = last.min(file.len() - 1);
            let shift = if manner == Manner::Lying { 4 } else { 0 };
            let header =
                format!("Content-Range: bytes {}-{}/{}\r\n", first + shift, last + shift, file.len() + shift);
            (206, &file[first..=last], header)
        }
    };
    write!(out, "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n{extra}\r\n", body.len())?;
    let sent = if manner == Manner::Short && status == 206 { body.len() / 2 } else { body.len() };
    out.write_all(&body[..sent])
}

fn quantize(dir: &Path, recipe: &str, more: &[&str]) -> Ran {
    let args = ["quantize", "m", "--recipe", recipe, "--out", "q"];
    day0(dir, args.iter().chain(more))
}

#[test]
fn scanning_by_url_reads_less_than_one_percent() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), &[("model.layers.0.mlp.up_proj.weight", [2048, 3072])]);
    quantize(dir.path(), "fp8_dynamic", &[]).expect(0);
    let url = serve(&dir.path().join("q"), Manner::Honest);
    let scan = day0(dir.path(), ["scan", &url, "--against", "m", "--json"]).expect(0).json();
    assert_eq!(scan["defects"], json!([]));
    assert_eq!(scan["coverage"]["modules_by_precision"], json!({"fp8_e4m3": 1}));
    let (read, size) = (&scan["transfer"]["bytes_read"], &scan["transfer"]["weight_file_bytes"]);
    assert!(read.as_u64().unwrap() * 100 < size.as_u64().unwrap(), "{read} of {size}");
    assert_eq!(
        size.as_u64().unwrap(),
        std::fs::metadata(dir.path().join("q/model.safetensors")).unwrap().len()
    );
    assert!(scan["not_checked"]["scales"].is_string());
    // The source may be an address too.
    let source = serve(&dir.path().join("m"), Manner::Honest);
    day0(dir.path(), ["scan", &url, "--against", &source]).expect(0).says("read ");
    day0(dir.path(), ["scan", &url, "--values"]).expect(2).says("--values");
    day0(dir.path(), ["scan", &format!("{url}/none.safetensors")]).expect(2).says("404");
}

/// A model on the hub is scanned where it is, unless its values are asked for.
#[test]
fn hub_ids_are_scanned_by_their_headers() {
    let dir = tempfile::tempdir().unwrap();
    let model = write_model(dir.path(), &SMALL);
    let page = dir.path().join("hub/org/name/resolve/v2");
    std::fs::create_dir_all(page.parent().unwrap()).unwrap();
    std::fs::rename(model, &page).unwrap();
    let hub = serve(&dir.path().join("hub"), Manner::Honest);
    let scan = |model: &str| {
        let mut command = command(dir.path(), ["scan", model, "--json"]);
        ran(command.env("HF_ENDPOINT", &hub).env("HF_HOME", dir.path().join("cache")).output().unwrap())
    };
    let record = scan("org/name@v2").expect(0).json();
    assert_eq!(record["coverage"]["modules_by_precision"], json!({"bf16": 4}));
    assert!(record["transfer"]["bytes_read"].as_u64().unwrap() < 100_000);
    assert!(!dir.path().join("cache").exists(), "nothing is fetched");
    scan("org/name@v3").expect(2).says("no weights");
}

#[test]
fn servers_that_serve_no_ranges_or_lie_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = write_model(dir.path(), &SMALL);
    let scan = |manner| day0(dir.path(), ["scan", &serve(&model, manner)]);
    scan(Manner::NoRanges).expect(2).says("does not serve byte ranges").says("download");
    scan(Manner::Lying).expect(2).says("Content-Range");
    scan(Manner::Short).expect(75).says("broke off");
    day0(dir.path(), ["scan", "http://127.0.0.1:1/m"]).expect(75).says("127.0.0.1:1");
}

#[test]
fn every_value_is_read_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let model = write_model(dir.path(), &SMALL);
    let scan = day0(dir.path(), ["scan", "m", "--values", "--json"]).expect(0).json();
    assert_eq!((&scan["values"]["tensors"], &scan["values"]["zero_tensors"]), (&json!(4), &json!([])));
    let path = model.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&0x7fc0u16.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    day0(dir.path(), ["scan", "m"]).expect(0);
    let ran = day0(dir.path(), ["scan", "m", "--values"]).expect(4);
    ran.says("down_proj.weight").says("1 of 884736 values").says("element 884735");
}

#[test]
fn one_file_without_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let model = write_model(dir.path(), &SMALL);
    let file = dir.path().join("part.safetensors");
    std::fs::copy(model.join("model.safetensors"), &file).unwrap();
    let scan = day0(dir.path(), ["scan", "part.safetensors", "--values", "--json"]).expect(0).json();
    assert_eq!(scan["coverage"]["modules_by_precision"], json!({"bf16": 4}));
    assert!(scan["not_checked"]["declaration"].is_string());
    std::fs::write(&file, b"\xff\xff").unwrap();
    day0(dir.path(), ["scan", "part.safetensors"]).expect(2).says("part.safetensors");
}

#[test]
fn differences_to_the_source_are_classified() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), &SMALL);
    quantize(dir.path(), "fp8_dynamic", &[]).expect(0);
    let path = dir.path().join("q/config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config["num_key_value_heads"] = json!(9);
    std::fs::write(&path, config.to_string()).unwrap();
    let scan = day0(dir.path(), ["scan", "q", "--against", "m", "--json"]).expect(3).json();
    let kinds: Vec<(&str, &str)> = scan["metadata_diffs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| (d["field"].as_str().unwrap(), d["kind"].as_str().unwrap()))
        .collect();
    assert_eq!(kinds, [("num_key_value_heads", "blocking"), ("quantization_config", "expected")]);
    day0(dir.path(), ["scan", "q", "--against", "m"]).expect(3).says("0.50").says("num_key_value_heads");
}

#[test]
fn dry_run_says_everything_and_writes_nothing() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), &SMALL);
    let names = || std::fs::read_dir(dir.path()).unwrap().count();
    let record = quantize(dir.path(), "w4a16_g64", &["--dry-run", "--json"]).expect(10).json();
    let plan = &record["plan"];
    assert_eq!(record["impossible"], json!(null));
    assert_eq!(plan["modules"][0]["precision"], json!("int4_g64"));
    let quantized: u64 =
        plan["modules"].as_array().unwrap().iter().map(|m| m["count"].as_u64().unwrap()).sum();
    assert_eq!(quantized, 4);
    assert!(
        plan["time"]["sample_bytes"].as_u64().unwrap() > 0
            && plan["time"]["seconds_high"].as_f64().unwrap() > 0.0
    );
    let engines: Vec<bool> =
        plan["engines"].as_array().unwrap().iter().map(|e| e["loads"].as_bool().unwrap()).collect();
    assert_eq!(engines, [true, true, true, false]);
    quantize(dir.path(), "w4a16_g64", &["--dry-run", "-v"])
        .expect(10)
        .says("model.layers.0.self_attn.k_proj");
    assert_eq!(names(), 1, "nothing but the model");
    // What was predicted is what is written.
    let written = quantize(dir.path(), "w4a16_g64", &["--json"]).expect(0).json();
    assert_eq!(written["output_tensor_bytes"], plan["predicted_bytes"]);
    assert_eq!(written["verification"]["defects"], json!([]));
}

#[test]
fn impossible_requests_name_the_nearest_recipe() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), &SMALL);
    quantize(dir.path(), "w4a16", &["--dry-run"]).expect(4).says("576").says("--recipe w4a16_g64");
    let record = quantize(dir.path(), "w4a16", &["--dry-run", "--json"]).expect(4).json();
    assert_eq!(record["impossible"]["class"], json!("MODEL_UNSUPPORTED"));
    quantize(dir.path(), "w4a16", &[]).expect(4).says("--recipe w4a16_g64");
    // Nine heads on three devices: 1536 / 3 is whole groups of 64; on two they cannot be dealt out.
    quantize(dir.path(), "w4a16_g64", &["--dry-run", "--tp", "3"]).expect(10).says("can be cut");
    quantize(dir.path(), "w4a16_g64", &["--dry-run", "--tp", "2"])
        .expect(4)
        .says("num_attention_heads")
        .says("--tp 1");
    assert!(!dir.path().join("q").exists());
}

/// Golden values: tests/oracle/quantization_errors.py.
#[test]
fn errors_of_weights_are_those_of_numpy() {
    let _turn = turn();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle/quantization_errors.json");
    for (recipe, expected) in read_json(golden).as_object().unwrap() {
        let dir = tempfile::tempdir().unwrap();
        let args = ["quantize", "day0-tiny", "--recipe", recipe, "--out", "q", "--errors", "--json"];
        let record = day0(dir.path(), args).expect(0).json();
        let errors = record["verification"]["errors"].as_array().unwrap();
        assert_eq!(errors.len(), 28);
        for expected in expected.as_array().unwrap() {
            let found = errors.iter().find(|e| e["module"] == expected["module"]).unwrap();
            for key in ["groups", "saturated_groups", "zeroed_groups", "underflowed_scales"] {
                assert_eq!(found[key], expected[key], "{recipe} {found}");
            }
            for key in ["mse", "sqnr_db", "max_error"] {
                let (found, expected) = (found[key].as_f64().unwrap(), expected[key].as_f64().unwrap());
                assert!(
                    (found - expected).abs() < 1e-5 * expected,
                    "{recipe} {key}: {found}, not {expected}"
                );
            }
        }
    }
}

/// Groups of 16 under one NVFP4 global scale of 2688: of 1, of 2·10⁻⁵ (local scale 0.0089, subnormal), of 10⁻⁶ (local
/// scale 0.00045, which rounds to zero), and of zeros.
#[test]
fn scales_that_underflow_and_groups_that_vanish() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let values = [0x3f80, 0x37a8, 0x3586, 0x0000];
    write_values(dir.path(), &[("model.layers.0.mlp.down_proj.weight", [64, 64])], |i| values[i / 16 % 4]);
    let record = quantize(dir.path(), "nvfp4a16", &["--errors", "--json"]).expect(0).json();
    let error = &record["verification"]["errors"][0];
    let counts: Vec<u64> = ["groups", "saturated_groups", "zeroed_groups", "underflowed_scales"]
        .iter()
        .map(|key| error[*key].as_u64().unwrap())
        .collect();
    assert_eq!(counts, [256, 0, 64, 128], "{error}");
    let scan = day0(dir.path(), ["scan", "q", "--against", "m"]).expect(0);
    scan.says("worst weights").says("down_proj");
    let scan = day0(dir.path(), ["scan", "q", "--against", "m", "--no-errors", "--json"]).expect(0).json();
    assert_eq!(scan["errors"], json!([]));
}
