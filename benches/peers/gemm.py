"""x @ W.T in torch (oneDNN, MKL) for comparison: python gemm.py THREADS MxKxN...

Prints one JSON line: for each shape and type the rate in GFLOP/s (GOP/s for int8), median of 30 samples.
ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 keeps oneDNN from matrix tiles.
"""
import json
import os
import sys
import time

import torch

threads, shapes = int(sys.argv[1]), sys.argv[2:]
torch.set_num_threads(threads)


def median_seconds(f):
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < 0.15:
        f()
        calls += 1
    calls = max(1, int(calls / 0.15 * 0.01))
    samples = []
    for _ in range(30):
        start = time.perf_counter()
        for _ in range(calls):
            f()
        samples.append((time.perf_counter() - start) / calls)
    return sorted(samples)[15]


rates = {}
with torch.inference_mode():
    for shape in shapes:
        m, k, n = map(int, shape.split("x"))
        x, w = torch.randn(m, k), torch.randn(n, k)
        operations = 2 * m * k * n / 1e9
        for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
            linear = torch.nn.Linear(k, n, bias=False, dtype=dtype)
            linear.weight.copy_(w.to(dtype))
            of_type = x.to(dtype)
            rates[f"{shape} {name}"] = operations / median_seconds(lambda: linear(of_type))
        # _int_mm wants more than 16 rows.
        if m > 16:
            x8, w8 = (x * 30).clamp(-127, 127).to(torch.int8), (w * 30).clamp(-127, 127).to(torch.int8)
            transposed = w8.t()
            rates[f"{shape} int8"] = operations / median_seconds(lambda: torch._int_mm(x8, transposed))
isa = os.environ.get("ONEDNN_MAX_CPU_ISA", "default")
print(json.dumps({"rates": rates, "torch": torch.__version__, "isa": isa, "threads": threads}))
