#!/usr/bin/env python3
"""calibrated_scales.py EXPORT SOURCE TEXT

Compares the static input scales of EXPORT (made by `day0 quantize SOURCE --recipe nvfp4|fp8_static --calibration TEXT`)
with those that llm-compressor finds on the same samples: `oneshot` in float32 with the basic pipeline, in which nothing
is quantized while it observes, and the observer static_minmax. Samples are cut here once more by the rule that
src/quantize/calibration/text.rs states. Also compares weight codes and weight scales of NVFP4.
Prints the largest relative differences; exits 1 if an input scale differs by more than 2e-4 (bf16 scales: by more than
one unit in the last place).
"""
import os
import sys

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.quant_scheme import NVFP4
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

export, source, text_path = sys.argv[1:4]
samples, length = (int(os.environ.get(k, d)) for k, d in (("SAMPLES", "64"), ("LENGTH", "512")))
tokenizer = AutoTokenizer.from_pretrained(source)
data = open(text_path, "rb").read()


def sample(i):
    begin, end = i * len(data) // samples, (i + 1) * len(data) // samples
    stretch = data[begin : min(end, begin + 16 * length)]
    cut = 0
    while begin and cut < 3 and cut < len(stretch) and stretch[cut] & 0xC0 == 0x80:
        cut += 1
    text = stretch[cut:].decode("utf-8", errors="ignore")  # drops the part of a character at the end
    if begin and "\n" in text and text.split("\n", 1)[1].strip():
        text = text.split("\n", 1)[1]
    return tokenizer(text)["input_ids"][:length] if text.strip() else []


ids = [s for s in map(sample, range(samples)) if s]
print(len(ids), "samples,", sum(map(len, ids)), "tokens")
tensors = {}
for name in sorted(os.listdir(export)):
    if name.endswith(".safetensors"):
        tensors.update(load_file(os.path.join(export, name)))
nvfp4 = any(name.endswith("input_global_scale") for name in tensors)
if nvfp4:
    scheme = QuantizationScheme(targets=["Linear"], **NVFP4)
else:
    args = dict(num_bits=8, type="float", strategy="tensor", symmetric=True)
    inputs = QuantizationArgs(**args, dynamic=False, observer="static_minmax")
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args), input_activations=inputs)
model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
modifier = QuantizationModifier(config_groups={"group_0": scheme}, ignore=["lm_head"])
dataset = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(s) for s in ids]})
oneshot(
    model=model, dataset=dataset, recipe=modifier, pipeline="basic", max_seq_length=length,
    num_calibration_samples=len(ids), shuffle_calibration_samples=False,
)
suffix = "input_global_scale" if nvfp4 else "input_scale"
worst, exact, count, at = 0.0, 0, 0, None
ours_of = {name: t for name, t in tensors.items() if name.endswith(suffix)}
theirs_of = {n: getattr(m, suffix).detach() for n, m in model.named_modules() if getattr(m, suffix, None) is not None}
assert {n.removesuffix("." + suffix) for n in ours_of} == set(theirs_of), "other modules"
for name, ours in ours_of.items():
    theirs = theirs_of[name.removesuffix("." + suffix)].to(ours.dtype).double().item()
    ours = ours.double().item()
    difference = abs(ours / theirs - 1)
    exact, count = exact + (ours == theirs), count + 1
    if difference > worst:
        worst, at = difference, name
print(f"{count} {suffix}s, {exact} equal, largest relative difference {worst:.2e} ({at})")
if nvfp4:
    codes = same = 0
    for name, module in model.named_modules():
        packed = tensors.get(f"{name}.weight_packed")
        if packed is None:
            continue
        theirs = module.weight_global_scale.detach().double().item()
        codes, same = codes + 1, same + (abs(tensors[f"{name}.weight_global_scale"].double().item() / theirs - 1) < 1e-2)
    print(f"{same} of {codes} weight global scales within 1 % (theirs of float32 weights, ours rounded as bf16 ones)")
sys.exit(worst > (2e-4 if nvfp4 else 2**-7))
