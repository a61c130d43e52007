"""Kept tokens and their probabilities after transformers' logits processors, in vLLM's order.

Run: python sampling.py > sampling.json   (torch 2.10, transformers 5.17)
"""
import json

import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

torch.manual_seed(5)
cases = []
for temperature, top_k, top_p, min_p, repetition in [
    (1.0, None, None, 0.0, None),
    (0.7, 5, None, 0.0, None),
    (1.3, None, 0.8, 0.0, None),
    (1.0, None, None, 0.1, None),
    (0.9, 12, 0.6, 0.02, 1.3),
    (2.0, 1, None, 0.0, 1.8),
    (1.0, 40, 0.05, 0.0, None),
]:
    logits = torch.randn(1, 40) * 3
    prompt = torch.randint(0, 40, (1, 9))
    x = logits.clone()
    if repetition:
        x = RepetitionPenaltyLogitsProcessor(repetition)(prompt, x)
    x = TemperatureLogitsWarper(temperature)(prompt, x)
    if min_p:
        x = MinPLogitsWarper(min_p)(prompt, x)
    if top_k:
        x = TopKLogitsWarper(top_k)(prompt, x)
    if top_p:
        x = TopPLogitsWarper(top_p)(prompt, x)
    cases.append({
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition,
        "prompt": prompt[0].tolist(), "logits": logits[0].tolist(), "probabilities": x.softmax(-1)[0].tolist(),
    })
print(json.dumps(cases))
