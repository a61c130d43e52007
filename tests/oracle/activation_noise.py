#!/usr/bin/env python3
"""activation_noise.py CHECKPOINT...

How far mean NLL moves when transformers' own embeddings are perturbed by 1e-6 of their size: an f32 rounding. Where
activations are quantized, one code that flips at a tie flips others downstream, so two correct implementations agree
layer by layer (layer_io.py) but not in the end. This prints the tolerance that a comparison of NLL needs there.
"""
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = ("The tide tables printed in 1912 listed 3 high waters for the harbour.\n\nFishermen who trusted them lost 2 boats, "
        "because the moon was late that week. A quantized model should predict the next word of this sentence almost as well as "
        "the original one does; if it does not, the checkpoint is broken. In 2024 the museum put the tables on display again.")


def mean_nll(model, ids):
    with torch.no_grad():
        logprobs = torch.log_softmax(model(ids).logits[0].double(), -1)
    return -logprobs[:-1].gather(1, ids[0, 1:, None]).mean().item()


for checkpoint in sys.argv[1:]:
    ids = AutoTokenizer.from_pretrained(checkpoint)(TEXT, return_tensors="pt", add_special_tokens=False)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    moved = []
    for seed in range(6):
        torch.manual_seed(seed)
        noise = lambda _module, _input, output: output * (1 + 1e-6 * torch.randn_like(output))
        hook = model.model.embed_tokens.register_forward_hook(noise)
        moved.append(round(mean_nll(model, ids), 4))
        hook.remove()
    print(checkpoint, "mean NLL", round(mean_nll(model, ids), 4), "perturbed", moved)
