#!/usr/bin/env python3
"""weights.py > weights.json

Reference checkpoints of one small weight under every scheme, made by compressed-tensors' own observers and compressors on
CPU (its eager path: quotients rounded to the weight's type). Values: the weight's bytes in hexadecimal, and
SHA-256 of each tensor's bytes and of the decompressed weight. Made with torch 2.10.0, compressed-tensors 0.19.0, llmcompressor 0.14.0.1.
"""
import hashlib
import json
import os

os.environ["LLM_COMPRESSOR_LOG_DISABLED"] = "true"
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.mx_utils import decompress_mx_scale
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from llmcompressor.observers import Observer
from llmcompressor.observers.helpers import flatten_for_calibration


def raw(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def searched(w, low_high_shape, args):
    """Ranges of llm-compressor's memoryless_mse observer, in the shape of the scales."""
    observer = Observer.load_from_registry("memoryless_mse", base_name="weight", args=args)
    observer.update_statistics_from_observed(flatten_for_calibration(w, "weight", args))
    return observer.min_vals.reshape(low_high_shape), observer.max_vals.reshape(low_high_shape)


def block_minmax(w, rows, columns):
    n, k = w.shape
    padded = torch.zeros(-(-n // rows) * rows, -(-k // columns) * columns, dtype=w.dtype)
    padded[:n, :k] = w
    blocks = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns).transpose(1, 2)
    return blocks.amin((2, 3)), blocks.amax((2, 3))


def quantize(w, fmt, mse=False, **arguments):
    args = QuantizationArgs(**arguments)
    inputs = None
    if fmt == "int-quantized":
        inputs = QuantizationArgs(num_bits=8, type="int", strategy="token", dynamic=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, input_activations=inputs)
    strategy = str(getattr(args.strategy, "value", args.strategy))
    n, k = w.shape
    extent = {"tensor": (n, k), "channel": (1, k), "block": tuple(args.block_structure or ())}.get(
        strategy, (1, args.group_size)
    )
    low, high = block_minmax(w, *extent)
    if mse:
        low, high = searched(w, low.shape, args)
    state = {"weight": w}
    gparam = None
    if strategy == "tensor_group":
        gparam = generate_gparam(low.amin(), high.amax())
        state["weight_global_scale"] = gparam
    if strategy == "tensor":
        low, high = low.reshape(1), high.reshape(1)
    scale, zero_point = calculate_qparams(low, high, args, global_scale=gparam)
    state["weight_scale"] = scale
    state["weight_zero_point"] = zero_point
    compressed = BaseCompressor.get_value_from_registry(fmt).compress(state, scheme)
    digests = {name: hashlib.sha256(raw(t)).hexdigest() for name, t in sorted(compressed.items()) if t is not None}
    digests["dense_f32"] = hashlib.sha256(raw(decompress(fmt, dict(compressed), scheme))).hexdigest()
    return digests


def decompress(fmt, state, scheme):
    """The package's own decompression, with everything it would do in bf16 done in f32."""
    if fmt in ("nvfp4-pack-quantized", "mxfp4-pack-quantized"):
        packed, scale = state["weight_packed"], state["weight_scale"]
        if fmt.startswith("mx"):
            scale = decompress_mx_scale(scale)
        codes = unpack_fp4_from_uint8(packed, packed.shape[0], packed.shape[1] * 2, dtype=torch.float32)
        return dequantize(
            codes, scale.float(), args=scheme.weights, global_scale=state.get("weight_global_scale"), dtype=torch.float32
        )
    if fmt.startswith("mxfp8"):
        return dequantize(
            state["weight"], decompress_mx_scale(state["weight_scale"]).float(), args=scheme.weights, dtype=torch.float32
        )
    state["weight_scale"] = state["weight_scale"].float()
    return BaseCompressor.get_value_from_registry(fmt).decompress(state, scheme)["weight"]


generator = torch.Generator().manual_seed(0)
cases = {}
for dtype in (torch.bfloat16, torch.float32):
    w = (torch.randn(40, 96, generator=generator) * 0.05)
    w[3] = 0  # a row of zeros
    w[5, 32:64] = 0  # a group of zeros
    w[7, :16] *= 1e-4  # a group whose NVFP4 scale underflows
    w = w.to(dtype)
    name = str(dtype).replace("torch.", "")
    result = {"weight": raw(w).hex()}
    result["fp8_channel"] = quantize(w, "float-quantized", num_bits=8, type="float", strategy="channel")
    result["fp8_tensor"] = quantize(w, "float-quantized", num_bits=8, type="float", strategy="tensor")
    result["fp8_block"] = quantize(w, "float-quantized", num_bits=8, type="float", strategy="block", block_structure=[32, 64])
    result["int8_channel"] = quantize(w, "int-quantized", num_bits=8, type="int", strategy="channel")
    for bits in range(2, 9):
        result[f"int{bits}_g32"] = quantize(w, "pack-quantized", num_bits=bits, type="int", strategy="group", group_size=32)
        result[f"int{bits}_g32_asym"] = quantize(
            w, "pack-quantized", num_bits=bits, type="int", strategy="group", group_size=32, symmetric=False
        )
    result["int4_channel"] = quantize(w, "pack-quantized", num_bits=4, type="int", strategy="channel")
    result["nvfp4"] = quantize(
        w, "nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16, scale_dtype="torch.float8_e4m3fn"
    )
    result["mxfp4"] = quantize(
        w, "mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32, scale_dtype="torch.uint8"
    )
    result["mxfp8"] = quantize(
        w, "mxfp8-quantized", num_bits=8, type="float", strategy="group", group_size=32, scale_dtype="torch.uint8"
    )
    for scheme, fmt, arguments in [
        ("int4_g32", "pack-quantized", dict(num_bits=4, type="int", strategy="group", group_size=32)),
        ("int4_g32_asym", "pack-quantized", dict(num_bits=4, type="int", strategy="group", group_size=32, symmetric=False)),
        ("int3_g32", "pack-quantized", dict(num_bits=3, type="int", strategy="group", group_size=32)),
        ("fp8_channel", "float-quantized", dict(num_bits=8, type="float", strategy="channel")),
        ("fp8_block", "float-quantized", dict(num_bits=8, type="float", strategy="block", block_structure=[32, 64])),
        ("nvfp4", "nvfp4-pack-quantized", dict(num_bits=4, type="float", strategy="tensor_group", group_size=16, scale_dtype="torch.float8_e4m3fn")),
        ("mxfp4", "mxfp4-pack-quantized", dict(num_bits=4, type="float", strategy="group", group_size=32, scale_dtype="torch.uint8")),
    ]:
        result[scheme + "_mse"] = quantize(w, fmt, mse=True, **arguments)
    cases[name] = result
print(json.dumps(cases, indent=0))
