#!/usr/bin/env python3
"""differences.py RUN_A RUN_B [--within NATS SHARE] [--mean NATS] [--p99 NATS]

How far the log-likelihoods of two runs of `day0 eval` on the same items are apart: requests, mean, 99th percentile, largest.
Exits 1 when a limit is broken.
"""
import argparse
import glob
import json
import os
import sys


def loglikelihoods(run):
    found = {}
    for path in glob.glob(os.path.join(run, "samples_*.jsonl")):
        with open(path, encoding="utf-8") as lines:
            for sample in map(json.loads, lines):
                key = (os.path.basename(path), sample["doc_id"])
                found[key] = [float(r[0]) for r in sample["filtered_resps"]]
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs=2)
    parser.add_argument("--within", nargs=2, type=float)
    parser.add_argument("--mean", type=float)
    parser.add_argument("--p99", type=float)
    arguments = parser.parse_args()
    a, b = map(loglikelihoods, arguments.runs)
    if not a or a.keys() != b.keys():
        sys.exit(f"{arguments.runs[0]} and {arguments.runs[1]} do not have the same items")
    apart = sorted(abs(x - y) for key in a for x, y in zip(a[key], b[key], strict=True))
    mean, p99 = sum(apart) / len(apart), apart[int(0.99 * (len(apart) - 1))]
    print(f"{len(apart)} requests, mean {mean:.2e}, p99 {p99:.2e}, largest {apart[-1]:.2e} nats")
    broken = []
    if arguments.within:
        nats, share = arguments.within
        within = sum(x <= nats for x in apart) / len(apart)
        print(f"{within:.5f} of requests within {nats:g} nats")
        broken += [f"{share:g} within {nats:g} nats"] if within < share else []
    broken += [f"mean {arguments.mean:g}"] if arguments.mean is not None and mean > arguments.mean else []
    broken += [f"p99 {arguments.p99:g}"] if arguments.p99 is not None and p99 > arguments.p99 else []
    for limit in broken:
        print("broken:", limit)
    sys.exit(bool(broken))


main()
