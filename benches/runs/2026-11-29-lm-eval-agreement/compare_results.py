#!/usr/bin/env python3
"""compare_results.py OURS.json REFERENCE.json

Metrics of two lm-eval results files, task by task: accuracies and their standard errors equal to 4 decimals,
bits_per_byte within 1e-5, perplexities within 1e-4 relative, bootstrapped standard errors within 1e-3 relative.
Exits 1 if a task or metric is missing or outside.
"""
import json
import sys

ours, ref = (json.load(open(p))["results"] for p in sys.argv[1:3])
bad = 0
for task, metrics in ref.items():
    mine = next((ours[t] for t in (task, task.removesuffix("_local"), task + "_local") if t in ours), None)
    if mine is None:
        print(f"{task}: missing")
        bad += 1
        continue
    for key, theirs in metrics.items():
        if "," not in key:
            continue
        value = mine.get(key)
        if isinstance(theirs, str) or isinstance(value, str):
            ok, off = value == theirs, "text"
        else:
            off = abs(value - theirs)
            if key.startswith("bits_per_byte"):
                ok = off <= 1e-5
            elif "perplexity_stderr" in key:
                ok = off <= 1e-3 * abs(theirs)
            elif "perplexity" in key:
                ok = off <= 1e-4 * abs(theirs)
            else:
                ok = f"{value:.4f}" == f"{theirs:.4f}"
        bad += not ok
        print(f"{task:<24} {key:<28} ours {value!s:<22} lm-eval {theirs!s:<22} {'ok' if ok else 'DIFFERS'}")
sys.exit(bad > 0)
