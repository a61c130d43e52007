"""llm-compressor's streaming quantizer on the CPU, for comparison: python model_free_ptq.py SOURCE OUT SCHEME.

Prints the seconds of the call (imports not counted) and the peak resident memory in bytes as one JSON line.
"""
import json
import resource
import sys
import time

import llmcompressor
import torch
from llmcompressor import model_free_ptq

source, out, scheme = sys.argv[1:4]
start = time.perf_counter()
model_free_ptq(
    model_stub=source,
    save_directory=out,
    scheme=scheme,
    ignore=["lm_head", "model.embed_tokens"],
    max_workers=1,
    device="cpu",
)
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
versions = {"llmcompressor": llmcompressor.__version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
print(json.dumps({"seconds": seconds, "peak_memory_bytes": peak, "versions": versions}))
