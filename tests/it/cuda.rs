//! The program on an emulated CUDA driver: what a user sees where devices, drivers or compilers are missing or fail, and
//! checkpoints that have the bytes of the CPU.

use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::json;

use crate::common;

#[path = "../cuda/emulator.rs"]
mod emulator;

fn emulator() -> Option<PathBuf> {
    emulator::build(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda-emulator"))
}

/// `day0 args` on the emulated driver with these of its settings.
fn on<'a>(emulator: &Path, settings: &str, dir: &Path, args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = common::command(dir, args);
    command.env("LD_LIBRARY_PATH", emulator).env("DAY0_NVRTC", emulator).env("DAY0_EMULATOR", settings);
    // Kernels of another emulator are others.
    command.env("DAY0_CACHE", emulator.join("cache"));
    command.env_remove("CUDA_VISIBLE_DEVICES");
    command
}

#[test]
fn doctor_says_what_there_is_and_what_is_missing() {
    let Some(emulator) = emulator() else { return };
    let dir = tempfile::tempdir().unwrap();
    let doctor = |settings: &str| on(&emulator, settings, dir.path(), ["doctor"]);
    let run = |mut command: Command| common::ran(command.output().unwrap()).expect(0);
    run(doctor("devices=2"))
        .says("1 emulated device sm_90")
        .says("CUDA 13.0")
        .says(&format!("NVRTC 13.0 in {}/libnvrtc.so", emulator.display()))
        .says(&format!("cuBLASLt 130002 in {}/libcublasLt.so", emulator.display()));
    run(doctor("no-device")).says("sees no device; give the container or job a GPU");
    let mut hidden = doctor("no-device");
    hidden.env("CUDA_VISIBLE_DEVICES", "");
    run(hidden).says("(CUDA_VISIBLE_DEVICES is ''); unset CUDA_VISIBLE_DEVICES");
    run(doctor("no-init")).says("does not start: CUDA_ERROR_UNKNOWN").says("nvidia-smi");
    let mut without_compiler = doctor("");
    without_compiler.env("DAY0_NVRTC", dir.path());
    run(without_compiler).says("libnvrtc.so could not be loaded from").says("nvidia-cuda-nvrtc");
    let mut without_products = doctor("");
    without_products.env("DAY0_CUBLASLT", dir.path());
    run(without_products).says("libcublasLt.so could not be loaded from").says("nvidia-cublas");
    run(doctor("cublaslt=120103"))
        .says("libcublasLt.so is version 12.1.3, expected 13")
        .says("pip install nvidia-cublas==13.0.*");
    // What the user names is what is called, also beside an older library of the name that the loader knows first.
    let (wheel, version) = emulator::WHEEL_PRODUCTS;
    let wheel = emulator.join(wheel);
    for named in [wheel.as_path(), wheel.parent().unwrap()] {
        let mut of_wheel = doctor("cublaslt=120103");
        of_wheel.env("DAY0_CUBLASLT", named);
        run(of_wheel).says(&format!("cuBLASLt {version} in {}", wheel.display()));
    }
    let mut without_driver = doctor("");
    without_driver.env_remove("LD_LIBRARY_PATH");
    let text = run(without_driver).stdout;
    assert!(text.contains("libcuda.so could not be loaded; install") || text.contains(" sm_"), "{text}");
}

/// Every kind of scheme on two devices at once: the same files as from the CPU.
#[test]
fn checkpoints_have_the_bytes_of_the_cpu() {
    let Some(emulator) = emulator() else { return };
    let _turn = common::turn();
    let dir = tempfile::tempdir().unwrap();
    let recipes = ["fp8_dynamic", "fp8_block", "w8a8", "w4a16_asym_g32", "nvfp4a16", "mxfp4a16", "mxfp8a16"];
    let args = |device: &'static str, out: &'static str| {
        let mut args = vec!["quantize", "day0-tiny", "--no-sync", "--device", device, "--out", out];
        args.extend(recipes.iter().flat_map(|recipe| ["--recipe", recipe]));
        args
    };
    common::day0(dir.path(), args("cpu", "cpu")).expect(0);
    let mut on_devices = on(&emulator, "devices=2", dir.path(), args("cuda:1,0", "cuda"));
    on_devices.arg("--json");
    let ran = common::ran(on_devices.output().unwrap()).expect(0);
    let record = &ran.json()[0];
    assert_eq!(record["provenance"]["kernel_path"], "cuda-sm_90");
    assert!(record["provenance"]["device"].as_str().unwrap().contains("cuda:1 (emulated device), cuda:0"));
    assert!(record["device_seconds"]["peak_device_bytes"].as_u64().unwrap() > 0, "{record}");
    for recipe in recipes {
        let file =
            |root: &str| std::fs::read(dir.path().join(root).join(recipe).join("model.safetensors")).unwrap();
        assert!(file("cuda") == file("cpu"), "{recipe}: the files differ");
    }
}

#[test]
fn devices_that_cannot_be_used_are_refused_or_left_out() {
    let Some(emulator) = emulator() else { return };
    let _turn = common::turn();
    let dir = tempfile::tempdir().unwrap();
    let run = |settings: &str, device: &str, out: &str| {
        let args =
            ["quantize", "day0-tiny", "--recipe", "w8a8", "--no-sync", "--device", device, "--out", out];
        common::ran(on(&emulator, settings, dir.path(), args).output().unwrap())
    };
    run("", "cuda:3", "a").expect(2).says("there is no device cuda:3: 1 visible");
    run("no-device", "cuda", "b").expect(2).says("sees no device").says("--device cpu");
    run("old-driver", "cuda:0", "c").expect(2).says("supports CUDA 12.2").says("580");
    run("sm=7.5", "cuda:0", "d").expect(2).says("compute capability 7.5").says("8.0 or newer");
    // What never fits is the user's choice of device; what does not fit beside the rest may be another's for now.
    run("memory=100000", "cuda:0", "e").expect(2).says("has no").says("another device");
    run("memory=500000", "cuda:0", "e").expect(75).says("has no").says("nvidia-smi");
    run("launch-fails", "cuda:0", "f").expect(75).says("CUDA_ERROR_LAUNCH_FAILED");
    run("full=cuMemHostAlloc", "cuda:0", "f").expect(75).says("are free (cuMemHostAlloc)");
    run("full=cuLaunchKernel", "cuda:0", "f")
        .expect(75)
        .says("has no memory left")
        .says("(quantize_rectangles)");
    run("", "tpu", "g").expect(2).says("expected auto, cpu, cuda, or cuda:N");
    // `auto` takes the CPU, and says why where a device is there but unusable.
    run("old-driver", "auto", "h")
        .expect(0)
        .says("quantizing on the CPU: the CUDA driver supports CUDA 12.2");
    run("no-device", "auto", "i").expect(0);
}

/// Kernels that are not in the cache yet: a compiler that fails, modules that the driver refuses or has no memory for.
#[test]
fn kernels_that_cannot_be_had_are_errors() {
    let Some(emulator) = emulator() else { return };
    let _turn = common::turn();
    let dir = tempfile::tempdir().unwrap();
    let args = ["quantize", "day0-tiny", "--recipe", "w8a8", "--no-sync", "--device", "cuda", "--out", "out"];
    let run = |settings: &str, cache: &str| {
        let mut command = on(&emulator, settings, dir.path(), args);
        command.env("DAY0_CACHE", dir.path().join(cache));
        common::ran(command.output().unwrap())
    };
    run("no-compile", "empty")
        .expect(3)
        .says("quantize.cu")
        .says("does not compile for sm_90")
        .says("emulated failure");
    run("no-load", "kept").expect(75).says("cuModuleLoadData: CUDA_ERROR_INVALID_IMAGE");
    run("full=cuModuleLoadData", "kept").expect(75).says("has no memory left").says("(cuModuleLoadData)");
    // What failed left nothing that is taken for a result.
    run("", "kept").expect(0);
    // A file that the driver refuses is compiled anew, which does not help here.
    std::fs::remove_dir_all(dir.path().join("out")).unwrap();
    run("no-load,no-compile", "kept").expect(3).says("does not compile");
}

/// Log-likelihoods of every item of a task, in order.
fn loglikelihoods(record: &serde_json::Value) -> Vec<f64> {
    let tasks = record["tasks"].as_object().unwrap().values();
    let items = tasks.flat_map(|task| task["items"].as_array().unwrap());
    items.flat_map(|item| item["loglikelihoods"].as_array().unwrap()).map(|x| x.as_f64().unwrap()).collect()
}

/// On two devices at once within 2e-3 nats of the CPU, under names that no CPU has.
#[test]
fn scores_are_those_of_the_cpu() {
    let Some(emulator) = emulator() else { return };
    let _turn = common::turn();
    let dir = tempfile::tempdir().unwrap();
    let eval = |device: &'static str, out: &'static str| {
        let suite = ["--suite", "tiny_colours", "--limit", "4"];
        [&["eval", "--model", "day0-tiny", "--device", device, "--out", out][..], &suite].concat()
    };
    common::day0(dir.path(), eval("cpu", "cpu")).expect(0);
    let on_devices = |settings: &str, out: &'static str, device: &'static str| {
        common::ran(on(&emulator, settings, dir.path(), eval(device, out)).output().unwrap())
    };
    on_devices("devices=2", "cuda", "cuda:0,1").expect(0);
    let record = |out: &str| common::read_json(dir.path().join(out).join("record.json"));
    let (cpu, cuda) = (record("cpu"), record("cuda"));
    assert_eq!(cuda["identity"]["device"], "cuda emulated device");
    assert_eq!(cuda["identity"]["kernel_path"], "cuda-f32-sm_90-cublaslt130002");
    assert_eq!(cuda["provenance"]["kernel_path"], "cuda-f32-sm_90-cublaslt130002");
    let (found, expected) = (loglikelihoods(&cuda), loglikelihoods(&cpu));
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 2e-3), "{found:?} {expected:?}");
    // Kernels of the library that take one number of rows only are asked for once more.
    on_devices("exact-products", "exact", "cuda:0").expect(0);
    assert_eq!(loglikelihoods(&record("exact")), found);
    on_devices("no-device", "none", "cuda").expect(2).says("sees no device").says("--device cpu");
    on_devices("memory=3000000", "full", "cuda").expect(75).says("has no").says("left");
    on_devices("full=cublasLtMatmul", "full", "cuda")
        .expect(75)
        .says("has no memory left")
        .says("(cublasLtMatmul)");
    on_devices("old-driver", "old", "auto")
        .expect(0)
        .says("computing on the CPU: the CUDA driver supports CUDA 12.2");
    let mut without = on(&emulator, "", dir.path(), eval("cuda", "without"));
    without.env("DAY0_CUBLASLT", dir.path());
    common::ran(without.output().unwrap())
        .expect(2)
        .says("libcublasLt.so could not be loaded")
        .says("nvidia-cublas");
    let mut old = on(&emulator, "cublaslt=120103", dir.path(), eval("cuda", "old-products"));
    old.env("DAY0_CUBLASLT", &emulator);
    let text =
        format!("libcublasLt.so from {}/libcublasLt.so is version 12.1.3, expected 13", emulator.display());
    common::ran(old.output().unwrap()).expect(2).says(&text);
}

/// A batch that finds no memory is tried again in smaller ones, with the same results; where not even the smallest finds
/// any, the error says what would help.
#[test]
fn batches_shrink_where_memory_is_short() {
    let Some(emulator) = emulator() else { return };
    let _turn = common::turn();
    let dir = tempfile::tempdir().unwrap();
    let eval = |settings: &str, out: &'static str| {
        let args = ["eval", "--model", "day0-tiny", "--device", "cuda", "--suite", "tiny_colours"];
        let args = args.into_iter().chain(["--limit", "100", "--out", out]);
        common::ran(on(&emulator, settings, dir.path(), args).output().unwrap())
    };
    let found = |out: &str| loglikelihoods(&common::read_json(dir.path().join(out).join("record.json")));
    eval("", "ample").expect(0);
    eval("memory=54000000", "short").expect(0).says("going on with batches of");
    assert_eq!(found("short"), found("ample"));
    eval("memory=48000000", "full")
        .expect(75)
        .says("not even a batch of")
        .says("has no")
        .says("; use another device, or --device cpu");
}

/// A random llama of one narrow layer in `dir/model`, with the tokenizer of day0-tiny.
fn narrow_model(dir: &Path) {
    let model = dir.join("model");
    common::day0(dir, ["quantize", "day0-tiny", "--no-sync", "--recipe", "w8a8", "--out", "model"]).expect(0);
    let (hidden, inner, vocab) = (32, 64, 832);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": vocab,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "bfloat16"
    });
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let tensors = [
        ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
        (layer("input_layernorm"), vec![hidden]),
        (layer("post_attention_layernorm"), vec![hidden]),
        (layer("self_attn.q_proj"), vec![32, hidden]),
        (layer("self_attn.k_proj"), vec![16, hidden]),
        (layer("self_attn.v_proj"), vec![16, hidden]),
        (layer("self_attn.o_proj"), vec![hidden, 32]),
        (layer("mlp.gate_proj"), vec![inner, hidden]),
        (layer("mlp.up_proj"), vec![inner, hidden]),
        (layer("mlp.down_proj"), vec![hidden, inner]),
    ];
    let mut seed = 1u32;
    let mut number = |around: f32| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        half::bf16::from_f32(around + 0.3 * ((seed >> 8) as f32 / (1 << 23) as f32 - 1.0)).to_le_bytes()
    };
    let tensors = tensors.map(|(name, shape)| {
        let around = if shape.len() == 1 { 1.0 } else { 0.0 };
        let data: Vec<u8> = (0..shape.iter().product()).flat_map(|_: usize| number(around)).collect();
        (name, shape, data)
    });
    let views = tensors
        .iter()
        .map(|(name, shape, data)| (name, TensorView::new(Dtype::BF16, shape.clone(), data).unwrap()));
    serialize_to_file(views, None, &model.join("model.safetensors")).unwrap();
}

/// Each arm on a device of its own: served, asked for a canary, scored, compared.
#[test]
fn a_release_has_an_arm_on_each_device() {
    let Some(emulator) = emulator() else { return };
    let _turn = common::turn();
    let dir = tempfile::tempdir().unwrap();
    narrow_model(dir.path());
    let args =
        ["release", "model", "--out", "run", "--suite", "tiny_colours", "--limit", "4", "--dtype", "bf16"];
    let args = [&args[..], &["--recipe", "w8a8", "--device", "cuda:0,1"]].concat();
    let ran = common::ran(on(&emulator, "devices=2", dir.path(), args).output().unwrap());
    ran.expect(3).says("INSUFFICIENT_EVIDENCE");
    for (arm, device) in [("baseline", "cuda:0"), ("candidate", "cuda:1")] {
        let record = common::read_json(dir.path().join(format!("run/eval/{arm}/record.json")));
        assert_eq!(record["identity"]["kernel_path"], "cuda-bf16-sm_90-cublaslt130002", "{arm}");
        let served = common::read_json(dir.path().join(format!("run/serve/{arm}.json")));
        assert!(served["command"].as_str().unwrap().contains(&format!("--device {device} ")), "{served}");
    }
    let under_slurm = ["release", "--executor", "slurm", "--device", "cuda", "--out", "other"];
    common::day0(dir.path(), under_slurm).expect(2).says("under Slurm");
}

/// Weight-only schemes, and FP8 and INT8 products of codes: f32 within 2e-3 nats of the CPU, bf16 within its rounding. FP8 also
/// on a device without products that scale by row and column.
#[test]
fn quantized_checkpoints_score_as_on_the_cpu() {
    let Some(emulator) = emulator() else { return };
    let _turn = common::turn();
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        ("w4a16", "f32", 2e-3),
        ("nvfp4a16", "bf16", 0.06),
        ("fp8_dynamic", "bf16", 0.06),
        ("w8a8", "f32", 2e-3),
    ];
    let recipes = cases.iter().flat_map(|(recipe, ..)| ["--recipe", recipe]);
    common::day0(dir.path(), ["quantize", "day0-tiny", "--no-sync", "--out", "q"].into_iter().chain(recipes))
        .expect(0);
    for (recipe, dtype, tolerance) in cases {
        let model = format!("q/{recipe}");
        let found = ["cpu", "cuda"].map(|device| {
            let out = format!("{recipe}-{device}");
            let args =
                ["eval", "--model", &model, "--suite", "tiny_colours", "--limit", "3", "--dtype", dtype];
            let args = args.into_iter().chain(["--device", device, "--out", &out]);
            common::ran(on(&emulator, "", dir.path(), args).output().unwrap()).expect(0);
            loglikelihoods(&common::read_json(dir.path().join(&out).join("record.json")))
        });
        let differences = found[0].iter().zip(&found[1]).map(|(a, b)| (a - b).abs());
        let mean = differences.sum::<f64>() / found[0].len() as f64;
        println!("{recipe} {dtype}: mean {mean:.2e}");
        assert!(mean <= tolerance, "{recipe}: {mean}");
        if recipe == "fp8_dynamic" {
            let args =
                ["eval", "--model", &model, "--suite", "tiny_colours", "--limit", "3", "--dtype", dtype];
            let args = args.into_iter().chain(["--device", "cuda", "--out", "ada"]);
            common::ran(on(&emulator, "sm=8.9", dir.path(), args).output().unwrap()).expect(0);
            let of_ada = loglikelihoods(&common::read_json(dir.path().join("ada/record.json")));
            let largest = of_ada.iter().zip(&found[1]).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            // Both round once what they computed in f32 in the same order.
            assert!(largest <= 1e-3, "{largest}");
        }
    }
}
