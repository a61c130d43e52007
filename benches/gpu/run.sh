#!/usr/bin/env bash
# Everything that needs a GPU: benches, tests, what CPU and GPU must agree on (quantized bytes, scores, a verdict), sanitizer.
# Every step runs whatever became of those before; results and exit codes (steps.txt) go to OUT, and the script fails if one did.
#   benches/gpu/run.sh [OUT]
#   benches/gpu/run.sh --references DIR     # only what the CPU computes, for DAY0_REFERENCES of a later call; needs no GPU
# Binaries built elsewhere are used where DAY0_TESTS (a library test binary), DAY0_BENCH (benches/gpu.rs), DAY0_PREFILL
# (benches/prefill.rs), DAY0_CHECKPOINT (benches/checkpoint.rs) and DAY0_BINARY name them; otherwise cargo builds them. Needs
# libnvrtc 13.0 and libcublasLt 13 (see kernels/README.md) and, for the sanitizer, a toolkit. DAY0_GB is the size of the
# checkpoint that is quantized (16), DAY0_STEP_S the most seconds of a step (240). SmolLM2 is compared where DAY0_SMOLLM2 and
# DAY0_DATA name it and its data.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2
only_references=""
if [ "${1:-}" = "--references" ]; then
  only_references=yes
  shift
fi
out="${1:-benches/runs/$(date +%F)-gpu}"
mkdir -p "$out" && out="$(cd "$out" && pwd)" || exit 2
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
failed=0

# Runs a step; what it prints goes to OUT/NAME.txt, its exit code to OUT/steps.txt.
step() { # NAME COMMAND…
  local name="$1" code=0 start=$SECONDS
  shift
  timeout "${DAY0_STEP_S:-240}" "$@" > "$out/$name.txt" 2>&1 || code=$?
  echo "$name: exit $code after $((SECONDS - start)) s" | tee -a "$out/steps.txt"
  [ "$code" = 0 ] || failed=1
}
built() {
  cargo "$@" --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1
}
day0="${DAY0_BINARY:-$(built build --release)}"

recipes=(--recipe fp8_dynamic --recipe fp8_block --recipe w8a8 --recipe w4a16 --recipe w4a16_asym_g32 --recipe nvfp4a16 --recipe mxfp4a16)
digests() { # DEVICE: of the quantized files
  "$day0" quantize day0-tiny "${recipes[@]}" --device "$1" --no-sync --quiet --out "$work/quantized-$1" > /dev/null &&
    (cd "$work/quantized-$1" && sha256sum -- */*.safetensors)
}
evaluate() { # NAME DTYPE DEVICE TO ARGUMENTS…
  "$day0" eval "${@:5}" --dtype "$2" --device "$3" --quiet --out "$4/$1-$2-$3"
}
verdict() { # DEVICE: the exit code of a release
  local code=0
  "$day0" release "$DAY0_SMOLLM2" --recipe w4a16_g32 --suite hellaswag,arc_easy --data "$DAY0_DATA" --limit 1000 \
    --dtype bf16 --device "$1" --quiet --out "$work/release-$1" > /dev/null || code=$?
  echo "$code"
}
tiny=(--model day0-tiny --suite day0-tiny)
smollm2=()
if [ -n "${DAY0_SMOLLM2:-}" ] && [ -n "${DAY0_DATA:-}" ]; then
  smollm2=(--model "$DAY0_SMOLLM2" --suite hellaswag,arc_easy --data "$DAY0_DATA" --limit 200)
fi
references() { # DIR
  mkdir -p "$1" && digests cpu > "$1/digests"
  for dtype in f32 bf16; do
    evaluate tiny "$dtype" cpu "$1" "${tiny[@]}"
    [ "${#smollm2[@]}" = 0 ] || evaluate smollm2 "$dtype" cpu "$1" "${smollm2[@]}"
  done
  [ "${#smollm2[@]}" = 0 ] || verdict cpu > "$1/verdict"
}
if [ -n "$only_references" ]; then
  references "$out"
  exit
fi

export DAY0_REQUIRE_GPU=1
tests="${DAY0_TESTS:-$(built test --lib --no-run)}"
bench="${DAY0_BENCH:-$(built bench --bench gpu --no-run)}"
prefill="${DAY0_PREFILL:-$(built bench --bench prefill --no-run)}"
checkpoint="${DAY0_CHECKPOINT:-$(built bench --bench checkpoint --no-run)}"
: > "$out/steps.txt"
date -u > "$out/date.txt"
step nvidia-smi nvidia-smi
step doctor "$day0" doctor
step kernels "$bench"
step prefill "$prefill"
step tests "$tests" gpu_tests:: --test-threads 1
step quantize "$checkpoint" --gb "${DAY0_GB:-16}" --memory-gb 0 --runs 1 --device cuda --recipe fp8_dynamic --recipe nvfp4a16 \
  --dir "$work/checkpoints" --program "$day0" --machine gpu --out "$out/checkpoint.json"

expected="${DAY0_REFERENCES:-$work/references}"
[ -n "${DAY0_REFERENCES:-}" ] || references "$expected" > "$out/references.txt" 2>&1
same_bytes() { diff <(digests cuda) "$expected/digests" && echo "CPU and GPU wrote the same bytes"; }
agree() { # NAME ARGUMENTS…
  local name="$1" bad=0
  for dtype in f32 bf16; do
    evaluate "$name" "$dtype" cuda "$work" "${@:2}" > /dev/null || return
  done
  echo "f32, GPU and CPU:"
  benches/gpu/differences.py "$work/$name-f32-cuda" "$expected/$name-f32-cpu" --within 2e-3 0.999 || bad=1
  echo "bf16 on the GPU, f32 on the CPU:"
  benches/gpu/differences.py "$work/$name-bf16-cuda" "$expected/$name-f32-cpu" --mean 0.08 --p99 0.3 || bad=1
  echo "bf16, GPU and CPU:"
  benches/gpu/differences.py "$work/$name-bf16-cuda" "$expected/$name-bf16-cpu" --mean 0.06 || bad=1
  return "$bad"
}
# A verdict far from a bound must be that of the CPU.
same_verdict() { diff <(verdict cuda) "$expected/verdict" && echo "CPU and GPU give the same verdict"; }
# `timeout` runs programs: functions by a shell that has them.
export day0 work expected
export -f digests evaluate verdict same_bytes agree same_verdict
in_shell() { # NAME FUNCTION ARGUMENTS…
  step "$1" bash -uo pipefail -c "$(declare -p recipes); \"\$@\"" in_shell "${@:2}"
}
in_shell same-bytes same_bytes
in_shell scores-tiny agree tiny "${tiny[@]}"
if [ "${#smollm2[@]}" = 0 ]; then
  echo "scores-smollm2: skipped, DAY0_SMOLLM2 and DAY0_DATA do not name SmolLM2 and its data" | tee -a "$out/steps.txt"
else
  in_shell scores-smollm2 agree smollm2 "${smollm2[@]}"
  in_shell same-verdict same_verdict
fi
# Calls that fail on purpose are no errors. Whole models are of kernels that are checked by themselves.
if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck; do
    step "$tool" compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 1 \
      "$tests" gpu_tests:: --skip engine::tests --test-threads 1
  done
else
  echo "sanitizer: skipped, there is no compute-sanitizer" | tee -a "$out/steps.txt"
fi
exit "$failed"
