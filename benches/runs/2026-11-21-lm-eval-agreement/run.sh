#!/usr/bin/env bash
# run.sh SHARED SMOLLM2 OUT: both sides of every comparison in README.md. SHARED holds models/, data/ and oracle/; SMOLLM2 is
# the checkpoint directory; lm-eval must be on PATH. `day0` is target/release/day0 or $DAY0.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
shared="$(cd "$1" && pwd)" smol="$(cd "$2" && pwd)" out="$3" day0="${DAY0:-target/release/day0}"
tiny="$shared/models/stories260k" oracle="$shared/oracle"
hf() { # MODEL NAME TASKS BATCH [LIMIT]
  bash "$oracle/lm_eval_hf.sh" "$1" "$out/ref/$2" "$(sed 's/,/_local,/g; s/$/_local/' <<<"$3")" float32 "$4" ${5:-}
}
fewshot() { # MODEL NAME TASKS
  python3 "$oracle/make_tasks.py" "$shared/data" "$out/ref/$2/tasks" >/dev/null
  HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 lm_eval --model hf --model_args "pretrained=$1,dtype=float32,softmax_dtype=float32" --device cpu \
    --batch_size 8 --tasks arc_easy_local,piqa_local --include_path "$out/ref/$2/tasks" --limit 100 --num_fewshot 5 --log_samples --output_path "$out/ref/$2"
}
ours() { # MODEL NAME TASKS [OPTIONS]
  "$day0" eval --model "$1" --suite "$3" --data "$shared/data" --out "$out/ours/$2" "${@:4}"
}
check() { "$here/compare.sh" "$out/ours/$1" "$out/ref/$1" "$oracle" | tee "$here/$1.txt"; }

all=arc_easy,winogrande,openbookqa,truthfulqa_mc1,truthfulqa_mc2,wikitext
hundred=arc_easy,winogrande,openbookqa,piqa,boolq,lambada_openai,hellaswag,arc_challenge
truth=truthfulqa_mc1,truthfulqa_mc2
hf "$tiny" 260k $all 16;                ours "$tiny" 260k $all;                          check 260k
hf "$tiny" 260k-300 piqa,boolq 16 300;  ours "$tiny" 260k-300 piqa,boolq --limit 300;    check 260k-300
fewshot "$tiny" 260k-5shot;             ours "$tiny" 260k-5shot arc_easy,piqa --limit 100 --num-fewshot 5; check 260k-5shot
hf "$smol" smol-100 $hundred 8 100;     ours "$smol" smol-100 $hundred --limit 100;      check smol-100
hf "$smol" smol-40 $truth 8 40;         ours "$smol" smol-40 $truth --limit 40;          check smol-40
fewshot "$smol" smol-5shot;             ours "$smol" smol-5shot arc_easy,piqa --limit 100 --num-fewshot 5; check smol-5shot

# The served model gives lm-eval's API client the same samples as the HF backend.
"$day0" serve "$smol" --port 8123 & server=$!
trap 'kill $server' EXIT
until curl -sf http://127.0.0.1:8123/health >/dev/null; do sleep 1; done
served="$(sed 's/,/_local,/g; s/$/_local/' <<<"$hundred,$truth")"
bash "$oracle/lm_eval_endpoint.sh" http://127.0.0.1:8123/v1 "$smol" "$out/ref/endpoint" "$served" 100
ours "$smol" endpoint "$hundred,$truth" --limit 100; check endpoint
