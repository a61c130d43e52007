#!/usr/bin/env bash
# same.sh RUN_A RUN_B: whether two finished runs hold the same results. Samples are compared byte by byte, everything
# else by the digests in release.json, which leave out times and places.
set -euo pipefail
for path in "$1"/eval/*/samples_*.jsonl; do
  cmp "$path" "$2/${path#"$1"/}"
done
artifacts() { sed -n '/^  "artifacts": {/,/^  }/p' "$1/release.json"; }
diff <(artifacts "$1") <(artifacts "$2")
for key in verdict failure_class; do
  diff <(grep "^  \"$key\"" "$1/release.json") <(grep "^  \"$key\"" "$2/release.json")
done
echo "the same: $(artifacts "$1" | grep -c '": "') artifacts"
