#!/usr/bin/env python3
"""sources.py > sources.json

Quantized weights as DeepSeek-style and ModelOpt checkpoints store them, and their dense bf16 values by
compressed-tensors' own converters (`FP8BlockDequantizer`; `ModelOptNvfp4Converter` followed by the NVFP4 compressor's
decompression). The second scale is a power of two, so that multiplying by it and dividing by its reciprocal are the same.
FP8 by tensor and by row: the product in f32, as torch computes it. Made with torch 2.10.0, compressed-tensors 0.19.0.
"""
import hashlib
import json

import torch
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.entrypoints.convert.converters.fp8block_dequantizer import FP8BlockDequantizer
from compressed_tensors.entrypoints.convert.converters.modelopt_nvfp4 import ModelOptNvfp4Converter
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize

torch.manual_seed(5)
NAMES = {torch.float8_e4m3fn: "F8_E4M3", torch.float32: "F32", torch.bfloat16: "BF16", torch.uint8: "U8"}


def raw(t):
    return t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def tensor(t):
    return {"dtype": NAMES[t.dtype], "shape": list(t.shape), "hex": raw(t).hex()}


def case(tensors, dense):
    dense = dense.to(torch.bfloat16)
    digest = hashlib.sha256(raw(dense)).hexdigest()
    return {"tensors": {k: tensor(v) for k, v in tensors.items()}, "shape": list(dense.shape), "dense_bf16": digest}


def fp8(n, k):
    return (torch.randn(n, k) * 60).clamp(-448, 448).to(torch.float8_e4m3fn)


out = {}
w, s = fp8(40, 48), torch.rand(3, 2) * 0.01 + 1e-4
block = FP8BlockDequantizer(targets=["m"], weight_block_size=(16, 32))
dense = block.process({"m.weight": w.clone(), "m.weight_scale_inv": s.clone()})["m.weight"]
out["block_fp8"] = case({"weight": w, "weight_scale_inv": s}, dense)
s = s.to(torch.bfloat16)
dense = block.process({"m.weight": w.clone(), "m.weight_scale_inv": s.clone()})["m.weight"]
out["block_fp8_bf16_scales"] = case({"weight": w, "weight_scale_inv": s}, dense)

s = torch.tensor(0.00317)
inputs = torch.tensor(0.02)
out["modelopt_FP8"] = case({"weight": w, "weight_scale": s, "input_scale": inputs}, w.float() * s)
s = torch.rand(40) * 0.01
out["modelopt_FP8_PER_CHANNEL_PER_TOKEN"] = case({"weight": w, "weight_scale": s}, w.float() * s[:, None])
wide, s = fp8(130, 160), torch.rand(2, 1, 2, 1) * 0.01
tiled = s.reshape(2, 2).repeat_interleave(128, 0)[:130].repeat_interleave(128, 1)[:, :160]
out["modelopt_fp8_pb_wo"] = case({"weight": wide, "weight_scale": s}, wide.float() * tiled)
e = torch.randint(110, 130, (40, 2), dtype=torch.uint8)
w64 = fp8(40, 64)
factors = torch.pow(2.0, e.float() - 127).repeat_interleave(32, 1)
out["modelopt_MXFP8"] = case({"weight": w64, "weight_scale": e}, w64.float() * factors)

codes = torch.randint(0, 256, (12, 32), dtype=torch.uint8)
local = (torch.rand(12, 4) * 400).to(torch.float8_e4m3fn)
second = torch.tensor(2.0**-12)
tensors = {"weight": codes, "weight_scale": local, "weight_scale_2": second, "input_scale": inputs}
converted = ModelOptNvfp4Converter(targets=["m"]).process({f"m.{k}": v.clone() for k, v in tensors.items()})
args = QuantizationArgs(num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True)
dense = dequantize(
    x_q=unpack_fp4_from_uint8(converted["m.weight_packed"], 12, 64, dtype=torch.float32),
    scale=converted["m.weight_scale"].float(),
    args=args,
    global_scale=converted["m.weight_global_scale"],
)
out["modelopt_NVFP4"] = case(tensors, dense)
print(json.dumps(out))
