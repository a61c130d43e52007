#!/usr/bin/env bash
# run.sh SHARED SMOLLM2 OUT [PIECE...]: both sides of the comparisons in README.md, all of them or those named. SHARED holds
# models/, data/ and oracle/; SMOLLM2 is the checkpoint directory; lm-eval must be on PATH. `day0` is target/release/day0 or
# $DAY0. A reference that is there already (OUT/ref/PIECE) is not made again.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
shared="$(cd "$1" && pwd)" smol="$(cd "$2" && pwd)" out="$3" day0="${DAY0:-target/release/day0}"
shift 3
tiny="$shared/models/stories260k" oracle="$shared/oracle"
made() { ls "$out/ref/$1"/*/results_*.json >/dev/null 2>&1; }
names() { sed 's/,/_local,/g; s/$/_local/' <<<"$1"; }
hf() { # MODEL PIECE TASKS BATCH [LIMIT]
  made "$2" || bash "$oracle/lm_eval_hf.sh" "$1" "$out/ref/$2" "$(names "$3")" float32 "$4" ${5:-}
}
fewshot() { # MODEL PIECE
  if made "$2"; then return; fi
  python3 "$oracle/make_tasks.py" "$shared/data" "$out/ref/$2/tasks" >/dev/null
  HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 lm_eval --model hf --model_args "pretrained=$1,dtype=float32,softmax_dtype=float32" --device cpu \
    --batch_size 8 --tasks arc_easy_local,piqa_local --include_path "$out/ref/$2/tasks" --limit 100 --num_fewshot 5 --log_samples --output_path "$out/ref/$2"
}
endpoint() { # MODEL PIECE TASKS: lm-eval's client of completions, over `day0 serve`
  if made "$2"; then return; fi
  "$day0" serve "$1" --port 8123 --quiet >/dev/null & local server=$!
  trap "kill $server" EXIT
  until curl -sf http://127.0.0.1:8123/health >/dev/null; do sleep 1; done
  bash "$oracle/lm_eval_endpoint.sh" http://127.0.0.1:8123/v1 "$1" "$out/ref/$2" "$(names "$3")" 100
  kill $server
  trap - EXIT
}
ours() { # MODEL PIECE TASKS [OPTIONS]
  rm -rf "$out/ours/$2"
  "$day0" eval --model "$1" --suite "$3" --data "$shared/data" --out "$out/ours/$2" --quiet "${@:4}" >/dev/null
}
check() { "$here/compare.sh" "$out/ours/$1" "$out/ref/$1" "$oracle" | tee "$here/$1.txt"; }

all=arc_easy,winogrande,openbookqa,truthfulqa_mc1,truthfulqa_mc2,wikitext
one=arc_easy,winogrande,openbookqa,piqa,lambada_openai
two=boolq,hellaswag,arc_challenge
truth=truthfulqa_mc1,truthfulqa_mc2
pieces=("$@")
[ $# -gt 0 ] || pieces=(260k 260k-300 260k-5shot smol-100a smol-100b smol-40 smol-5shot smol-wikitext endpoint)
for p in "${pieces[@]}"; do
  echo "== $p"
  case $p in
    260k) hf "$tiny" $p $all 16; ours "$tiny" $p $all ;;
    260k-300) hf "$tiny" $p piqa,boolq 16 300; ours "$tiny" $p piqa,boolq --limit 300 ;;
    260k-5shot) fewshot "$tiny" $p; ours "$tiny" $p arc_easy,piqa --limit 100 --num-fewshot 5 ;;
    smol-100a) hf "$smol" $p $one 8 100; ours "$smol" $p $one --limit 100 ;;
    smol-100b) hf "$smol" $p $two 8 100; ours "$smol" $p $two --limit 100 ;;
    smol-40) hf "$smol" $p $truth 8 40; ours "$smol" $p $truth --limit 40 ;;
    smol-5shot) fewshot "$smol" $p; ours "$smol" $p arc_easy,piqa --limit 100 --num-fewshot 5 ;;
    smol-wikitext) hf "$smol" $p wikitext 1; ours "$smol" $p wikitext ;;
    endpoint) endpoint "$smol" $p "$one,$two,$truth"; ours "$smol" $p "$one,$two,$truth" --limit 100 ;;
  esac
  check "$p"
done
