"""One prompt through llama.cpp, logits of the last token only: python llama_prefill.py GGUF TOKENS THREADS.

Prints one JSON line: tokens per second, median of 9 passes.
"""
import json
import sys
import time

import llama_cpp

file, tokens, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = llama_cpp.Llama(file, n_ctx=tokens + 8, n_batch=tokens, n_ubatch=tokens, n_threads=threads, n_threads_batch=threads, verbose=False)
seconds = []
for _ in range(11):
    model.reset()
    start = time.perf_counter()
    model.eval(list(range(100, 100 + tokens)))
    seconds.append(time.perf_counter() - start)
print(json.dumps({"rates": {file.rsplit("/", 1)[-1]: tokens / sorted(seconds[2:])[4]}, "llama_cpp": llama_cpp.__version__, "threads": threads}))
