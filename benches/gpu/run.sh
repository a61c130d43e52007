#!/usr/bin/env bash
# Everything that needs a GPU: tests, sanitizer, benches, and what CPU and GPU must agree on: quantized bytes, scores, a
# verdict. Results go to OUT.
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

# Scores on the GPU beside those on the CPU: the embedded model's, and SmolLM2's where DAY0_SMOLLM2 and DAY0_DATA name it
# and its data.
agree() { # NAME ARGUMENTS… of eval
  for dtype in f32 bf16; do
    for device in cpu cuda; do
      local name="$1-$dtype-$device"
      "$day0" eval "${@:2}" --dtype "$dtype" --device "$device" --out "$work/$name" --json > "$out/$name.json"
    done
  done
  {
    echo "f32, GPU and CPU:"
    benches/gpu/differences.py "$work/$1-f32-cuda" "$work/$1-f32-cpu" --within 2e-3 0.999
    echo "bf16 on the GPU, f32 on the CPU:"
    benches/gpu/differences.py "$work/$1-bf16-cuda" "$work/$1-f32-cpu" --mean 0.08 --p99 0.3
    echo "bf16, GPU and CPU:"
    benches/gpu/differences.py "$work/$1-bf16-cuda" "$work/$1-bf16-cpu" --mean 0.06
  } | tee "$out/scores-$1.txt"
}
agree tiny --model day0-tiny --suite day0-tiny
if [ -n "${DAY0_SMOLLM2:-}" ] && [ -n "${DAY0_DATA:-}" ]; then
  agree smollm2 --model "$DAY0_SMOLLM2" --suite hellaswag,arc_easy --data "$DAY0_DATA" --limit 200
  # A verdict far from a bound must be that of the CPU.
  for device in cpu cuda; do
    code=0
    "$day0" release "$DAY0_SMOLLM2" --recipe w4a16_g32 --suite hellaswag,arc_easy --data "$DAY0_DATA" --limit 1000 \
      --dtype bf16 --device "$device" --out "$work/release-$device" > "$out/release-$device.txt" || code=$?
    echo "$code" > "$work/code-$device"
  done
  cmp "$work/code-cpu" "$work/code-cuda"
else
  echo "skipped: DAY0_SMOLLM2 and DAY0_DATA do not name SmolLM2 and its data" | tee "$out/scores-smollm2.txt"
fi
