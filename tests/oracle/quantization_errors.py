"""Golden values of the error report (src/scan/errors.rs), computed by numpy from files that day0 wrote.

usage: quantization_errors.py SOURCE_DIR QUANTIZED_DIR... > quantization_errors.json   (directories named by recipe)

Knows nothing of day0: weights are rebuilt in float32 from codes and scales as compressed-tensors defines them, and sums
are taken in float64. Only layer 0 is reported.
"""

import json
import sys

import numpy as np
from safetensors import safe_open

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)


def tensors(directory):
    import torch  # bf16 and float8 are known to torch only

    out, dtypes = {}, {}
    with safe_open(f"{directory}/model.safetensors", "pt") as f:
        for name in f.keys():
            t = f.get_tensor(name)
            dtypes[name] = t.dtype
            out[name] = t.to(torch.float32).numpy() if t.is_floating_point() else t.numpy()
    return out, dtypes


def subnormal(value, dtype):
    import torch

    if dtype == torch.uint8:
        return value == 0
    return value < float(torch.finfo(dtype).smallest_normal)


def dequantized(module, q, dtypes):
    """The weight, group sizes, effective scales, half of the widest step, and which stored scales underflowed."""
    get = lambda suffix: q.get(f"{module}.{suffix}")
    scale = get("weight_scale")
    flags = subnormal(scale, dtypes[f"{module}.weight_scale"])
    if (codes := get("weight_packed")) is None:
        codes = get("weight")
        half = 16.0 if "float8" in str(dtypes[f"{module}.weight"]) else 0.5
        columns = codes.shape[1] // scale.shape[1]
        return codes.astype(np.float32) * np.repeat(scale, columns, 1), columns, scale, half, flags
    if codes.dtype == np.uint8:
        nibbles = np.stack([codes & 15, codes >> 4], -1).reshape(codes.shape[0], -1)
        values = E2M1[nibbles & 7] * np.where(nibbles & 8, -1, 1).astype(np.float32)
        if (global_scale := get("weight_global_scale")) is not None:
            effective, columns = scale / global_scale.astype(np.float32), 16
        else:
            effective, columns = np.exp2(scale.astype(np.float32) - 127), 32
        return values * np.repeat(effective, columns, 1), columns, effective, 1.0, flags
    n, k = get("weight_shape")
    words = codes.view(np.uint32)
    bits = 32 * words.shape[1] // k
    stream = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")[:, : k * bits]
    weights = (1 << np.arange(bits)).astype(np.int64)
    values = (stream.reshape(n, k, bits) * weights).sum(-1) - (1 << (bits - 1))
    columns = k // scale.shape[1]
    return values.astype(np.float32) * np.repeat(scale, columns, 1), columns, scale, 0.5, flags


def report_of(quantized, source):
    q, dtypes = tensors(quantized)
    before, _ = tensors(source)
    modules = sorted({n.rsplit(".", 1)[0] for n in q if n.endswith(".weight_scale") and ".layers.0." in n})
    report = []
    for module in modules:
        w = before[f"{module}.weight"]
        hat, columns, scales, half, flags = dequantized(module, q, dtypes)
        error = w - hat
        groups = lambda x: np.abs(x).reshape(w.shape[0], -1, columns).max(-1)
        has_values = groups(w) > 0
        # A local scale that rounds to zero is replaced by 0.125, and only that zeroes a group.
        is_nvfp4 = f"{module}.weight_global_scale" in q
        signal, noise = (w.astype(np.float64) ** 2).sum(), (error.astype(np.float64) ** 2).sum()
        report.append({
            "module": module,
            "mse": noise / w.size,
            "sqnr_db": 10 * np.log10(signal / noise) if signal > 0 and noise > 0 else None,
            "max_error": float(np.abs(error).max()),
            "groups": int(has_values.size),
            "saturated_groups": int((groups(error) > half * scales * (1 + 1e-5)).sum()),
            "zeroed_groups": int((has_values & (groups(hat) == 0)).sum()),
            "underflowed_scales": int((has_values & (flags | (is_nvfp4 & (groups(hat) == 0)))).sum()),
        })
    return report


def main(source, *quantized):
    reports = {directory.rstrip("/").rsplit("/", 1)[-1]: report_of(directory, source) for directory in quantized}
    json.dump(reports, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
