"""One prompt through a model's layers in transformers, without logits: python prefill.py MODEL TOKENS THREADS.

Prints one JSON line: tokens per second in float32 and bfloat16, median of 9 passes.
"""
import json
import os
import sys
import time

import torch
import transformers

model_dir, tokens, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)
ids = torch.arange(100, 100 + tokens).unsqueeze(0)
rates = {}
with torch.inference_mode():
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        model = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype).eval()
        seconds = []
        for _ in range(11):
            start = time.perf_counter()
            model.model(ids)
            seconds.append(time.perf_counter() - start)
        rates[name] = tokens / sorted(seconds[2:])[4]
isa = os.environ.get("ONEDNN_MAX_CPU_ISA", "default")
print(json.dumps({"rates": rates, "torch": torch.__version__, "isa": isa, "threads": threads}))
