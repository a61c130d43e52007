//! SentencePiece's BPE with byte fallback (`tokenizer.ggml.model` = `llama`).
//!
//! SentencePiece joins, again and again, the neighbours whose union has the best score. The same order as merges: all
//! ways to split each piece into two pieces, sorted by the score of the piece. That is what transformers'
//! `generate_merges` did when the Llama tokenizers were converted. It equals SentencePiece as long as no two pieces
//! have the same score, so a vocabulary with equal scores is refused.

use std::collections::HashMap;

use serde_json::{Value as Json, json};

use super::error::GgufProblem;
use super::tokenizer::{TYPE_BYTE, TYPE_USER_DEFINED, Vocab, special_type};
use super::value::required;

/// Type of ordinary pieces.
const TYPE_NORMAL: i64 = 1;
/// The visible space.
const SPACE: &str = "▁";

/// `tokenizer.json`.
pub(crate) fn build(vocab: &Vocab<'_>) -> Result<Json, GgufProblem> {
    let key = "tokenizer.ggml.scores";
    let scores = required(vocab.meta.floats(key), key)?;
    if scores.len() != vocab.tokens.len() {
        return Err(GgufProblem::field(key, &format!("{} scores", vocab.tokens.len()), scores.len()));
    }
    let Some(unk) = vocab.ids.unk else {
        return Err(GgufProblem::MissingKey { key: "tokenizer.ggml.unknown_token_id".to_owned() });
    };
    check_bytes(vocab)?;
    let prefix = vocab.meta.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let added = vocab.added_tokens(|kind| {
        (special_type(kind) || kind == TYPE_USER_DEFINED).then_some(kind != TYPE_USER_DEFINED)
    });
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": vocab.post_processor(true)?,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": vocab.tokens[unk], "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab.to_json(), "merges": merges(vocab, &scores)?,
        },
    }))
}

/// Byte fallback needs a token for each byte.
fn check_bytes(vocab: &Vocab<'_>) -> Result<(), GgufProblem> {
    let bytes = vocab.types.iter().filter(|kind| **kind == TYPE_BYTE).count();
    let complete = (0..256).all(|b| vocab.tokens.contains(&format!("<0x{b:02X}>").as_str()));
    if bytes == 256 && complete {
        return Ok(());
    }
    Err(GgufProblem::unsupported("tokenizer.ggml.token_type", "256 byte tokens <0x00> to <0xFF>", bytes))
}

/// All splits of all ordinary pieces into two, best piece first; splits of one piece by the ids of their parts.
fn merges(vocab: &Vocab<'_>, scores: &[f32]) -> Result<Vec<Json>, GgufProblem> {
    let ids: HashMap<&str, usize> = vocab
        .tokens
        .iter()
        .enumerate()
        .filter(|(id, _)| vocab.types[*id] == TYPE_NORMAL)
        .map(|(id, token)| (*token, id))
        .collect();
    let mut pieces: Vec<(usize, Vec<(usize, usize)>)> = Vec::new();
    for (id, token) in vocab.tokens.iter().enumerate() {
        if vocab.types[id] != TYPE_NORMAL {
            continue;
        }
        let cuts = token.char_indices().skip(1);
        let mut splits: Vec<(usize, usize)> =
            cuts.filter_map(|(at, _)| Some((*ids.get(&token[..at])?, *ids.get(&token[at..])?))).collect();
        splits.sort_unstable();
        if !splits.is_empty() {
            pieces.push((id, splits));
        }
    }
    pieces.sort_by(|a, b| scores[b.0].total_cmp(&scores[a.0]));
    for pair in pieces.windows(2) {
        let (a, b) = (pair[0].0, pair[1].0);
        if scores[a] == scores[b] || !scores[a].is_finite() || !scores[b].is_finite() {
            let found = format!("{} for '{}' and '{}'", scores[a], vocab.tokens[a], vocab.tokens[b]);
            return Err(GgufProblem::unsupported("tokenizer.ggml.scores", "distinct finite scores", found));
        }
    }
    let token = |id: usize| vocab.tokens[id];
    Ok(pieces.iter().flat_map(|(_, splits)| splits).map(|(l, r)| json!([token(*l), token(*r)])).collect())
}
