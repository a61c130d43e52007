#!/usr/bin/env python3
"""Golden values of src/ops/activation_quant.rs: activations quantized by compressed-tensors itself."""
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

ROWS = {
    "int": [-1.0, 0.25, 0.5, 2.0, -0.007, 1.999, 0.0, 0.015],
    "float": [448.0, -300.0, 17.0, 19.0, 0.3, 0.001, 0.0009765625, 0.0029296875, -0.014],
}
for kind, row in ROWS.items():
    args = QuantizationArgs(num_bits=8, type=kind, strategy="token", dynamic=True, symmetric=True)
    for values in (row, [0.0] * 3):
        x = torch.tensor(values).reshape(1, 1, -1)
        scale, zero_point = compute_dynamic_scales_and_zp(x, args, torch.nn.Module())
        print(kind, scale.item(), quantize(x, scale, zero_point, args).flatten().tolist())

# NVFP4 inputs (dynamic local, global scale 100) and FP8 inputs with the static scale 0.01.
x = torch.tensor([(i - 11.0) * (0.37 if i < 16 else 0.011) for i in range(32)], dtype=torch.float32).reshape(1, 1, -1)
args = QuantizationArgs(
    num_bits=4, type="float", strategy="tensor_group", group_size=16, dynamic="local", scale_dtype=torch.float8_e4m3fn
)
global_scale = torch.tensor([100.0])
scale, zero_point = compute_dynamic_scales_and_zp(x, args, torch.nn.Module(), global_scale=global_scale)
codes = quantize(x, scale, zero_point, args, global_scale=global_scale)
print("nvfp4", (scale.float() / global_scale).flatten().tolist(), codes.flatten().tolist())
args = QuantizationArgs(num_bits=8, type="float", strategy="tensor")
print("static float", quantize(x[..., :9], torch.tensor([0.01]), None, args).flatten().tolist())

# MXFP8 and MXFP4 inputs: two groups of numbers, one of zeros, one of subnormal numbers.
x = [(i - 21.0) * (0.37 if i < 32 else 0.00137) for i in range(64)] + [0.0] * 32 + [2.0**-129] * 32
x = torch.tensor(x, dtype=torch.float32).reshape(1, 1, -1)
for bits in (8, 4):
    args = QuantizationArgs(
        num_bits=bits, type="float", strategy="group", group_size=32, dynamic=True, scale_dtype=torch.uint8, zp_dtype=torch.uint8
    )
    scale, zero_point = compute_dynamic_scales_and_zp(x, args, torch.nn.Module())
    print(f"mxfp{bits}", scale.flatten().tolist(), quantize(x, scale, zero_point, args).flatten().tolist())
