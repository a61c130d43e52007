#!/usr/bin/env python3
"""quantize_matrix.py DAY0 MODEL OUT [--moe] [--only NAME,NAME] [--load]

Every scheme of `day0 quantize` against llm-compressor's round-to-nearest export of the same model on CPU.

For each scheme: the reference is made once in OUT/ref-NAME, `DAY0 quantize --arithmetic bf16` writes OUT/day0-NAME, and
names, dtypes, shapes and bytes are compared; a second run in the default arithmetic (OUT/f32-NAME) gives the share of codes
that differ. Then our tensors are decompressed by compressed-tensors itself and compared with MODEL. With --load the
checkpoint is loaded through transformers as well, with everything that its loading report lists, and so is
llm-compressor's where ours does not load without an issue. With --moe MODEL is made first: a random Qwen3-MoE checkpoint
as transformers saves it. Needs torch, transformers 5, llmcompressor.
"""
import argparse
import glob
import json
import os
import subprocess
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from safetensors import safe_open

# name: recipe or recipe text, llm-compressor scheme, relative error allowed, dtype to load in
INT8_G64 = "name: int8_g64\nversion: 1\ndescription: INT8 by 64 columns\ngroups:\n  - targets: [Linear]\n    weights: {num_bits: 8, type: int, strategy: group, group_size: 64}\n"
MSE = "memoryless_mse"
SCHEMES = {
    "fp8_dynamic": ("fp8_dynamic", "FP8_DYNAMIC", 0.04, "float32"),
    "fp8_block": ("fp8_block", "FP8_BLOCK", 0.04, "float32"),
    "w8a8": ("w8a8", "W8A8", 0.02, "float32"),
    "int8_g64": (INT8_G64, dict(num_bits=8, group_size=64), 0.01, "float32"),
    "w4a16_g64": ("w4a16_g64", dict(num_bits=4, group_size=64), 0.15, "float32"),
    "w4a16_asym_g32": ("w4a16_asym_g32", dict(num_bits=4, group_size=32, symmetric=False), 0.15, "float32"),
    "nvfp4a16": ("nvfp4a16", "NVFP4A16", 0.15, "bfloat16"),
    "mxfp4a16": ("mxfp4a16", "MXFP4A16", 0.2, "bfloat16"),
    "mxfp8a16": ("mxfp8a16", "MXFP8A16", 0.04, "bfloat16"),
    "w4a16_g64_mse": ("w4a16_g64_mse", dict(num_bits=4, group_size=64, observer=MSE), 0.15, "float32"),
}


def tensors_of(path):
    found = {}
    for shard in sorted(glob.glob(path + "/*.safetensors")):
        with safe_open(shard, "pt") as f:
            found.update({name: f.get_tensor(name) for name in f.keys()})
    return found


def make_reference(model_dir, out, scheme):
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16)
    ignore = ["lm_head", "re:.*mlp.gate$"]
    if isinstance(scheme, dict):
        weights = QuantizationArgs(type="int", strategy="group", **scheme)
        groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
        modifier = QuantizationModifier(config_groups=groups, ignore=ignore)
    else:
        modifier = QuantizationModifier(targets="Linear", scheme=scheme, ignore=ignore)
    oneshot(model=model, recipe=modifier)
    model.save_pretrained(out, save_compressed=True)


def day0(binary, model, recipe, out, arithmetic):
    if "\n" in recipe:
        path = out + ".yaml"
        with open(path, "w") as f:
            f.write(recipe)
        recipe = path
    if not os.path.isdir(out):
        command = [binary, "quantize", model, "--recipe", recipe, "--out", out, "--arithmetic", arithmetic, "--quiet"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def raw(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def compare(ours, reference):
    """Differences of names, dtypes and shapes; equal bytes and all bytes."""
    problems = [f"only in {'day0' if n in ours else 'reference'}: {n}" for n in sorted(ours.keys() ^ reference.keys())]
    equal = total = 0
    for name in ours.keys() & reference.keys():
        a, b = ours[name], reference[name]
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            problems.append(f"{name}: {a.dtype} {tuple(a.shape)}, reference {b.dtype} {tuple(b.shape)}")
            continue
        equal += (raw(a) == raw(b)).sum().item()
        total += raw(a).numel()
    return problems, equal, total


def differing_codes(a, b):
    """Share of differing code bytes; packed bytes hold several codes, so this is a bound for those."""
    names = [n for n in a if n.endswith((".weight_packed", ".weight")) and a[n].dtype in (torch.int32, torch.uint8, torch.int8, torch.float8_e4m3fn)]
    differ = sum((raw(a[n]) != raw(b[n])).sum().item() for n in names)
    return differ / max(1, sum(raw(a[n]).numel() for n in names))


def worst_error(directory, tensors, source):
    """Largest relative error ||w - w'|| / ||w|| of a module, dequantized by compressed-tensors."""
    config = json.load(open(directory + "/config.json"))["quantization_config"]
    config = QuantizationConfig.model_validate(config)
    group = next(iter(config.config_groups.values()))
    compressor = BaseCompressor.get_value_from_registry(str(getattr(group.format or config.format, "value", group.format or config.format)))
    worst, modules = 0.0, 0
    for name in sorted(n for n in tensors if n.endswith(".weight_scale")):
        module = name[: -len(".weight_scale")]
        state = {n[len(module) + 1 :]: t for n, t in tensors.items() if n.startswith(module + ".weight")}
        dense = compressor.decompress(state, group)["weight"].float()
        weight = source[module + ".weight"].float()
        worst = max(worst, ((dense - weight).norm() / weight.norm()).item())
        modules += 1
    return worst, modules


def load(directory, dtype):
    from transformers import AutoModelForCausalLM

    try:
        model, info = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype), output_loading_info=True)
        info = info if isinstance(info, dict) else vars(info)
        with torch.no_grad():
            logits = model(torch.arange(1, 33).reshape(1, -1)).logits
        issues = {k: sorted(v)[:3] + [f"{len(v)} in all"] for k, v in info.items() if v}
        return f"loads, finite logits {bool(torch.isfinite(logits).all())}, issues {issues or 'none'}"
    except Exception as error:  # what the loader says is the result
        return f"FAILS: {type(error).__name__}: {str(error)[:160]}"


def make_moe(path):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, moe_intermediate_size=128, num_hidden_layers=2, num_experts=4,
        num_experts_per_tok=2, num_attention_heads=4, num_key_value_heads=2, head_dim=32, tie_word_embeddings=False,
    )
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(path)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("day0")
parser.add_argument("model")
parser.add_argument("out")
parser.add_argument("--moe", action="store_true")
parser.add_argument("--load", action="store_true")
parser.add_argument("--only", default=",".join(SCHEMES))
arguments = parser.parse_args()
os.makedirs(arguments.out, exist_ok=True)
if arguments.moe and not os.path.isdir(arguments.model):
    make_moe(arguments.model)
source = tensors_of(arguments.model)
bad = 0
for name in arguments.only.split(","):
    recipe, scheme, allowed, dtype = SCHEMES[name]
    reference_dir, ours_dir, f32_dir = (os.path.join(arguments.out, p + name) for p in ("ref-", "day0-", "f32-"))
    if not os.path.isdir(reference_dir):
        make_reference(arguments.model, reference_dir, scheme)
    day0(arguments.day0, arguments.model, recipe, ours_dir, "bf16")
    day0(arguments.day0, arguments.model, recipe, f32_dir, "f32")
    ours, reference, default = tensors_of(ours_dir), tensors_of(reference_dir), tensors_of(f32_dir)
    problems, equal, total = compare(ours, reference)
    worst, modules = worst_error(ours_dir, ours, source)
    print(
        f"{name}: {100 * equal / total:.4f} % of {total} bytes equal ({total - equal} differ), {len(problems)} differences of names, dtypes, shapes; "
        f"default arithmetic: {100 * differing_codes(default, ours):.3f} % of code bytes differ; "
        f"{modules} modules, worst relative error {worst:.4f} (allowed {allowed})",
        flush=True,
    )
    for problem in problems[:5]:
        print("   ", problem)
    if arguments.load:
        found = load(ours_dir, dtype)
        print("   ", dtype, found, flush=True)
        if not found.endswith("issues none"):
            print("    llm-compressor's export:", load(reference_dir, dtype), flush=True)
    bad += bool(problems) or worst > allowed or equal != total
sys.exit(bad > 0)
