#!/usr/bin/env python3
"""What llama.cpp's converter calls the tensors and hyperparameters of the golden checkpoints.

    python tests/golden/gguf_names.py           # reads architectures.json, writes gguf.json beside it

Tensor names come from gguf-py's own map, keys from its writer, called as llama.cpp's `conversion/*.py` calls it for each
architecture. Only what that converter can express is listed. Made with gguf 0.19.0.
"""
import json
import math
import os

import gguf

HERE = os.path.dirname(os.path.abspath(__file__))
ARCH = gguf.MODEL_ARCH
CASES = {
    "llama": ARCH.LLAMA, "llama-v5": ARCH.LLAMA, "llama-biases": ARCH.LLAMA, "llama-linear": ARCH.LLAMA, "llama-yarn": ARCH.LLAMA,
    "mistral-full": ARCH.LLAMA, "mixtral": ARCH.LLAMA, "qwen2": ARCH.QWEN2, "qwen2-yarn": ARCH.QWEN2, "qwen2-moe-fused": ARCH.QWEN2MOE,
    "qwen3": ARCH.QWEN3, "qwen3-moe-fused": ARCH.QWEN3MOE, "gemma2": ARCH.GEMMA2, "gemma3-deep": ARCH.GEMMA3, "phi3": ARCH.PHI3,
    "phi3-longrope": ARCH.PHI3, "phi3-partial": ARCH.PHI3, "olmo2": ARCH.OLMO2, "granite": ARCH.GRANITE, "granite-biases": ARCH.GRANITE,
    "smollm3": ARCH.SMOLLM3,
}


def rope(writer, config, arch):
    """conversion/base.py, TextModel.set_gguf_parameters; conversion/phi.py."""
    parameters = config["rope_parameters"]
    main = parameters.get("full_attention", parameters)
    writer.add_rope_freq_base(main["rope_theta"])
    if "sliding_attention" in parameters:
        writer.add_rope_freq_base_swa(parameters["sliding_attention"]["rope_theta"])
    kind = main["rope_type"]
    if arch == ARCH.PHI3:
        original = config["original_max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_dimension_count(int(main.get("partial_rotary_factor", 1.0) * config["hidden_size"]) // config["num_attention_heads"])
        if kind == "longrope":
            scale = config["max_position_embeddings"] / original
            writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))
    elif kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(main["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(main["factor"])
        writer.add_rope_scaling_orig_ctx_len(main["original_max_position_embeddings"])


def keys(config, arch):
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[arch])
    heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope(writer, config, arch)
    head_dim = config.get("head_dim")
    if head_dim and arch not in (ARCH.GRANITE, ARCH.PHI3):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if arch in (ARCH.LLAMA, ARCH.GRANITE, ARCH.SMOLLM3):
        writer.add_vocab_size(config["vocab_size"])
        writer.add_rope_dimension_count(head_dim or config["hidden_size"] // heads)
    experts = config.get("num_local_experts", config.get("num_experts"))
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])
    if "moe_intermediate_size" in config:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if "shared_expert_intermediate_size" in config:
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    if arch == ARCH.PHI3:
        writer.add_sliding_window(config["sliding_window"] or 0)
    if arch in (ARCH.GEMMA2, ARCH.GEMMA3):
        writer.add_sliding_window(config["sliding_window"])
    if arch == ARCH.GEMMA2:
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if arch == ARCH.GRANITE:
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
    return {key: value.value for key, value in writer.kv_data[0].items()}


def names(tensors, arch, layers):
    """Fused experts are split and single ones stacked before they are named (conversion/qwen.py, llama.py)."""
    tensor_map = gguf.get_tensor_name_map(arch, layers)
    found = {}
    for name in tensors:
        asked = name
        if ".block_sparse_moe.experts." in name:
            head, tail = name.split(".block_sparse_moe.experts.")
            asked = f"{head.removeprefix('model.')}.feed_forward.experts.{tail.split('.', 1)[1]}"
        parts = [asked]
        if name.endswith(".experts.gate_up_proj"):
            parts = [asked.replace("gate_up_proj", part) + ".weight" for part in ("gate_proj", "up_proj")]
        elif name.endswith(".experts.down_proj"):
            parts = [asked + ".weight"]
        mapped = [tensor_map.get_name(part, try_suffixes=(".weight", ".bias")) for part in parts]
        assert all(mapped), name
        found[name] = mapped if len(mapped) > 1 else mapped[0]
    return found


def main():
    cases = {case["name"]: case for case in json.load(open(os.path.join(HERE, "architectures.json")))["cases"]}
    out = {}
    for name, arch in CASES.items():
        case = cases[name]
        out[name] = {"keys": keys(case["saved"], arch), "names": names(case["tensors"], arch, case["saved"]["num_hidden_layers"])}
    lines = ",\n  ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in out.items())
    with open(os.path.join(HERE, "gguf.json"), "w") as file:
        file.write("{\n  " + lines + "\n}\n")


if __name__ == "__main__":
    main()
