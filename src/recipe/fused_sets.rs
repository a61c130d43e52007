//! Linear layers that serving engines fuse into one: they must share scheme and global scale.
//!
//! Source: vLLM's `packed_modules_mapping` and llm-compressor's `FUSED_LAYER_NAMES` (checkpoint-formats §4.4).

/// Last parts of names of layers that are fused when they have the same parent.
const FUSED: &[&[&str]] = &[
    &["q_proj", "k_proj", "v_proj"],
    &["gate_proj", "up_proj"],
    &["w1", "w3"],
    &["q_a_proj", "kv_a_proj_with_mqa"],
    &["in_proj_qkv", "in_proj_z"],
    &["in_proj_b", "in_proj_a"],
];

/// The members' full names in the set that a module may belong to; the module itself is one of them.
pub fn members(module: &str) -> Option<Vec<String>> {
    let (parent, last) = module.rsplit_once('.')?;
    let set = FUSED.iter().find(|set| set.contains(&last))?;
    Some(set.iter().map(|name| format!("{parent}.{name}")).collect())
}

/// A name for the set, the same for each of its members: `model.layers.0.self_attn.{q_proj,k_proj,v_proj}`.
pub fn key(module: &str) -> Option<String> {
    let (parent, last) = module.rsplit_once('.')?;
    let set = FUSED.iter().find(|set| set.contains(&last))?;
    Some(format!("{parent}.{{{}}}", set.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_share_a_key() {
        let key_of = |name: &str| key(name).unwrap();
        assert_eq!(
            key_of("model.layers.0.self_attn.k_proj"),
            "model.layers.0.self_attn.{q_proj,k_proj,v_proj}"
        );
        assert_eq!(key_of("m.mlp.experts.3.gate_proj"), key_of("m.mlp.experts.3.up_proj"));
        assert_ne!(key_of("m.mlp.experts.3.gate_proj"), key_of("m.mlp.experts.4.up_proj"));
        assert_eq!(key("m.mlp.down_proj"), None);
        assert_eq!(members("a.w3"), Some(vec!["a.w1".to_owned(), "a.w3".to_owned()]));
    }
}
