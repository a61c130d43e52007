//! Which precision a recipe's layers are counted under.

/// Recipes and the key of `layer_precision_counts` their layers appear under. The first six are upstream's table
/// (`gate_ptq.py`), the others day0's built-in recipes, mixed ones under the precision that gives them their name.
const BUCKETS: [(&str, &str); 28] = [
    ("nvfp4", "NVFP4"),
    ("nvfp4_mlp_only", "NVFP4"),
    ("nvfp4_experts_only", "NVFP4"),
    ("nvfp4_omlp_only", "NVFP4"),
    ("fp8", "FP8"),
    ("int4_awq", "INT4"),
    ("fp8_dynamic", "FP8"),
    ("fp8_block", "FP8"),
    ("fp8_static", "FP8"),
    ("fp8_weight_only", "FP8"),
    ("mxfp8", "MXFP8"),
    ("mxfp8a16", "MXFP8"),
    ("mxfp6a16", "MXFP6"),
    ("w8a8", "INT8"),
    ("w8a16", "INT8"),
    ("w4a16", "INT4"),
    ("w4a16_g128", "INT4"),
    ("w4a16_g64", "INT4"),
    ("w4a16_g64_mse", "INT4"),
    ("w4a16_g32", "INT4"),
    ("w4a16_asym_g32", "INT4"),
    ("w4afp8", "INT4"),
    ("nvfp4a16", "NVFP4"),
    ("w4a16_nvfp4", "NVFP4"),
    ("nvfp4_mlp_fp8", "NVFP4"),
    ("mxfp4a16", "MXFP4"),
    ("mxfp4", "MXFP4"),
    ("w2a16", "INT2"),
];

/// The bucket of a recipe, whose name is compared without regard to case; `None` for unknown recipes.
pub fn precision_bucket(recipe: &str) -> Option<&'static str> {
    BUCKETS.iter().find(|(name, _)| name.eq_ignore_ascii_case(recipe)).map(|(_, bucket)| *bucket)
}

/// Every recipe that has a bucket.
pub(super) fn known() -> String {
    BUCKETS.map(|(name, _)| name).join(", ")
}
