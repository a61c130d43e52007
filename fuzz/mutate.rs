//! Inputs for the parsers: seeds that are valid, and mutations that keep them nearly so.

use rand::Rng;
use rand::seq::IndexedRandom;

/// Values that parsers stumble over.
const TOKENS: [&str; 24] = [
    "0",
    "-1",
    "1e309",
    "18446744073709551615",
    "18446744073709551616",
    "null",
    "{}",
    "[]",
    "[0,0]",
    "\"\"",
    "true",
    "\"re:(\"",
    "\"re:.*\"",
    "\\u0000",
    "\u{feff}",
    "NaN",
    "\"__metadata__\"",
    "\"F4\"",
    "\"F8_E8M0\"",
    "128",
    "[128,128]",
    "&a *a",
    "!!binary x",
    "- \n",
];

/// Every seed, its first byte the number of its parser.
pub fn seeds() -> Vec<Vec<u8>> {
    let header = |json: &str, data: usize| {
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend(json.as_bytes());
        file.resize(file.len() + data, 0);
        file
    };
    let tensors = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"F4","shape":[4],"data_offsets":[12,14]},"c":{"dtype":"I64","shape":[],"data_offsets":[14,22]},"d":{"dtype":"F32","shape":[0,7],"data_offsets":[22,22]}}"#;
    let index = r#"{"metadata":{"total_size":4},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
    let model = include_str!("../models/day0-tiny/config.json");
    let configs = [
        r#"{"text_config":{"quantization_config":{"quant_method":"compressed-tensors","format":"mixed-precision","quantization_status":"compressed","config_groups":{"group_0":{"targets":["Linear"],"weights":{"num_bits":4,"type":"int","symmetric":false,"strategy":"group","group_size":32,"dynamic":false,"actorder":"static"},"input_activations":null,"format":"pack-quantized"},"group_1":{"targets":["re:.*mlp.*"],"weights":{"num_bits":8,"type":"float","strategy":"block","block_structure":"128x128"},"input_activations":{"num_bits":8,"type":"float","strategy":"group","group_size":128,"dynamic":true},"format":"float-quantized"}},"ignore":["lm_head"],"kv_cache_scheme":null,"sparsity_config":{},"transform_config":{}}}}"#,
        r#"{"quantization_config":{"quant_method":"modelopt","quant_algo":"MIXED_PRECISION","group_size":16,"quantized_layers":{"model.layers.0.mlp.up_proj":{"quant_algo":"NVFP4","group_size":16}},"ignore":["lm_head"],"config_groups":{"group_0":{"weights":{"group_size":16}}}}}"#,
        r#"{"quantization_config":{"quant_method":"fp8","fmt":"e4m3","weight_block_size":[128,128],"activation_scheme":"dynamic"},"rope_parameters":{"rope_type":"llama3","rope_theta":5e5,"factor":8.0}}"#,
    ];
    let recipes = [
        include_str!("../recipes/fp8_dynamic.yaml"),
        include_str!("../recipes/w4a16.yaml"),
        include_str!("../recipes/nvfp4_experts_only.yaml"),
    ];
    let mut gguf = b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0".to_vec();
    gguf.extend(b"\x04\0\0\0\0\0\0\0name\x08\0\0\0\x02\0\0\0\0\0\0\0ab");
    gguf.extend(b"\x01\0\0\0\0\0\0\0w\x01\0\0\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    gguf.resize(gguf.len().next_multiple_of(32) + 16, 0);
    let mut seeds = Vec::new();
    let mut add = |parser: u8, bytes: &[u8]| {
        seeds.push([&[parser], bytes].concat());
    };
    add(0, &header(tensors, 22));
    add(1, index.as_bytes());
    add(2, model.as_bytes());
    for config in &configs {
        add(2, config.as_bytes());
    }
    for recipe in &recipes {
        add(3, recipe.as_bytes());
    }
    add(4, &gguf);
    seeds
}

/// A seed with a few changes; the parser's number stays, and so does a header's length field, mostly.
pub fn mutate(rng: &mut impl Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let Some(seed) = seeds.choose(rng) else { return Vec::new() };
    let mut input = seed.clone();
    for _ in 0..rng.random_range(1..=6) {
        change(rng, &mut input, seeds);
    }
    // A changed text keeps the header readable most of the time: its length is written again.
    if input[0] == 0 && input.len() > 9 && rng.random_bool(0.9) {
        let json_end = input.iter().rposition(|b| *b == b'}').map_or(input.len(), |at| at + 1);
        let length = (json_end.max(9) - 9) as u64;
        input[1..9].copy_from_slice(&length.to_le_bytes());
    }
    input
}

fn change(rng: &mut impl Rng, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    let at = rng.random_range(1..=input.len().max(1));
    let end = (at + rng.random_range(0..12)).min(input.len());
    match rng.random_range(0..8) {
        0 if at < input.len() => input[at] ^= 1 << rng.random_range(0..8),
        1 if at < input.len() => input[at] = rng.random(),
        2 => drop(input.drain(at.min(end)..end)),
        3 => {
            let token = TOKENS.choose(rng).copied().unwrap_or_default();
            drop(input.splice(at.min(end)..end, token.bytes()));
        }
        4 => input.truncate(at),
        5 => {
            let piece: Vec<u8> = input[at.min(end)..end].to_vec();
            drop(input.splice(at.min(end)..at.min(end), piece));
        }
        6 => replace_number(rng, input),
        _ => {
            let Some(other) = seeds.choose(rng) else { return };
            let from = rng.random_range(1..=other.len());
            let piece = &other[from..(from + 24).min(other.len())];
            drop(input.splice(at.min(end)..end, piece.iter().copied()));
        }
    }
}

/// Puts another number where one stands.
fn replace_number(rng: &mut impl Rng, input: &mut Vec<u8>) {
    let starts: Vec<usize> =
        (1..input.len()).filter(|i| input[*i].is_ascii_digit() && !input[i - 1].is_ascii_digit()).collect();
    let Some(start) = starts.choose(rng).copied() else { return };
    let digits = input[start..].iter().take_while(|b| b.is_ascii_digit()).count();
    let number = match rng.random_range(0..4) {
        0 => rng.random_range(0..40).to_string(),
        1 => (1u64 << rng.random_range(0..64)).to_string(),
        2 => (u64::MAX - rng.random_range(0..3)).to_string(),
        _ => format!("-{}", rng.random_range(0..300)),
    };
    drop(input.splice(start..start + digits, number.bytes()));
}
