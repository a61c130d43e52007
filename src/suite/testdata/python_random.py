#!/usr/bin/env python3
"""python_random.py > python_random.json: what CPython's random.Random draws, call by call."""
import json
import random

out = []
for seed in [0, 1, 1234, 2**40 + 5]:
    r = random.Random(seed)
    case = {"seed": seed, "random": r.random(), "samples": []}
    for n, k in [(5, 5), (30, 3), (570, 6), (570, 5), (100, 20), (3, 0), (1000, 40)]:
        case["samples"].append({"n": n, "picked": r.sample(range(n), k)})
    shuffled = list(range(50))
    r.shuffle(shuffled)
    case["shuffled"] = shuffled
    case["choices"] = r.choices(range(1000), k=20)
    out.append(case)
print(json.dumps(out))
