#!/usr/bin/env python3
"""quantized_agreement.py DAY0 SMOLLM2 SHARED OUT [NAME...]

The first 201 items of arc_easy on quantized copies of SMOLLM2: log-likelihoods of `DAY0 eval` in f32 against lm-eval's
Hugging Face backend on the same checkpoint in transformers (float32, batch 8). Checkpoints are made by
SHARED/oracle/quantize_ref.py in OUT/NAME, references in OUT/NAME.ref.json; what is there already is not made again.

Weight-only schemes must agree request by request: 99 % within 2e-3 nats, and accuracies within one item. transformers runs
NVFP4A16 in bf16 only, so its reference is the dense copy of SHARED/oracle/densify.py. Where inputs are quantized too, one
code that flips at a tie flips others downstream, and transformers does not agree with itself after its embeddings are
multiplied by 1 + 2e-7. There the mean signed difference must be within 0.1 nats, and answers may change at most 1.5 times
as often as between transformers and itself.

Prints a table and exits 1 when a rule is broken. lm-eval and llm-compressor must be importable. Both
sides read SHARED/data.
"""
import json
import os
import shutil
import subprocess
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

LIMIT = 201
# name: arguments of quantize_ref.py, whether inputs are quantized, whether the reference is a dense copy
SCHEMES = {
    "int4_g64": (["int4", "64"], False, False),
    "nvfp4a16": (["NVFP4A16"], False, True),
    "fp8_dynamic": (["FP8_DYNAMIC"], True, False),
    "w8a8": (["W8A8"], True, False),
}
WITHIN, SHARE, ITEMS = 2e-3, 0.99, 1
REQUESTS, MEAN, FLIPS, NOISE = 800, 0.1, 1.5, 2e-7


def script(shared, name, *arguments):
    command = [sys.executable, os.path.join(shared, "oracle", name), *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def items(samples):
    """For each document, in order: log-likelihoods of its choices, and whether the answer is right."""
    samples = sorted(samples, key=lambda s: s["doc_id"])
    return [([float(r[0]) for r in s["filtered_resps"]], float(s["acc"])) for s in samples]


def reference(checkpoint, tasks, noises):
    """lm-eval's items, once for each noise: what the embeddings are multiplied by, less 1."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    lm = HFLM(pretrained=checkpoint, dtype="float32", softmax_dtype="float32", batch_size=8, device="cpu")
    runs = []
    for noise in noises:
        hook = lm.model.model.embed_tokens.register_forward_hook(lambda m, i, o, noise=noise: o * (1 + noise))
        manager = TaskManager(include_path=tasks)
        results = simple_evaluate(model=lm, tasks=["arc_easy_local"], task_manager=manager, limit=LIMIT, bootstrap_iters=0)
        hook.remove()
        runs.append(items(results["samples"]["arc_easy_local"]))
    return runs


def cached_reference(path, *arguments):
    if not os.path.exists(path):
        runs = reference(*arguments)
        with open(path + ".partial", "w") as f:
            json.dump(runs, f)
        os.replace(path + ".partial", path)
    with open(path) as f:
        return json.load(f)


def ours(day0, checkpoint, shared, out):
    shutil.rmtree(out, ignore_errors=True)
    command = [day0, "eval", "--model", checkpoint, "--suite", "arc_easy", "--data", os.path.join(shared, "data")]
    command += ["--limit", str(LIMIT), "--dtype", "f32", "--out", out, "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with open(os.path.join(out, "samples_arc_easy.jsonl"), encoding="utf-8") as f:
        return items(map(json.loads, f))


def flips(a, b):
    best = lambda item: max(range(len(item[0])), key=item[0].__getitem__)
    return sum(best(x) != best(y) for x, y in zip(a, b, strict=True))


def differences(a, b):
    return [x - y for (xs, _), (ys, _) in zip(a, b, strict=True) for x, y in zip(xs, ys, strict=True)]


def judge(mine, runs, quantized_inputs):
    """A line of the table, and the rules that are broken."""
    ref = runs[0]
    d = differences(mine, ref)
    n, mean = len(d), sum(d) / len(d)
    within = sum(abs(x) <= WITHIN for x in d) / n
    hits = [round(sum(acc for _, acc in run)) for run in (mine, ref)]
    line = f"{n:>8} {within:>10.4f} {max(map(abs, d)):>9.2e} {mean:>+10.2e} {hits[0]:>5} {hits[1]:>5} {flips(mine, ref):>6}"
    if not quantized_inputs:
        rules = {
            f"{SHARE} of requests within {WITHIN} nats": within >= SHARE,
            f"accuracy within {ITEMS} item": abs(hits[0] - hits[1]) <= ITEMS,
        }
        return line + f" {'-':>6} {'-':>10}", [rule for rule, holds in rules.items() if not holds]
    noise = runs[1]
    own = differences(noise, ref)
    line += f" {flips(noise, ref):>6} {sum(map(abs, own)) / len(own):>10.2e}"
    rules = {
        f"at least {REQUESTS} requests": n >= REQUESTS,
        f"mean difference within {MEAN} nats": abs(mean) <= MEAN,
        f"at most {FLIPS} times transformers' own flips": flips(mine, ref) <= FLIPS * flips(noise, ref),
    }
    return line, [rule for rule, holds in rules.items() if not holds]


def main():
    day0, smollm2, shared, out = sys.argv[1:5]
    names = sys.argv[5:] or list(SCHEMES)
    os.makedirs(out, exist_ok=True)
    script(shared, "make_tasks.py", os.path.join(shared, "data"), os.path.join(out, "tasks"))
    lines, broken = [], []
    for name in names:
        scheme, quantized_inputs, dense = SCHEMES[name]
        checkpoint = os.path.join(out, name)
        if not os.path.exists(os.path.join(checkpoint, "tokenizer.json")):
            script(shared, "quantize_ref.py", smollm2, checkpoint, *scheme)
        source = checkpoint
        if dense:
            source = checkpoint + ".dense"
            if not os.path.exists(os.path.join(source, "tokenizer.json")):
                script(shared, "densify.py", checkpoint, source, smollm2)
        noises = [0.0, NOISE] if quantized_inputs else [0.0]
        runs = cached_reference(checkpoint + ".ref.json", source, os.path.join(out, "tasks"), noises)
        mine = ours(day0, checkpoint, shared, checkpoint + ".ours")
        line, wrong = judge(mine, runs, quantized_inputs)
        lines.append(f"{name:<12} {line}")
        broken += [f"{name}: {rule}" for rule in wrong]
    print(f"{'scheme':<12} {'requests':>8} {'<= 2e-3':>10} {'largest':>9} {'mean':>10} {'hits':>5} {'ref':>5} {'flips':>6} {'own':>6} {'own |d|':>10}")
    print("\n".join(lines))
    for rule in broken:
        print("broken:", rule)
    sys.exit(bool(broken))


main()
