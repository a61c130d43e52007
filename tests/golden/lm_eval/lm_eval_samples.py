#!/usr/bin/env python3
"""lm_eval_samples.py COUNT SAMPLES.jsonl... > lm_eval_stories260k.jsonl

The first COUNT documents (the shortest two of wikitext) of sample files of lm-eval 0.4.13 (hf backend, float32, CPU, on
stories260k; benches/runs/2026-11-29-lm-eval-agreement/), reduced to what a comparison needs.
"""
import json
import os
import sys

count = int(sys.argv[1])
for path in sys.argv[2:]:
    task = os.path.basename(path).removeprefix("samples_").rsplit("_20", 1)[0].removesuffix("_local")
    samples = sorted((json.loads(line) for line in open(path, encoding="utf-8")), key=lambda s: s["doc_id"])
    if task == "wikitext":
        samples = sorted(samples, key=lambda s: len(s["doc"]["page"]))[:2]
    for s in samples[:count]:
        answers = [r[0] for r in s["resps"]]
        pairs = [a if isinstance(a, list) else [a, None] for a in answers]
        print(json.dumps({
            "task": task, "doc_id": s["doc_id"],
            "hashes": [s["doc_hash"], s["prompt_hash"], s["target_hash"]],
            "loglikelihoods": [float(p[0]) for p in pairs],
            "is_greedy": [str(p[1]) == "True" for p in pairs if p[1] is not None],
            "metrics": {m: s[m] for m in s["metrics"]},
        }))
