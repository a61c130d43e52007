#!/usr/bin/env python3
"""parquet_rows.py OUT_DIR: Parquet files as the `datasets` library and others write them, and the rows in them.

Written with pyarrow 26.0.1 and datasets 5.2.0. rows.parquet: snappy, version 1 data pages, two row groups, by
`datasets`; rows_zstd.parquet: zstd, version 2 data pages, no dictionaries, by pyarrow; rows.jsonl: what both hold.
"""
import json
import os
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = [
    {
        "id": f"Q_{i}", "question": q, "choices": {"text": texts, "label": list("ABCDE")[: len(texts)]},
        "answerKey": key, "answer": i % 3, "options": [{"text": t, "true": t == texts[0]} for t in texts],
        "score": i / 4 if i else None, "flag": i % 2 == 0, "nested": [[i], []],
    }
    for i, (q, texts, key) in enumerate([
        ("Which is a plant?", ["rock", "moss", "wolf"], "B"),
        ("Wo wächst 樹?", ["im Wald", "„im Meer“"], "A"),
        ("A \"quoted\"\nquestion", ["1", "2", "3", "4", "5"], "E"),
        ("", ["x", ""], "A"),
    ])
]
out = sys.argv[1]
data = datasets.Dataset.from_list(ROWS)
data.to_parquet(os.path.join(out, "rows.parquet"), batch_size=3)
pq.write_table(pa.Table.from_pylist(ROWS), os.path.join(out, "rows_zstd.parquet"), compression="zstd", data_page_version="2.0", use_dictionary=False)
assert pq.read_table(os.path.join(out, "rows.parquet")).to_pylist() == ROWS
assert pq.read_table(os.path.join(out, "rows_zstd.parquet")).to_pylist() == ROWS
with open(os.path.join(out, "rows.jsonl"), "w", encoding="utf-8") as f:
    for row in pq.read_table(os.path.join(out, "rows.parquet")).to_pylist():
        f.write(json.dumps(row, ensure_ascii=False) + "\n")
print({c.compression for g in range(2) for c in [pq.ParquetFile(os.path.join(out, "rows.parquet")).metadata.row_group(g).column(0)]})
