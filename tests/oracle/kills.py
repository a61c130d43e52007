#!/usr/bin/env python3
"""kills.py DAY0 SOURCE OUT RECIPE COUNT

Quantizes SOURCE once undisturbed; then COUNT times with a SIGKILL at a random moment, after which the same command goes
on. Every time all files of OUT must have the bytes of the undisturbed run. Exits 1 if one differs.
"""
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time

day0, source, out, recipe, count = sys.argv[1:5] + [int(sys.argv[5])]
command = [day0, "quantize", source, "--recipe", recipe, "--out", out, "--quiet", "--no-sync"]
random.seed(20261129)


def digest():
    digests = hashlib.sha256()
    for name in sorted(os.listdir(out)):
        digests.update(name.encode())
        with open(os.path.join(out, name), "rb") as file:
            digests.update(hashlib.file_digest(file, "sha256").digest())
    return digests.hexdigest()


def clean():
    """Removes the output and what a killed run leaves beside it, and nothing else."""
    for path in (out, out + ".partial", out + ".ledger.jsonl"):
        if os.path.isdir(path):
            shutil.rmtree(path)
        elif os.path.exists(path):
            os.remove(path)


clean()
start = time.time()
subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
whole = time.time() - start
reference = digest()
print(f"whole run {whole:.2f} s, {reference}", flush=True)
same = killed = 0
for i in range(count):
    clean()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    moment = random.uniform(0.02, 0.98) * whole
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    code = process.wait()
    killed += code == -signal.SIGKILL
    # A run that was done before the signal refuses to write over its output, which is compared all the same.
    again = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
    identical = (again == 0 or code == 0) and os.path.isdir(out) and digest() == reference
    same += identical
    print(f"{i + 1}: killed after {moment:.2f} s (exit {code}), continued with {again}, identical: {identical}", flush=True)
print(f"{same} of {count} identical, {killed} killed before the end")
clean()
sys.exit(same != count)
