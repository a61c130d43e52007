#!/usr/bin/env python3
"""codecs.py > codecs.json

Reference values for the codecs of src/ops: SHA-256 of what torch and compressed-tensors give for every bf16 input.
Made with torch 2.10.0 and compressed-tensors 0.19.0 on CPU.
"""
import hashlib
import json

import torch
from compressed_tensors.quantization.quant_args import FP4_E2M1_DATA
from compressed_tensors.quantization.utils.mxfp_utils import generate_mx_scales
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8


def sha256(tensor):
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


bits = torch.arange(65536, dtype=torch.int32).to(torch.uint16)
x = bits.view(torch.bfloat16).float()
finite = x[torch.isfinite(x)]  # 65,280 values in the order of their bits
positive = finite[:0x7F60].contiguous()  # below 1.75 * 2^127, where compressed-tensors' exponent overflows to 255, NaN

e4m3 = torch.clamp(x, -448.0, 448.0).to(torch.float8_e4m3fn).view(torch.uint8)
e4m3 = torch.where(torch.isnan(x), 0x7F + (bits.to(torch.int32) >> 15) * 0x80, e4m3.int()).to(torch.uint8)
e4m3_values = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(torch.float8_e4m3fn).float()
e4m3_finite = e4m3_values[torch.isfinite(e4m3_values)]

# Two equal neighbours a byte: the low nibble is the code.
pairs = torch.clamp(finite, -6.0, 6.0).repeat_interleave(2).reshape(-1, 2).contiguous()
e2m1 = pack_fp4_to_uint8(FP4_E2M1_DATA.cast_to_fp4(pairs)).flatten() & 15

# The shared exponent of a group whose largest magnitude is x, as calculate_qparams rounds it to uint8.
mxfp4 = torch.round(torch.clamp(generate_mx_scales(positive.to(torch.bfloat16), num_bits=4).float(), 0, 255)).to(torch.uint8)

print(json.dumps({
    "e4m3_of_all_bf16": sha256(e4m3),
    "e4m3_values_without_nan": sha256(e4m3_finite),
    "e2m1_of_finite_bf16": sha256(e2m1),
    "mxfp4_exponent_of_positive_bf16": sha256(mxfp4),
}, indent=2))
