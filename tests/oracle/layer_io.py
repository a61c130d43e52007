#!/usr/bin/env python3
"""layer_io.py CHECKPOINT OUT.safetensors [--max-tokens N]

Inputs and outputs of every linear whose input is quantized, as transformers runs the checkpoint in float32:
`<module>.input` [T, K] before quantization, `<module>.codes` [T, K] (quantized, not scaled), `<module>.scale`
[T, 1] or [T, groups] (of NVFP4 the local one over the global one), `<module>.output` [T, N]. Read by src/model/linear_oracle_tests.rs from target/oracle/layers/*.safetensors.
"""
import argparse
import os

import torch
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

ap = argparse.ArgumentParser()
ap.add_argument("checkpoint")
ap.add_argument("out")
ap.add_argument("--max-tokens", type=int, default=24)
args = ap.parse_args()

tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
model = AutoModelForCausalLM.from_pretrained(args.checkpoint, dtype=torch.float32).eval()
text = "The tide tables printed in 1912 listed 3 high waters for the harbour. Fishermen who trusted them lost 2 boats."
ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"][:, : args.max_tokens]
tensors = {}


def record(name):
    def hook(module, inputs, output):
        x = inputs[0].detach()
        quant = module.quantization_scheme.input_activations
        global_scale = getattr(module, "input_global_scale", None)
        if quant.dynamic:
            scale, zero_point = compute_dynamic_scales_and_zp(x, quant, module, global_scale=global_scale)
        else:
            scale, zero_point = module.input_scale.detach().float(), None
        codes = quantize(x, scale, zero_point, quant, global_scale=global_scale)
        if global_scale is not None:
            scale = scale.float() / global_scale  # what the values are divided by
        if not quant.dynamic:
            scale = scale.expand(*x.shape[:-1], 1)
        for kind, value in (("input", x), ("codes", codes.float()), ("scale", scale), ("output", output.detach())):
            tensors[f"{name}.{kind}"] = value[0].float().clone().contiguous()

    return hook


with torch.no_grad():
    model(ids)  # the first forward decompresses
    for name, module in model.named_modules():
        if getattr(getattr(module, "quantization_scheme", None), "input_activations", None) is not None:
            module.register_forward_hook(record(name))
    model(ids)
os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)
save_file(tensors, args.out, metadata={"checkpoint": os.path.abspath(args.checkpoint)})
print(args.checkpoint, len(tensors) // 4, "modules,", ids.shape[1], "tokens")
