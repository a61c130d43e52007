#!/usr/bin/env python3
"""densify_nvfp4_f32.py SRC DST PARENT

The weights of the NVFP4A16 checkpoint SRC as plain f32 tensors, e2m1 · (e4m3 / global) in f32, with PARENT's config and
tokenizer. transformers runs such checkpoints in bf16 only, which rounds these products; the engine does not.
"""
import json
import os
import shutil
import sys

import torch
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from safetensors.torch import load_file, save_file

src, dst, parent = sys.argv[1:4]
tensors = load_file(os.path.join(src, "model.safetensors"))
dense = {}
for name, tensor in tensors.items():
    if name.endswith(".weight_packed"):
        module = name.removesuffix(".weight_packed")
        rows, columns = tensor.shape[0], tensor.shape[1] * 2
        codes = unpack_fp4_from_uint8(tensor, rows, columns, dtype=torch.float32)
        scale = tensors[f"{module}.weight_scale"].float() / tensors[f"{module}.weight_global_scale"].float()
        dense[f"{module}.weight"] = codes * scale.repeat_interleave(16, dim=1)
    elif not name.endswith((".weight_scale", ".weight_global_scale")):
        dense[name] = tensor.float()
os.makedirs(dst, exist_ok=True)
save_file(dense, os.path.join(dst, "model.safetensors"), metadata={"format": "pt"})
config = json.load(open(os.path.join(parent, "config.json")))
json.dump({**config, "torch_dtype": "float32"}, open(os.path.join(dst, "config.json"), "w"), indent=2)
for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(os.path.join(parent, name), dst)
