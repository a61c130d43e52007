#!/usr/bin/env bash
# What submitting costs: CPU time of one release in this process and as Slurm jobs, on the cluster of SLURM_CONF.
#
#   benches/slurm.sh DAY0 OUT release-arguments…
#
# Both runs begin with empty caches. OUT gets local/ and slurm/ (the run directories) and times.txt: one line `user system`
# in seconds for each process of day0. The score array has 4 tasks of 1 CPU each.
set -euo pipefail
day0="$(realpath "$1")"
out="$(realpath -m "$2")"
shift 2
mkdir -p "$out"

# A program that notes the CPU time of day0; it is what the jobs run.
cat > "$out/timed" <<SCRIPT
#!/bin/bash
TIMEFORMAT='%U %S'
{ time "$day0" "\$@" 2>&3; } 3>&2 2>> "\$DAY0_TIMES"
SCRIPT
chmod +x "$out/timed"
cat > "$out/cluster.yaml" <<PROFILE
program: $out/timed
cpus: 1
environment: {DAY0_TIMES: $out/slurm.times}
stages: {score: {tasks: 4}}
PROFILE

wall() {
  local start=$SECONDS code=0
  "${@:2}" || code=$?
  printf '%s: %d s wall, exit code %d\n' "$1" $((SECONDS - start)) "$code" | tee -a "$out/times.txt"
}
export DAY0_TIMES="$out/local.times"
DAY0_CACHE="$out/cache-local" wall local "$out/timed" release "$@" --out "$out/local" --threads 2
export DAY0_TIMES="$out/submit.times"
DAY0_CACHE="$out/cache-slurm" wall slurm "$out/timed" release "$@" --out "$out/slurm" --executor slurm --profile "$out/cluster.yaml" --wait
for run in local submit slurm; do
  printf '%s: ' "$run"
  awk '{s += $1 + $2; n += 1} END {printf "%.1f CPU seconds in %d processes\n", s, n}' "$out/$run.times"
done | tee -a "$out/times.txt"
tests/slurm/same.sh "$out/local" "$out/slurm" | tee -a "$out/times.txt"
