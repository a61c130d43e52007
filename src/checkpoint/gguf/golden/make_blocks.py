#!/usr/bin/env python3
"""make_blocks.py > blocks.json: random blocks of every type that day0 reads, and their values by gguf-py (0.19)."""
import json

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T, dequantize

rng = np.random.default_rng(2026)
# Byte positions of the f16 scales in a block (ggml-common.h): random bytes there could be NaN or infinite.
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
          "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
out = {}
for name in ["F32", "F16", "BF16", *SCALES]:
    kind = T[name]
    elements, size = GGML_QUANT_SIZES[kind]
    if name in SCALES:
        n = max(1, 64 // elements)
        block = rng.integers(0, 256, (n, size), dtype=np.uint8)
        for at in SCALES[name]:
            block[:, at:at + 2] = rng.normal(0, 0.05, n).astype(np.float16).view(np.uint8).reshape(n, 2)
        data = block.reshape(-1)
    else:
        x = rng.normal(0, 1, 16).astype(np.float32)
        data = {"F32": x, "F16": x.astype(np.float16), "BF16": (x.view(np.uint32) >> 16).astype(np.uint16)}[name].view(np.uint8)
    if name == "F16":
        values = data.view(np.float16).astype(np.float32)
    elif name == "F32":
        values = data.view(np.float32)
    else:
        values = dequantize(data, kind).astype(np.float32)
    out[name] = {"bytes": data.tobytes().hex(), "f32": np.ascontiguousarray(values).tobytes().hex()}
print(json.dumps(out, indent=1))
