#!/usr/bin/env python3
"""Golden values of src/ops/activation_quant.rs: dynamic per-token quantization by compressed-tensors itself."""
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
