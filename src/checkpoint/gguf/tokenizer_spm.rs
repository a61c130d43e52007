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

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};
    use std::path::Path;

    use tokenizers::Tokenizer;

    use super::super::tokenizer;
    use super::super::value::{Metadata, Value};
    use super::*;

    /// The tokenizer of stories260k (Llama 2's kind, 512 pieces), as llama.cpp would store it: piece 259 + i has the
    /// score −i, as SentencePiece numbers what it learns.
    fn stories() -> Option<(Json, Metadata)> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/models/stories260k/tokenizer.json");
        let Ok(text) = std::fs::read(path) else {
            println!("skipped: ../shared is not there");
            return None;
        };
        let original: Json = serde_json::from_slice(&text).unwrap();
        let mut tokens: Vec<(String, i64)> = original["model"]["vocab"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(token, id)| (token.clone(), id.as_i64().unwrap()))
            .collect();
        tokens.sort_by_key(|(_, id)| *id);
        let kind = |id: i64| match id {
            0 => 2,
            1 | 2 => 3,
            3..259 => 6,
            _ => 1,
        };
        let ids = || tokens.iter().map(|(_, id)| *id);
        let list = |values: Vec<Value>| Value::List(values);
        let meta = BTreeMap::from([
            ("tokenizer.ggml.model", Value::Text("llama".to_owned())),
            ("tokenizer.ggml.tokens", list(tokens.iter().map(|(t, _)| Value::Text(t.clone())).collect())),
            ("tokenizer.ggml.scores", list(ids().map(|id| Value::F32(259.0 - id.max(259) as f32)).collect())),
            ("tokenizer.ggml.token_type", list(ids().map(|id| Value::Int(kind(id))).collect())),
            ("tokenizer.ggml.bos_token_id", Value::Int(1)),
            ("tokenizer.ggml.eos_token_id", Value::Int(2)),
            ("tokenizer.ggml.unknown_token_id", Value::Int(0)),
        ]);
        Some((original, Metadata(meta.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())))
    }

    #[test]
    fn same_as_the_original_conversion() {
        let Some((original, meta)) = stories() else { return };
        let built = tokenizer::read(&meta, 512).unwrap().tokenizer;
        for part in ["added_tokens", "normalizer", "pre_tokenizer", "decoder"] {
            assert_eq!(built[part], original[part], "{part}");
        }
        assert_eq!(built["post_processor"]["single"], original["post_processor"]["single"]);
        assert_eq!(built["model"]["merges"], original["model"]["merges"]);
        assert_eq!(built["model"]["vocab"], original["model"]["vocab"]);
    }

    /// Against SentencePiece's own algorithm, written down naively: join the best-scored neighbours, leftmost first;
    /// characters that are no pieces become bytes (llama2.c `encode`, llama.cpp `llm_tokenizer_spm`).
    #[test]
    fn same_tokens_as_sentencepiece() {
        let Some((_, meta)) = stories() else { return };
        let built = tokenizer::read(&meta, 512).unwrap();
        let tokenizer = Tokenizer::from_bytes(built.tokenizer.to_string()).unwrap();
        let tokens = meta.texts("tokenizer.ggml.tokens").unwrap().unwrap();
        let scores = meta.floats("tokenizer.ggml.scores").unwrap().unwrap();
        let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, t)| (*t, id)).collect();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/calibration/tiny.utf8");
        let stories = std::fs::read_to_string(path).unwrap_or_default();
        let odd = ["", " ", "  a   b", "naïve café 你好\n\n\ttab", "aaaa bbbbbbb       x", "1,234.5!?"];
        for text in stories.split("<|endoftext|>").take(200).chain(odd) {
            let expected = sentencepiece(text, &ids, &scores);
            let found = tokenizer.encode(text, false).unwrap();
            let found: Vec<usize> = found.get_ids().iter().map(|id| *id as usize).collect();
            assert_eq!(found, expected, "{text:?}");
        }
    }

    fn sentencepiece(text: &str, ids: &HashMap<&str, usize>, scores: &[f32]) -> Vec<usize> {
        let text = text.replace(' ', SPACE);
        let text = if text.is_empty() { text } else { format!("{SPACE}{text}") };
        let mut symbols: Vec<String> = text.chars().map(String::from).collect();
        loop {
            let mut best: Option<(f32, usize)> = None;
            for i in 1..symbols.len() {
                let joined = format!("{}{}", symbols[i - 1], symbols[i]);
                if let Some(score) = ids.get(joined.as_str()).map(|id| scores[*id])
                    && best.is_none_or(|(found, _)| score > found)
                {
                    best = Some((score, i));
                }
            }
            let Some((_, i)) = best else { break };
            let right = symbols.remove(i);
            symbols[i - 1].push_str(&right);
        }
        let byte = |b: &u8| ids[format!("<0x{b:02X}>").as_str()];
        let encode = |s: &String| {
            ids.get(s.as_str()).map_or_else(|| s.as_bytes().iter().map(byte).collect(), |id| vec![*id])
        };
        symbols.iter().flat_map(encode).collect()
    }

    #[test]
    fn what_cannot_be_exact_is_refused() {
        let Some((_, meta)) = stories() else { return };
        let refused = |key: &str, at: usize, value: Value| {
            let mut meta = meta.clone();
            let Some(Value::List(items)) = meta.0.get_mut(key) else { panic!() };
            items[at] = value;
            tokenizer::read(&meta, 512).unwrap_err().to_string()
        };
        // Pieces 259 and 260 are the two best.
        assert!(refused("tokenizer.ggml.scores", 260, Value::F32(0.0)).contains("distinct finite scores"));
        assert!(
            refused("tokenizer.ggml.scores", 260, Value::F32(f32::NAN)).contains("distinct finite scores")
        );
        assert!(refused("tokenizer.ggml.token_type", 3, Value::Int(1)).contains("256 byte tokens"));
    }
}
