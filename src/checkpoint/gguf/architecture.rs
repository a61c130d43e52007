//! The architectures of llama.cpp that can be imported, as data: names of tensors on both sides and what its converter
//! does to them. Sources: llama.cpp `conversion/*.py` (b9xxx, 2026), gguf-py 0.19 `tensor_mapping.py`, and for what the
//! files do not say, `src/models/*.cpp`, which computes with constants there.

/// One value of `general.architecture`.
#[derive(Debug)]
pub struct Architecture {
    /// Its name in GGUF files.
    pub name: &'static str,
    /// Class in `config.json`.
    pub class: &'static str,
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// Whether rows of queries and keys are permuted: rotary pairs side by side instead of half a head apart.
    pub permuted: bool,
    /// Added to norm weights by the converter.
    pub norm_offset: f32,
    /// Norms of a layer: GGUF name and name in the checkpoint.
    pub norms: &'static [(&'static str, &'static str)],
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// `attn_qkv` and, in `ffn_up`, gate and up, instead of a tensor for each.
    pub fused: bool,
    /// Biases of queries, keys and values.
    pub qkv_bias: Bias,
    /// Mixture of experts.
    pub experts: Option<Experts>,
    /// Fields of `config.json` that the others do not have.
    pub extra: Extra,
}

/// What a norm of queries spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// There is none.
    Never,
    /// A head.
    Head,
    /// All heads.
    Token,
}

/// Whether there are biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// There are none.
    Never,
    /// q, k and v always have them, o never.
    Always,
    /// q, k, v and o have them if the file has; `attention_bias`.
    Attention,
    /// The same, and the MLP if the file has; `mlp_bias`.
    AttentionAndMlp,
}

/// Names of a mixture of experts in the checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct Experts {
    /// The block in a layer.
    pub block: &'static str,
    /// Gate, up and down projection of an expert.
    pub parts: [&'static str; 3],
    /// Field of their number.
    pub count: &'static str,
    /// Field of their width, which is `expert_feed_forward_length` in the file; without, `feed_forward_length`.
    pub width: Option<&'static str>,
    /// Field of the shared expert's width.
    pub shared_width: Option<&'static str>,
    /// `norm_topk_prob`, a constant of llama.cpp's graph.
    pub normalized: Option<bool>,
}

/// Fields of `config.json` that the others do not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extra {
    /// None.
    Nothing,
    /// Caps, window, scale of scores; the number of layers that have a scale of their own (27B).
    Gemma2,
    /// The same with a rotary base for layers with a window.
    Gemma3,
    /// Window, partial rotation, longrope.
    Phi3,
    /// Multipliers.
    Granite,
    /// Layers without rotary embedding.
    SmolLm3,
}

const LLAMA_NORMS: &[(&str, &str)] =
    &[("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")];
const GEMMA_NORMS: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];
const OLMO_NORMS: &[(&str, &str)] =
    &[("post_attention_norm", "post_attention_layernorm"), ("post_ffw_norm", "post_feedforward_layernorm")];

const LLAMA: Architecture = Architecture {
    name: "llama",
    class: "LlamaForCausalLM",
    model_type: "llama",
    permuted: true,
    norm_offset: 0.0,
    norms: LLAMA_NORMS,
    qk_norm: QkNorm::Never,
    fused: false,
    qkv_bias: Bias::AttentionAndMlp,
    experts: None,
    extra: Extra::Nothing,
};

/// Files of the llama architecture with experts.
pub const MIXTRAL: Architecture = Architecture {
    class: "MixtralForCausalLM",
    model_type: "mixtral",
    qkv_bias: Bias::Never,
    experts: Some(Experts {
        block: "block_sparse_moe",
        parts: ["w1", "w3", "w2"],
        count: "num_local_experts",
        width: None,
        shared_width: None,
        normalized: None,
    }),
    ..LLAMA
};

const QWEN2: Architecture = Architecture {
    name: "qwen2",
    class: "Qwen2ForCausalLM",
    model_type: "qwen2",
    permuted: false,
    qkv_bias: Bias::Always,
    ..LLAMA
};

const QWEN2_EXPERTS: Experts = Experts {
    block: "mlp",
    parts: ["gate_proj", "up_proj", "down_proj"],
    count: "num_experts",
    width: Some("moe_intermediate_size"),
    shared_width: Some("shared_expert_intermediate_size"),
    normalized: Some(false),
};

const QWEN2_MOE: Architecture = Architecture {
    name: "qwen2moe",
    class: "Qwen2MoeForCausalLM",
    model_type: "qwen2_moe",
    experts: Some(QWEN2_EXPERTS),
    ..QWEN2
};

const QWEN3: Architecture = Architecture {
    name: "qwen3",
    class: "Qwen3ForCausalLM",
    model_type: "qwen3",
    qk_norm: QkNorm::Head,
    qkv_bias: Bias::Attention,
    ..QWEN2
};

const QWEN3_MOE: Architecture = Architecture {
    name: "qwen3moe",
    class: "Qwen3MoeForCausalLM",
    model_type: "qwen3_moe",
    experts: Some(Experts { shared_width: None, normalized: Some(true), ..QWEN2_EXPERTS }),
    ..QWEN3
};

const GEMMA2: Architecture = Architecture {
    name: "gemma2",
    class: "Gemma2ForCausalLM",
    model_type: "gemma2",
    permuted: false,
    norm_offset: 1.0,
    norms: GEMMA_NORMS,
    qkv_bias: Bias::Never,
    extra: Extra::Gemma2,
    ..LLAMA
};

const GEMMA3: Architecture = Architecture {
    name: "gemma3",
    class: "Gemma3ForCausalLM",
    model_type: "gemma3_text",
    qk_norm: QkNorm::Head,
    extra: Extra::Gemma3,
    ..GEMMA2
};

const PHI3: Architecture = Architecture {
    name: "phi3",
    class: "Phi3ForCausalLM",
    model_type: "phi3",
    permuted: false,
    fused: true,
    qkv_bias: Bias::Never,
    extra: Extra::Phi3,
    ..LLAMA
};

const OLMO2: Architecture = Architecture {
    name: "olmo2",
    class: "Olmo2ForCausalLM",
    model_type: "olmo2",
    permuted: false,
    norms: OLMO_NORMS,
    qk_norm: QkNorm::Token,
    qkv_bias: Bias::Never,
    ..LLAMA
};

const GRANITE: Architecture = Architecture {
    name: "granite",
    class: "GraniteForCausalLM",
    model_type: "granite",
    extra: Extra::Granite,
    ..LLAMA
};

const SMOLLM3: Architecture = Architecture {
    name: "smollm3",
    class: "SmolLM3ForCausalLM",
    model_type: "smollm3",
    extra: Extra::SmolLm3,
    ..LLAMA
};

/// Everything that can be imported; Mixtral's files are of the llama architecture.
pub static ARCHITECTURES: &[Architecture] =
    &[LLAMA, QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE, GEMMA2, GEMMA3, PHI3, OLMO2, GRANITE, SMOLLM3];
