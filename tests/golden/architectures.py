#!/usr/bin/env python3
"""Golden log-probabilities of every architecture of the built-in engine: transformers in float32, eager attention.

    python tests/golden/architectures.py        # writes architectures.{json,safetensors} beside itself

Weights are not stored: both sides compute them from the tensor's name and index (`value` below and
`src/engine/tests/golden.rs`). A checkpoint is laid out as `save_pretrained` lays it out, loaded again from disk and run on
the first L of the hashed tokens for each length L; the rows at positions L/2 and L-1 are kept.

`config` is what the test writes to config.json; `saved` is how transformers 5 spells the same model. Made with
transformers 5.17.0, torch 2.10.0.
"""
import json
import os
import tempfile

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
LENGTHS = [1, 7, 33, 70]
VOCAB = 48


def mix(x):
    """lowbias32, C. Wellons, on uint32 arrays."""
    x = x.astype(np.uint32)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def hashed(name, count):
    """`count` 32-bit numbers that belong to a name (FNV-1a of it, then its multiples of the golden ratio, mixed)."""
    seed = 0x811C9DC5
    for byte in name.encode():
        seed = (seed ^ byte) * 0x01000193 & 0xFFFFFFFF
    with np.errstate(over="ignore"):
        return mix(np.uint32(seed) + np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B9))


def value(name, shape, unit_norms):
    """Norms around 1 (0 where transformers adds 1), routers and embeddings wide, other weights narrow."""
    uniform = (hashed(name, int(np.prod(shape))) >> np.uint32(8)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)
    center, size = 0.0, 0.3
    if "norm" in name:
        center, size = (1.0 if unit_norms else 0.0), 0.2
    elif "embed_tokens" in name or name.endswith(".gate.weight"):
        size = 1.0
    return (np.float32(center) + np.float32(size) * uniform).reshape(shape)


def base(class_name, model_type, **more):
    config = {
        "architectures": [class_name], "model_type": model_type, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCAB,
        "max_position_embeddings": 96, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": False, "torch_dtype": "float32",
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
    }
    config.update(more)
    return {key: value for key, value in config.items() if value != "absent"}


def llama(**more):
    return base("LlamaForCausalLM", "llama", **more)


def mistral(**more):
    return base("MistralForCausalLM", "mistral", **more)


def mixtral(**more):
    return base("MixtralForCausalLM", "mixtral", **{"num_local_experts": 4, "num_experts_per_tok": 2, "rope_theta": 1e6, **more})


def qwen2(**more):
    return base("Qwen2ForCausalLM", "qwen2", **more)


def qwen3(**more):
    return base("Qwen3ForCausalLM", "qwen3", **{"head_dim": 16, **more})


def moe(**more):
    return {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, **more}


def qwen2_moe(**more):
    return base("Qwen2MoeForCausalLM", "qwen2_moe", **moe(**{"shared_expert_intermediate_size": 40, **more}))


def qwen3_moe(**more):
    return base("Qwen3MoeForCausalLM", "qwen3_moe", **moe(**{"head_dim": 16, **more}))


GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh", "head_dim": 16, "query_pre_attn_scalar": 16,
         "sliding_window": 16, "tie_word_embeddings": "absent", "rms_norm_eps": 1e-6}


def gemma2(**more):
    return base("Gemma2ForCausalLM", "gemma2", **{**GEMMA, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0, **more})


def gemma3(**more):
    return base("Gemma3ForCausalLM", "gemma3_text", **{**GEMMA, "num_hidden_layers": 3, "sliding_window_pattern": 3, "rope_theta": 1e6,
                                                      "rope_local_base_freq": 10000.0, **more})


def phi3(**more):
    return base("Phi3ForCausalLM", "phi3", **{"original_max_position_embeddings": 32, "pad_token_id": 0, **more})


def olmo2(**more):
    return base("Olmo2ForCausalLM", "olmo2", **more)


def granite(**more):
    return base("GraniteForCausalLM", "granite", **{"embedding_multiplier": 12.0, "logits_scaling": 0.5, "residual_multiplier": 0.22,
                                                    "attention_multiplier": 0.25, **more})


def smollm3(**more):
    return base("SmolLM3ForCausalLM", "smollm3", **{"num_hidden_layers": 4, "pad_token_id": 0, **more})


def longrope(pairs, **more):
    return {"type": "longrope", "short_factor": [1.0 + 0.1 * i for i in range(pairs)],
            "long_factor": [1.0 + 0.9 * i for i in range(pairs)], **more}


LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}

CASES = {
    "llama": llama(num_key_value_heads="absent", tie_word_embeddings=True),
    "llama-v5": llama(head_dim=16, rope_theta="absent", rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
    "llama-biases": llama(attention_bias=True, mlp_bias=True, num_key_value_heads=1),
    "llama-llama3": llama(rope_scaling=LLAMA3, head_dim=16),
    "llama-linear": llama(rope_scaling={"type": "linear", "factor": 2.5}),
    "llama-dynamic": llama(rope_scaling={"type": "dynamic", "factor": 4.0}),
    "llama-yarn": llama(rope_scaling=YARN, head_dim=16),
    "llama-yarn-attention-factor": llama(rope_scaling={**YARN, "attention_factor": 0.7, "beta_fast": 4.0, "beta_slow": 0.5}, head_dim=16),
    "llama-yarn-mscale": llama(rope_scaling={**YARN, "mscale": 0.8, "mscale_all_dim": 1.3, "truncate": False}, head_dim=16),
    "llama-longrope": llama(rope_scaling=longrope(8, factor=3.0, original_max_position_embeddings=32), head_dim=16),
    "mistral": mistral(sliding_window=16),
    "mistral-tile": mistral(sliding_window=40, head_dim=16, tie_word_embeddings=True),
    "mistral-full": mistral(sliding_window=None),
    "mistral-default-window": mistral(),
    "mixtral": mixtral(sliding_window=None),
    "mixtral-window": mixtral(sliding_window=16, num_experts_per_tok=1),
    "mixtral-fused": mixtral(rope_theta="absent"),
    "qwen2": qwen2(use_sliding_window=False, sliding_window=16, max_window_layers=1, tie_word_embeddings=True),
    "qwen2-window": qwen2(use_sliding_window=True, sliding_window=16, max_window_layers=1),
    "qwen2-layer-types": qwen2(use_sliding_window=True, sliding_window=8, max_window_layers=0, num_hidden_layers=3,
                               layer_types=["full_attention", "sliding_attention", "full_attention"]),
    "qwen2-yarn": qwen2(rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}),
    "qwen2-moe": qwen2_moe(num_hidden_layers=4, decoder_sparse_step=2, norm_topk_prob=False, tie_word_embeddings=True),
    "qwen2-moe-dense-layers": qwen2_moe(num_hidden_layers=3, mlp_only_layers=[1], norm_topk_prob=True, qkv_bias=False),
    "qwen2-moe-window": qwen2_moe(num_hidden_layers=3, use_sliding_window=True, sliding_window=16, max_window_layers=2),
    "qwen2-moe-fused": qwen2_moe(),
    "qwen3": qwen3(use_sliding_window=False, tie_word_embeddings=True),
    "qwen3-biases": qwen3(attention_bias=True, use_sliding_window=True, sliding_window=16, max_window_layers=1),
    "qwen3-moe": qwen3_moe(norm_topk_prob=True, num_hidden_layers=3, mlp_only_layers=[0]),
    "qwen3-moe-window": qwen3_moe(norm_topk_prob=False, use_sliding_window=True, sliding_window=16, max_window_layers=1,
                                  attention_bias=True, decoder_sparse_step=2, head_dim="absent"),
    "qwen3-moe-fused": qwen3_moe(norm_topk_prob=True, tie_word_embeddings=True),
    "gemma2": gemma2(),
    "gemma2-plain": gemma2(final_logit_softcapping=None, attn_logit_softcapping=None, query_pre_attn_scalar=24, attention_bias=True,
                           tie_word_embeddings=False),
    "gemma2-caps": gemma2(final_logit_softcapping=5.0, attn_logit_softcapping=2.0, num_hidden_layers=3, sliding_window=40),
    "gemma3": gemma3(),
    "gemma3-linear": gemma3(rope_scaling={"rope_type": "linear", "factor": 8.0}, query_pre_attn_scalar=24),
    "gemma3-deep": gemma3(num_hidden_layers=7, sliding_window_pattern=6, rope_scaling={"rope_type": "linear", "factor": 2.0}),
    "gemma3-v5": gemma3(
        rope_theta="absent", rope_local_base_freq="absent", sliding_window_pattern="absent", tie_word_embeddings=False,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"], final_logit_softcapping=9.0,
        rope_parameters={"full_attention": {"rope_type": "yarn", "factor": 3.0, "rope_theta": 5e5, "original_max_position_embeddings": 32},
                         "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}),
    "phi3": phi3(sliding_window=16),
    "phi3-longrope": phi3(rope_scaling=longrope(4), sliding_window=None, num_key_value_heads="absent"),
    "phi3-partial": phi3(partial_rotary_factor=0.5, rope_scaling=longrope(2), tie_word_embeddings=True),
    "phi3-partial-default": phi3(partial_rotary_factor=0.5),
    "olmo2": olmo2(num_key_value_heads="absent"),
    "olmo2-gqa": olmo2(attention_bias=True, tie_word_embeddings=True, rope_scaling=YARN),
    "granite": granite(tie_word_embeddings=True),
    "granite-biases": granite(attention_bias=True, mlp_bias=True, logits_scaling=3.0, rope_scaling={"type": "linear", "factor": 2.0}),
    "smollm3": smollm3(tie_word_embeddings="absent", rope_theta="absent"),
    "smollm3-layers": smollm3(no_rope_layers=[0, 1, 0, 1], attention_bias=True, mlp_bias=True, rope_scaling=YARN),
    "smollm3-window": smollm3(no_rope_layer_interval=2, use_sliding_window=True, sliding_window=16),
}


def shapes(directory):
    with safe_open(os.path.join(directory, "model.safetensors"), "np") as file:
        return {name: list(file.get_slice(name).get_shape()) for name in sorted(file.keys())}


def write_config(directory, config):
    with open(os.path.join(directory, "config.json"), "w") as file:
        json.dump(config, file)


def run(name, config, tokens):
    with tempfile.TemporaryDirectory() as directory:
        write_config(directory, config)
        parsed = AutoConfig.from_pretrained(directory)
        model = AutoModelForCausalLM.from_config(parsed, attn_implementation="eager", dtype=torch.float32)
        if name.endswith("-fused"):
            tensors = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
            if parsed.tie_word_embeddings:
                del tensors["lm_head.weight"]
            parsed.save_pretrained(directory)
        else:
            model.save_pretrained(directory)
            tensors = shapes(directory)
        saved = json.load(open(os.path.join(directory, "config.json")))
        unit_norms = not config["model_type"].startswith("gemma")
        data = {key: value(key, shape, unit_norms) for key, shape in tensors.items()}
        save_file(data, os.path.join(directory, "model.safetensors"), metadata={"format": "pt"})
        write_config(directory, config)
        model, info = AutoModelForCausalLM.from_pretrained(
            directory, attn_implementation="eager", dtype=torch.float32, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), (name, info)
        model.eval()
        rows = []
        for length in LENGTHS:
            # A model of its own for each length: dynamic rope types keep state.
            model, _ = AutoModelForCausalLM.from_pretrained(
                directory, attn_implementation="eager", dtype=torch.float32, output_loading_info=True)
            with torch.no_grad():
                logits = model.eval()(torch.tensor([tokens[:length]]), use_cache=False).logits[0].double()
            rows += [torch.log_softmax(logits, -1)[[length // 2, length - 1]].float().numpy()]
    for key in ("_name_or_path", "transformers_version"):
        saved.pop(key, None)
    return {"name": name, "config": config, "saved": saved, "tensors": tensors}, np.concatenate(rows)


def main():
    tokens = [int(x) for x in hashed("tokens", max(LENGTHS) + 1) % np.uint32(VOCAB)]
    cases, results = [], {}
    for name, config in CASES.items():
        case, results[name] = run(name, config, tokens)
        cases.append(case)
        print(f"{name:28} spread {results[name].std():.3f}")
    golden = {"lengths": LENGTHS, "vocab_size": VOCAB, "tokens": tokens[:4]}
    lines = ",\n  ".join(json.dumps(case) for case in cases)
    with open(os.path.join(HERE, "architectures.json"), "w") as file:
        file.write(json.dumps(golden)[:-1] + f', "cases": [\n  {lines}\n]}}\n')
    save_file(results, os.path.join(HERE, "architectures.safetensors"))


if __name__ == "__main__":
    main()
