//! The program on an emulated CUDA driver: what a user sees where devices, drivers or compilers are missing or fail, and
//! checkpoints that have the bytes of the CPU.

use std::path::{Path, PathBuf};
use std::process::Command;

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
        .says("NVRTC 13.0")
        .says("cuBLASLt 130002");
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
    let mut without_driver = doctor("");
    without_driver.env_remove("LD_LIBRARY_PATH");
    let text = run(without_driver).stdout;
    assert!(text.contains("libcuda.so could not be loaded; install") || text.contains(" sm_"), "{text}");
}

/// Every kind of scheme on two devices at once: the same files as from the CPU.
#[test]
fn checkpoints_have_the_bytes_of_the_cpu() {
    let Some(emulator) = emulator() else { return };
    let _turn = common::serial();
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
    let _turn = common::serial();
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
    run("memory=100000", "cuda:0", "e").expect(75).says("has no").says("nvidia-smi");
    run("launch-fails", "cuda:0", "f").expect(75).says("CUDA_ERROR_LAUNCH_FAILED");
    run("", "tpu", "g").expect(2).says("expected auto, cpu, cuda, or cuda:N");
    // `auto` takes the CPU, and says why where a device is there but unusable.
    run("old-driver", "auto", "h")
        .expect(0)
        .says("quantizing on the CPU: the CUDA driver supports CUDA 12.2");
    run("no-device", "auto", "i").expect(0);
}
