#!/usr/bin/env bash
# Everything that needs a GPU: tests, sanitizer, benches, and a checkpoint quantized on CPU and GPU. Results go to OUT.
#   benches/gpu/run.sh [OUT]
# Binaries built elsewhere are used where DAY0_TESTS (a library test binary), DAY0_BENCH (benches/gpu.rs), DAY0_PREFILL
# (benches/prefill.rs) and DAY0_BINARY name them; otherwise cargo builds them. Needs libnvrtc 13.0 and libcublasLt 13 (see
# kernels/README.md) and, for the sanitizer, a toolkit.
set -euo pipefail
cd "$(dirname "$0")/../.."
out="$(mkdir -p "${1:-benches/runs/$(date +%F)-gpu}" && cd "${1:-benches/runs/$(date +%F)-gpu}" && pwd)"
export DAY0_REQUIRE_GPU=1
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

built() {
  cargo "$@" --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1
}
tests="${DAY0_TESTS:-$(built test --lib --no-run)}"
bench="${DAY0_BENCH:-$(built bench --bench gpu --no-run)}"
prefill="${DAY0_PREFILL:-$(built bench --bench prefill --no-run)}"
day0="${DAY0_BINARY:-$(built build --release)}"

{ date -u; nvidia-smi; "$day0" doctor; } > "$out/machine.txt"
"$tests" gpu_tests:: --test-threads 1 2>&1 | tee "$out/tests.txt"
if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 1 "$tests" gpu_tests:: --test-threads 1 2>&1 | tee "$out/$tool.txt"
  done
else
  echo "skipped: no compute-sanitizer" | tee "$out/memcheck.txt"
fi
"$bench" | tee "$out/kernels.txt"
"$prefill" | tee "$out/prefill.txt"
recipes=(--recipe fp8_dynamic --recipe fp8_block --recipe w8a8 --recipe w4a16 --recipe nvfp4a16 --recipe mxfp4a16)
for device in cpu cuda; do
  "$day0" quantize day0-tiny "${recipes[@]}" --device "$device" --out "$work/$device" --json > "$out/quantize-$device.json"
done
for file in "$work"/cpu/*/*.safetensors; do
  cmp "$file" "$work/cuda/${file#"$work/cpu/"}"
done
echo "CPU and GPU wrote the same bytes" | tee "$out/same-bytes.txt"
for dtype in f32 bf16; do
  for device in cpu cuda; do
    "$day0" eval --model day0-tiny --suite day0-tiny --dtype "$dtype" --device "$device" --out "$work/eval-$dtype-$device" --json > "$out/eval-$dtype-$device.json"
  done
done
