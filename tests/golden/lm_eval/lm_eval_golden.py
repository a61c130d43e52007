#!/usr/bin/env python3
"""lm_eval_golden.py DATA_DIR TOKENIZER_DIR... [--tasks A,B] > lm_eval_golden.jsonl

What lm-eval (0.4.13) makes of the tasks that day0 ships, with a bigram in place of a model: hashes of prompts,
documents, targets, request texts and token ids over whole splits, and the metrics. TOKENIZER_DIR is NAME=DIR.

The bigram: ln p(token | previous) = -((7 previous + 13 token) mod 251 + 1) / 64, exact in binary; a token is greedy
if (previous + token) mod 3 = 0.
"""
import glob
import hashlib
import json
import os
import sys
import tempfile

import lm_eval
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

BASE = os.path.join(os.path.dirname(lm_eval.__file__), "tasks")
HERE = os.path.dirname(os.path.abspath(__file__))
TASKS = {
    "arc_easy": ("arc/arc_easy.yaml", {"test": "arc_easy.test", "validation": "arc_easy.validation"}),
    "arc_challenge": ("arc/arc_challenge.yaml", {"test": "arc_challenge.test", "validation": "arc_challenge.validation"}),
    "hellaswag": ("hellaswag/hellaswag.yaml", {"validation": "hellaswag.validation"}),
    "piqa": ("piqa/piqa.yaml", {"validation": "piqa.validation"}),
    "winogrande": ("winogrande/default.yaml", {"validation": "winogrande.validation"}),
    "boolq": ("super_glue/boolq/default.yaml", {"validation": "boolq.validation"}),
    "openbookqa": ("openbookqa/openbookqa.yaml", {"test": "openbookqa.test"}),
    "lambada_openai": ("lambada/lambada_openai.yaml", {"test": "lambada_openai.test"}),
    "truthfulqa_mc1": ("truthfulqa/truthfulqa_mc1.yaml", {"validation": "truthfulqa.validation"}),
    "truthfulqa_mc2": ("truthfulqa/truthfulqa_mc2.yaml", {"validation": "truthfulqa.validation"}),
    "wikitext": ("wikitext/wikitext.yaml", {"test": "wikitext2.test"}),
}
MMLU = sorted(os.path.basename(f)[:-5] for f in glob.glob(os.path.join(BASE, "mmlu/default/mmlu_*.yaml")))
MMLU_GROUPS = ["mmlu", "mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities"]
# tokenizer, task, num_fewshot, limit, max_length, chat template
RUNS = [
    ("smollm2", "arc_easy", None, None, 8192, False),
    ("smollm2", "arc_easy", 3, 400, 8192, False),
    ("smollm2", "arc_easy", 8, 300, 128, False),
    ("smollm2", "arc_easy", 2, 100, 8192, True),
    ("smollm2", "arc_challenge", None, None, 8192, False),
    ("smollm2", "piqa", None, None, 8192, False),
    ("smollm2", "piqa", 2, 400, 8192, False),
    ("smollm2", "openbookqa", None, None, 8192, False),
    ("smollm2", "boolq", None, None, 256, False),
    ("smollm2", "lambada_openai", None, 200, 8192, False),
    ("smollm2", "truthfulqa_mc1", None, None, 8192, False),
    ("smollm2", "hellaswag", None, None, 8192, False),
    ("smollm2", "winogrande", None, None, 8192, False),
    ("smollm2", "winogrande", 2, 300, 8192, False),
    ("smollm2", "wikitext", None, None, 512, False),
    ("stories260k", "arc_easy", None, 300, 512, False),
    ("stories260k", "edges", None, None, 24, False),
    ("smollm2", "edges", None, None, 24, False),
    ("smollm2", "edges_rolling", None, None, 8, False),
    ("stories260k", "edges_rolling", None, None, 8, False),
    ("smollm2", "truthfulqa_mc2", None, None, 8192, False),
    ("smollm2", "mmlu_abstract_algebra", 5, None, 8192, False),
    ("smollm2", "mmlu_us_foreign_policy", 5, None, 512, False),
    ("smollm2", "mmlu_high_school_us_history", None, None, 8192, True),
    ("smollm2", "mmlu", 5, 11, 8192, False),
]


class Bigram(HFLM):
    def __init__(self, path, max_length):
        TemplateLM.__init__(self)
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.add_bos_token = None
        self.custom_prefix_token_id = None
        self._limit = max_length
        self._rank, self._world_size = 0, 1
        self.batch_size_per_gpu = 64
        self._device = "cpu"
        self.chat_template_args = {}
        self.enable_thinking = False
        self.seen = []

    max_length = property(lambda self: self._limit)
    batch_size = property(lambda self: 64)
    tokenizer_name = property(lambda self: "")
    rank = property(lambda self: 0)
    world_size = property(lambda self: 1)

    def get_model_info(self):
        return {}

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None):
        out = []
        for _, context, continuation in requests:
            assert context and continuation and len(continuation) <= self._limit
            whole = (context + continuation)[-(self._limit + 1) :]
            start = len(whole) - len(continuation)
            self.seen.append([whole, start])
            pairs = list(zip(whole[start - 1 : -1], whole[start:]))
            ll = -sum(((7 * p + 13 * t) % 251 + 1) / 64 for p, t in pairs)
            out.append((ll, all((p + t) % 3 == 0 for p, t in pairs)))
        return out


def write_mmlu(data, out):
    """lm-eval's subjects and groups over one file for each subject, as the hub's directories hold them."""
    rows = {s: [json.loads(l) for l in open(f"{data}/mmlu.{s}.jsonl")] for s in ("test", "dev")}
    for task in MMLU:
        for split, all_rows in rows.items():
            with open(os.path.join(out, f"{task}.{split}.jsonl"), "w") as f:
                f.writelines(json.dumps(r) + "\n" for r in all_rows if "mmlu_" + r["subject"] == task)
        with open(os.path.join(out, f"{task}.yaml"), "w") as f:
            f.write(f"include: {BASE}/mmlu/default/{task}.yaml\ntask: {task}_local\ndataset_path: json\ndataset_name: null\ndataset_kwargs:\n  data_files:\n    test: {out}/{task}.test.jsonl\n    dev: {out}/{task}.dev.jsonl\n")
    for group in MMLU_GROUPS:
        text = open(f"{BASE}/mmlu/default/_{group}.yaml").read().replace(f"group: {group}\n", f"group: {group}_local\n")
        for name in MMLU_GROUPS[1:]:
            text = text.replace(f"- {name}\n", f"- {name}_local\n")
            if f"- {name}_tasks\n" in text:
                members = [t for t in MMLU if f'"{name}_tasks"' in open(f"{BASE}/mmlu/default/{t}.yaml").read()]
                text = text.replace(f"  - {name}_tasks\n", "".join(f"  - {t}_local\n" for t in members))
        with open(os.path.join(out, f"{group}.yaml"), "w") as f:
            f.write(text)


def sha(value):
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()


def main():
    # lm-eval prints to standard output, too.
    lines, sys.stdout = sys.stdout, sys.stderr
    only = sys.argv.pop().split(",") if "--tasks" in sys.argv else None
    data = os.path.abspath(sys.argv[1])
    tokenizers = dict(a.split("=", 1) for a in sys.argv[2:] if "=" in a)
    with tempfile.TemporaryDirectory() as out:
        for task, (official, splits) in TASKS.items():
            files = "".join(f"    {split}: {data}/{name}.jsonl\n" for split, name in splits.items())
            gone = "".join(f"{s}_split: null\n" for s in ("training", "validation", "test") if s not in splits)
            with open(os.path.join(out, f"{task}.yaml"), "w") as f:
                f.write(f"include: {os.path.join(BASE, official)}\ntask: {task}_local\ndataset_path: json\ndataset_name: null\ndataset_kwargs:\n  data_files:\n{files}{gone}")
        for path in glob.glob(os.path.join(HERE, "edges*.yaml")):
            name = os.path.basename(path)[:-5]
            with open(os.path.join(out, f"{name}.yaml"), "w") as f:
                f.write(open(path).read().replace("primary_metric", "# primary_metric").replace("data_stem", "# data_stem").replace(f"task: {name}", f"task: {name}_local"))
                f.write(f"\ndataset_kwargs:\n  data_files:\n    test: {HERE}/{name}.test.jsonl\n")
        write_mmlu(data, out)
        manager = TaskManager(include_path=out)
        for tokenizer, task, shots, limit, max_length, chat in RUNS:
            if only and task not in only:
                continue
            model = Bigram(tokenizers[tokenizer], max_length)
            result = lm_eval.simple_evaluate(
                model=model, tasks=[f"{task}_local"], num_fewshot=shots, limit=limit, task_manager=manager,
                apply_chat_template=chat, fewshot_as_multiturn=chat, log_samples=True, verbosity="ERROR",
            )
            if task in MMLU_GROUPS:
                groups = {g: {k: v for k, v in result["results"][f"{g}_local"].items() if "," in k} for g in MMLU_GROUPS}
                print(json.dumps({"tokenizer": tokenizer, "group": task, "num_fewshot": shots, "limit": limit, "max_len": max_length, "groups": groups}), file=lines, flush=True)
                continue
            samples = result["samples"][f"{task}_local"]
            hashes = "".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples)
            arguments = [[list(a) for a in s["arguments"]] for s in samples]
            metrics = {k: v for k, v in result["results"][f"{task}_local"].items() if "," in k}
            entry = {
                "tokenizer": tokenizer, "task": task, "num_fewshot": shots, "limit": limit, "max_len": max_length,
                "chat": chat, "n": len(samples), "task_hash": hashlib.sha256(hashes.encode()).hexdigest(),
                "arguments": sha(arguments), "tokens": sha(model.seen), "metrics": metrics,
            }
            if task.startswith("edges"):
                entry["all_tokens"] = model.seen
            print(json.dumps(entry), file=lines, flush=True)
            print(tokenizer, task, shots, metrics, file=sys.stderr)


main()
