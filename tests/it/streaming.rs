//! `day0 quantize` on a checkpoint of several shards: killed and resumed, for several recipes, on a full disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use day0::checkpoint::writer::{ShardWriter, TensorSpec};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use safetensors::Dtype;
use serde_json::json;

use super::common::{command, day0, turn};

/// Four shards of 4 MiB with weights of various magnitudes; fused sets lie across shards.
fn write_model(dir: &Path) {
    const SHAPE: [usize; 2] = [512, 1024];
    std::fs::create_dir_all(dir).unwrap();
    let names: Vec<String> = (0..2)
        .flat_map(|layer| {
            [
                "self_attn.q_proj",
                "self_attn.k_proj",
                "self_attn.v_proj",
                "self_attn.o_proj",
                "mlp.gate_proj",
                "mlp.up_proj",
                "mlp.down_proj",
                "mlp.extra_proj",
            ]
            .map(|name| format!("model.layers.{layer}.{name}.weight"))
        })
        .collect();
    let mut weight_map = BTreeMap::new();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for (i, part) in names.chunks(4).enumerate() {
        let file = format!("model-{:05}-of-00004.safetensors", i + 1);
        let specs: Vec<TensorSpec> = part
            .iter()
            .map(|name| TensorSpec { name: name.clone(), dtype: Dtype::BF16, shape: SHAPE.to_vec() })
            .collect();
        let mut writer = ShardWriter::new(Vec::new(), &specs, &BTreeMap::new()).unwrap();
        for name in part {
            let magnitude = rng.random_range(0.01f32..0.1);
            let data: Vec<u8> = (0..SHAPE[0] * SHAPE[1])
                .flat_map(|_| half::bf16::from_f32(rng.random_range(-magnitude..magnitude)).to_le_bytes())
                .collect();
            writer.write_tensor(name, &data).unwrap();
            weight_map.insert(name.clone(), file.clone());
        }
        std::fs::write(dir.join(&file), writer.finish().unwrap().0).unwrap();
    }
    let index = json!({ "metadata": {}, "weight_map": weight_map });
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    std::fs::write(dir.join("config.json"), json!({"model_type": "llama"}).to_string()).unwrap();
}

/// Every file of a directory with its content.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

#[test]
fn killed_anywhere_a_quantization_resumes_to_the_same_bytes() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    write_model(&dir.path().join("m"));
    let start = Instant::now();
    day0(dir.path(), ["quantize", "m", "--recipe", "nvfp4a16", "--out", "calm"]).expect(0);
    let whole = start.elapsed();
    let calm = files(&dir.path().join("calm"));
    let args = ["quantize", "m", "--recipe", "nvfp4a16", "--out", "q"];
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for _ in 0..6 {
        // Killed twice on the way, then left alone.
        for _ in 0..2 {
            let mut child =
                command(dir.path(), args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_secs_f64(whole.as_secs_f64() * rng.random_range(0.0..1.0)));
            // SAFETY: sends a signal to a child that this process has not waited for yet.
            unsafe { libc::kill(child.id() as i32, libc::SIGKILL) };
            child.wait().unwrap();
        }
        let there = dir.path().join("q").exists();
        let again = day0(dir.path(), args);
        // A run that was complete but for nothing is not a run to resume.
        assert!(
            again.code == Some(0) || there && again.stderr.contains("exists already"),
            "{}",
            again.stderr
        );
        assert_eq!(files(&dir.path().join("q")), calm);
        let left: Vec<_> = files_of(dir.path());
        assert_eq!(left, ["calm", "m", "q"]);
        std::fs::remove_dir_all(dir.path().join("q")).unwrap();
    }
}

fn files_of(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn several_recipes_from_one_read_are_what_each_alone_is() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    write_model(&dir.path().join("m"));
    let recipes = ["fp8_dynamic", "w4a16_g32", "nvfp4a16"];
    let several: Vec<&str> = recipes.iter().flat_map(|r| ["--recipe", r]).collect();
    let args = ["quantize", "m", "--out", "all", "--no-sync"].into_iter().chain(several);
    day0(dir.path(), args).expect(0).says("all/w4a16_g32");
    for recipe in recipes {
        day0(dir.path(), ["quantize", "m", "--recipe", recipe, "--out", recipe, "--threads", "1"]).expect(0);
        assert_eq!(files(&dir.path().join(recipe)), files(&dir.path().join("all").join(recipe)), "{recipe}");
    }
    day0(dir.path(), ["quantize", "m", "--recipe", "w8a8", "--recipe", "w8a8", "--out", "two"])
        .expect(2)
        .says("two recipes are called 'w8a8'");
}
