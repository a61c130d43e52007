#!/usr/bin/env python3
"""logits.py CHECKPOINT OUT.safetensors [--text FILE] [--max-tokens N] [--dtype float32|float64|bfloat16] [--as DIR]

What transformers says of one text: `ids` [T] (i64) and `logprobs` [T, V] (f32, row t predicts token t+1). In the metadata:
the largest difference to the same in float64 (`own_error`), and the checkpoint's path, or DIR: the compressed checkpoint
whose dense copy CHECKPOINT is (densify.py), where transformers cannot run it in float32. Read by
src/engine/tests/reference.rs from target/oracle/logits/*.safetensors.
"""
import argparse
import os

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

# The text of load_check.py, so that numbers can be compared with its output.
TEXT = ("The tide tables printed in 1912 listed 3 high waters for the harbour.\n\nFishermen who trusted them lost 2 boats, "
        "because the moon was late that week. A quantized model should predict the next word of this sentence almost as well as "
        "the original one does; if it does not, the checkpoint is broken. In 2024 the museum put the tables on display again.")
ap = argparse.ArgumentParser()
ap.add_argument("checkpoint")
ap.add_argument("out")
ap.add_argument("--text")
ap.add_argument("--max-tokens", type=int, default=200)
ap.add_argument("--dtype", default="float32")
ap.add_argument("--as", dest="alias")
args = ap.parse_args()

text = open(args.text, encoding="utf-8").read() if args.text else TEXT
tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
model = AutoModelForCausalLM.from_pretrained(args.checkpoint, dtype=getattr(torch, args.dtype)).eval()
ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"][:, : args.max_tokens]
with torch.no_grad():
    logprobs = torch.log_softmax(model(ids).logits[0].double(), -1)
    # What its own rounding moves: some positions of some texts are ill-conditioned.
    exact = torch.log_softmax(model.double()(ids).logits[0], -1)
own = (logprobs - exact).abs().max()
nll = -logprobs[:-1].gather(1, ids[0, 1:, None]).mean()
os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)
metadata = {
    "checkpoint": os.path.abspath(args.alias or args.checkpoint),
    "mean_nll": f"{nll:.6f}",
    "own_error": f"{own:.3e}",
}
save_file({"ids": ids[0].contiguous(), "logprobs": logprobs.float().contiguous()}, args.out, metadata=metadata)
print(args.checkpoint, "tokens", ids.shape[1], "mean NLL", f"{nll:.6f}", "own error", f"{own:.1e}")
