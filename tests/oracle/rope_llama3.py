#!/usr/bin/env python3
"""Golden values of src/model/config.rs: llama3 rope frequencies by transformers itself."""
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

rope = dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=8192, rope_theta=500000.0)
config = LlamaConfig(hidden_size=64, num_attention_heads=4, head_dim=16, rope_parameters=rope)
print([f"{x:.9e}" for x in ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0].tolist()])
