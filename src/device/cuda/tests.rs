use std::process::Command;
use std::sync::Arc;

use super::test_device::{dir, emulator, refuse_skip};
use super::*;
use crate::base::env_vars;

/// Every test in a module named `gpu_tests`, on the emulated device: kernels run on the host, each thread a fiber. Blocks
/// run with their threads in different orders, so that results that hang on a missing barrier differ.
#[test]
fn gpu_tests_pass_on_the_emulated_device() {
    let Some(emulator) = emulator::build(&dir()) else { return };
    let run = |order: &str, skipped: &[&str]| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["gpu_tests::", "--test-threads", "2"])
            .args(skipped.iter().flat_map(|module| ["--skip", module]))
            .env("LD_LIBRARY_PATH", &emulator)
            .env("DAY0_EMULATOR", "devices=2")
            .env("DAY0_EMULATOR_ORDER", order)
            .env(env_vars::DAY0_NVRTC, &emulator)
            .env(env_vars::DAY0_REQUIRE_GPU, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "threads {order}:\n{text}\n{errors}");
        assert!(!text.contains("running 0 tests"), "{text}");
    };
    // A process runs one kernel at a time. Models are of kernels that are tested by themselves, in both orders.
    std::thread::scope(|scope| {
        scope.spawn(|| run("forward", &["device::", "model::", "ops::"]));
        run("forward", &["engine::"]);
        run("backward", &["engine::", "device::", "model::"]);
    });
}

/// Without a driver the real library is asked for and its absence is an error with a hint.
#[test]
fn a_missing_driver_is_an_error() {
    use crate::record::Classified;
    match Device::count() {
        Ok(count) => assert!(count > 0),
        Err(error) => {
            refuse_skip(&error);
            assert!(error.hint().is_some(), "{error}");
            assert!(DeviceChoice::Cuda(vec![0]).open().is_err());
            assert!(DeviceChoice::Auto.open().unwrap().0.is_empty());
        }
    }
}

mod gpu_tests {
    use super::*;
    use crate::device::cuda::test_device::device;

    #[test]
    fn copies_fills_and_their_bounds() {
        let Some(device) = device() else { return };
        let stream = Stream::new(&device).unwrap();
        let bytes: Vec<u8> = (0..1000).map(|i| (i % 251) as u8).collect();
        let buffer = stream.upload(&bytes).unwrap();
        assert_eq!(stream.download(&buffer, 1000).unwrap(), bytes);
        let other = DeviceBuffer::new(&device, 300).unwrap();
        // SAFETY: the buffers live until the download has synchronized the stream.
        unsafe {
            stream.fill(&other, 0, 300, 7).unwrap();
            stream.copy((&buffer, 10), (&other, 100), 50).unwrap();
            assert!(stream.fill(&other, 1, 300, 0).is_err());
            assert!(stream.copy((&buffer, 990), (&other, 0), 11).is_err());
            assert!(stream.copy_in(&bytes, &other, 0).is_err());
            assert!(stream.copy_in(&bytes, &other, usize::MAX).is_err());
        }
        let got = stream.download(&other, 300).unwrap();
        assert_eq!(
            (&got[..100], &got[100..150], &got[150..]),
            (&[7; 100][..], &bytes[10..60], &[7; 150][..])
        );
        assert!(stream.download(&other, 301).is_err());
    }

    #[test]
    fn memory_is_counted() {
        let Some(device) = device() else { return };
        let before = device.allocated_bytes().0;
        let mut buffer = DeviceBuffer::new(&device, 1 << 20).unwrap();
        assert_eq!(device.allocated_bytes().0, before + (1 << 20));
        buffer.ensure(1 << 21).unwrap();
        buffer.ensure(5).unwrap();
        assert_eq!((device.allocated_bytes().0, buffer.len()), (before + (1 << 21), 1 << 21));
        drop(buffer);
        let (now, peak) = device.allocated_bytes();
        assert!(now == before && peak >= 1 << 21);
        let (free, total) = device.memory().unwrap();
        assert!(free <= total);
        let too_much = DeviceBuffer::new(&device, (total as usize).saturating_mul(2)).unwrap_err();
        assert!(matches!(too_much, CudaError::OutOfMemory { .. }), "{too_much}");
        assert_eq!(device.allocated_bytes().0, before);
    }

    #[test]
    fn streams_wait_for_events() {
        let Some(device) = device() else { return };
        let (first, second) = (Stream::new(&device).unwrap(), Stream::new(&device).unwrap());
        let buffer = DeviceBuffer::new(&device, 64).unwrap();
        let (start, done) = (Event::new(&device).unwrap(), Event::new(&device).unwrap());
        let mut out = [0; 64];
        // SAFETY: the buffers live until `second` was synchronized.
        unsafe {
            first.record(&start).unwrap();
            first.fill(&buffer, 0, 64, 3).unwrap();
            first.record(&done).unwrap();
            second.wait(&done).unwrap();
            second.copy_out(&buffer, 0, &mut out).unwrap();
        }
        second.synchronize().unwrap();
        assert_eq!(out, [3; 64]);
        done.synchronize().unwrap();
        assert!(done.ms_since(&start).unwrap() >= 0.0);
    }

    const SCALE: KernelSource = KernelSource {
        name: "test.cu",
        text: "#include \"core.cuh\"\nKERNEL(64) scale(float* x, u32 n, float by) {\n    u32 i = blockIdx.x * blockDim.x + threadIdx.x;\n    if (i < n) x[i] = x[i] * by + (float)OFFSET;\n}\n",
    };

    #[test]
    fn launches_have_their_arguments() {
        let Some(device) = device() else { return };
        let stream = Stream::new(&device).unwrap();
        let kernel = device.kernel(&Variant::plain(SCALE).define("OFFSET", 1), "scale").unwrap();
        let bytes: Vec<u8> = (0..100).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let buffer = stream.upload(&bytes).unwrap();
        let arguments = (buffer.address(), 90u32, 2.0f32);
        let list = [Argument::new(&arguments.0), Argument::new(&arguments.1), Argument::new(&arguments.2)];
        // SAFETY: types as in the source; the buffer lives until the download has synchronized the stream.
        unsafe {
            kernel.launch(&stream, LaunchShape::linear(2, 64), &list).unwrap();
            kernel.launch(&stream, LaunchShape::linear(0, 64), &list).unwrap();
            assert!(kernel.launch(&stream, LaunchShape::linear(1, 1025), &list).is_err());
            assert!(
                kernel
                    .launch(&stream, LaunchShape { grid: [1, 70_000, 1], threads: 1, shared_bytes: 0 }, &list)
                    .is_err()
            );
        }
        let got = stream.download(&buffer, 400).unwrap();
        for (i, x) in got.as_chunks::<4>().0.iter().enumerate() {
            let expected = if i < 90 { i as f32 * 2.0 + 1.0 } else { i as f32 };
            assert_eq!(f32::from_le_bytes(*x), expected);
        }
    }

    #[test]
    fn lists_are_uploaded_together_and_waited_for_by_nobody() {
        let Some(device) = device() else { return };
        let stream = Stream::new(&device).unwrap();
        let source = KernelSource {
            name: "lists.cu",
            text: "#include \"core.cuh\"\nKERNEL(64) add(const u32* a, const u32* b, u32 n, u32* sums) {\n    u32 i = threadIdx.x;\n    if (i < n) sums[i] = sums[i] * 10u + a[i] + b[i];\n}\n",
        };
        let kernel = device.kernel(&Variant::plain(source), "add").unwrap();
        let sums = stream.upload(&[0; 12]).unwrap();
        let mut lists = WordLists::new(&device).unwrap();
        let mut places = Vec::new();
        for lengths in [[3, 3], [3, 40], [3, 3]] {
            let of = |n: u32| (1..=n).collect::<Vec<u32>>();
            let before = device.counts();
            lists.replace(&stream, &[&of(lengths[0]), &[], &of(lengths[1])]).unwrap();
            let asked = device.counts() - before;
            assert_eq!((asked.copies, asked.waits, asked.launches), (1, 0, 0));
            let [a, none, b] = [0, 1, 2].map(|list| lists.list(list));
            assert!(a.len() == 12 && none.is_empty() && b.len() == 4 * lengths[1] as usize);
            assert!(a.address() % 16 == 0 && b.address() == a.address() + 16 && lists.list(3).is_empty());
            places.push(a.address());
            let arguments = (a.address(), b.address(), 3u32, sums.address());
            let list = [
                Argument::new(&arguments.0),
                Argument::new(&arguments.1),
                Argument::new(&arguments.2),
                Argument::new(&arguments.3),
            ];
            // SAFETY: types as in the source; buffers live until the download has synchronized the stream.
            unsafe { kernel.launch(&stream, LaunchShape::linear(1, 64), &list).unwrap() };
        }
        assert_eq!(places[1], places[2], "shorter lists stay in the memory of longer ones");
        let sums = stream.download(&sums, 12).unwrap();
        let sums: Vec<u32> = sums.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        assert_eq!(sums, [222, 444, 666]);
    }

    #[test]
    fn recordings_repeat_what_was_queued() {
        let Some(device) = device() else { return };
        let stream = Stream::new(&device).unwrap();
        let kernel = device.kernel(&Variant::plain(SCALE).define("OFFSET", 1), "scale").unwrap();
        let bytes: Vec<u8> = [1f32, 2.0, 3.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let buffer = stream.upload(&bytes).unwrap();
        let other = DeviceBuffer::new(&device, 12).unwrap();
        let arguments = (buffer.address(), 3u32, 2.0f32);
        let list = [Argument::new(&arguments.0), Argument::new(&arguments.1), Argument::new(&arguments.2)];
        // SAFETY: types as in the source; buffers live until the downloads have synchronized the stream.
        let queue = || unsafe {
            kernel.launch(&stream, LaunchShape::linear(1, 64), &list)?;
            stream.copy((&buffer, 0), (&other, 0), 12)
        };
        let recording = Recording::of(&stream, queue).unwrap();
        assert_eq!(stream.download(&buffer, 12).unwrap(), bytes, "nothing runs while it is recorded");
        let before = device.counts();
        for _ in 0..2 {
            // SAFETY: as above.
            unsafe { recording.launch(&stream).unwrap() };
        }
        assert_eq!((device.counts() - before).launches, 2);
        let numbers = |bytes: Vec<u8>| -> Vec<f32> {
            bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        assert_eq!(numbers(stream.download(&buffer, 12).unwrap()), [7.0, 11.0, 15.0]);
        assert_eq!(numbers(stream.download(&other, 12).unwrap()), [7.0, 11.0, 15.0]);
        drop(recording);
        queue().unwrap();
        assert_eq!(numbers(stream.download(&other, 12).unwrap()), [15.0, 23.0, 31.0]);
    }

    /// What cannot be recorded is an error, after which the stream is as before.
    #[test]
    fn recordings_neither_wait_nor_take_memory_nor_copy_from_the_host() {
        let Some(device) = device() else { return };
        let stream = Stream::new(&device).unwrap();
        let buffer = stream.upload(&[1; 8]).unwrap();
        let wrong: [&dyn Fn() -> Result<(), CudaError>; 4] = [
            &|| stream.synchronize(),
            &|| DeviceBuffer::new(&device, 100).map(drop),
            &|| stream.download(&buffer, 8).map(drop),
            &|| Err(CudaError::Argument { operation: "test", what: "refused".to_owned() }),
        ];
        for (i, wrong) in wrong.into_iter().enumerate() {
            let result = Recording::of(&stream, || {
                // SAFETY: the buffer lives until the download below has synchronized the stream.
                unsafe { stream.fill(&buffer, 0, 8, 9)? };
                wrong()
            });
            assert!(result.is_err(), "{i}");
            assert_eq!(stream.download(&buffer, 8).unwrap(), [1; 8], "{i}");
        }
    }

    #[test]
    fn kernels_that_do_not_compile_or_exist_are_errors() {
        let Some(device) = device() else { return };
        let broken = KernelSource { name: "broken.cu", text: "KERNEL(1) broken( {" };
        let error = device.kernel(&Variant::plain(broken), "broken").map(|_| ()).unwrap_err();
        assert!(matches!(&error, CudaError::Compile { log, .. } if !log.is_empty()), "{error}");
        let missing = device.kernel(&Variant::plain(SCALE).define("OFFSET", 1), "other").map(|_| ());
        assert!(matches!(missing, Err(CudaError::Call { .. })), "{missing:?}");
    }

    /// A damaged file is made anew, and several openers of an empty cache agree.
    #[test]
    fn the_cache_survives_damage_and_company() {
        if device().is_none() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let variant = Variant::plain(SCALE).define("OFFSET", 2);
        let open = || Device::open_with_cache(0, CubinCache::new(dir.path().join("new/cubins"))).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| open().kernel(&variant, "scale").map(|_| ()).unwrap());
            }
        });
        let cache = CubinCache::new(dir.path().join("new/cubins"));
        assert_eq!(cache.size().0, 1);
        let file = std::fs::read_dir(cache.dir()).unwrap().next().unwrap().unwrap().path();
        let whole = std::fs::read(&file).unwrap();
        for damaged in [&whole[..whole.len() / 2], b"", b"day0cubin1"] {
            crate::base::atomic::write(&file, damaged).unwrap();
            open().kernel(&variant, "scale").map(|_| ()).unwrap();
            assert_eq!(std::fs::read(&file).unwrap().len(), whole.len());
        }
        // A folder that cannot be made costs nothing but time.
        crate::base::atomic::write(&dir.path().join("file"), b"").unwrap();
        let unwritable = CubinCache::new(dir.path().join("file/cubins"));
        let device: Arc<Device> = Device::open_with_cache(0, unwritable).unwrap();
        device.kernel(&variant, "scale").map(|_| ()).unwrap();
    }
}
