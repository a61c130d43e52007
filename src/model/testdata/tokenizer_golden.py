#!/usr/bin/env python3
"""tokenizer_golden.py NAME=DIR... > tokenizer_golden.json

Token ids, decoded texts and chat prompts of transformers (5.17) for the checkpoints that the tests use.
"""
import json
import sys

from transformers import AutoTokenizer

TEXTS = [
    "",
    " ",
    "Hello world! In 2024, it's 3.14 <|im_start|>user\n  naïve café 你好",
    "Once upon a time, there was a little girl.</s>",
    "<s>Once",
    "Question: What is it?\nAnswer:",
    "Question: What is it?\nAnswer: a thing\n\n\n  indented\ttab",
    "👩‍👩‍👧‍👦 é vs é \u200b\u00a0 end ",
]
CHAT = [{"role": "user", "content": " What is 2+2?\n"}, {"role": "assistant", "content": "4 <b>&"}]

out = {}
for name, path in (a.split("=", 1) for a in sys.argv[1:]):
    tok = AutoTokenizer.from_pretrained(path)
    texts = []
    for t in TEXTS:
        ids = tok.encode(t)
        texts.append({"text": t, "ids": ids, "plain": tok.encode(t, add_special_tokens=False), "decoded": tok.decode(ids), "token_texts": [tok.decode([i]) for i in ids]})
    out[name] = {"texts": texts}
    if tok.chat_template:
        out[name]["chat"] = tok.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
json.dump(out, sys.stdout, indent=1, ensure_ascii=False)
print()
