#!/usr/bin/env bash
# compare.sh OUR_DIR REFERENCE_DIR ORACLE_DIR: all tasks of two runs, samples and results.
set -uo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
ours="$1" ref="$(dirname "$(ls "$2"/*/results_*.json | tail -1)")" oracle="$3" bad=0
for file in "$ref"/samples_*.jsonl; do
  name="$(basename "$file")"; name="${name#samples_}"; name="${name%_20*}"; name="${name%_local}"
  mine="$ours/samples_$name.jsonl"; [ -f "$mine" ] || mine="$ours/samples_${name}_local.jsonl"
  printf '%-18s ' "$name"
  python3 "$oracle/compare_samples.py" "$mine" "$file" 1e-3 || bad=1
done
python3 "$here/compare_results.py" "$ours/results.json" "$ref"/results_*.json || bad=1
exit "$bad"
