//! Byte-level BPE (`tokenizer.ggml.model` = `gpt2`).
//!
//! `tokenizer.ggml.pre` names how text is cut before BPE. The table gives, for each name, what the model's own
//! `tokenizer.json` says; source of the names and patterns: llama.cpp, `src/llama-vocab.cpp` (`llm_tokenizer_bpe`).

use std::collections::HashSet;

use serde_json::{Value as Json, json};

use super::error::GgufProblem;
use super::tokenizer::{TYPE_USER_DEFINED, Vocab, special_type};
use super::value::required;

/// Letters, numbers, other characters and spaces, each with one leading space: GPT-2's pattern.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
/// Llama 3's pattern: numbers in groups of three.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen2's pattern: one digit at a time.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is prepared for BPE.
struct Pre {
    names: &'static [&'static str],
    cut: Cut,
    /// Unicode composition before anything else.
    nfc: bool,
    /// A word that is a token is one token, whatever the merges say.
    ignore_merges: bool,
    /// Whether BOS is added when the file does not say.
    add_bos: bool,
}

enum Cut {
    /// GPT-2's pattern, as part of the byte-level step.
    ByteLevel,
    /// Every digit alone, then GPT-2's pattern.
    Digits,
    /// Patterns applied one after the other; what lies between matches stays together.
    Patterns(&'static [&'static str]),
}

const TABLE: [Pre; 5] = [
    Pre { names: &["gpt-2"], cut: Cut::ByteLevel, nfc: false, ignore_merges: false, add_bos: false },
    Pre {
        names: &["smollm", "starcoder", "refact"],
        cut: Cut::Digits,
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3"],
        cut: Cut::Patterns(&[LLAMA3]),
        nfc: false,
        ignore_merges: true,
        add_bos: true,
    },
    Pre { names: &["qwen2"], cut: Cut::Patterns(&[QWEN2]), nfc: true, ignore_merges: false, add_bos: false },
    Pre {
        names: &["default"],
        cut: Cut::Patterns(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"]),
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
];

/// `tokenizer.json`.
pub(crate) fn build(vocab: &Vocab<'_>) -> Result<Json, GgufProblem> {
    let key = "tokenizer.ggml.pre";
    let name = required(vocab.meta.text(key), key)?;
    let pre = TABLE.iter().find(|pre| pre.names.contains(&name)).ok_or_else(|| {
        let known: Vec<&str> = TABLE.iter().flat_map(|pre| pre.names).copied().collect();
        GgufProblem::unsupported(key, &known.join(", "), format_args!("'{name}'"))
    })?;
    let merges = merges(vocab)?;
    let added = vocab.added_tokens(|kind| {
        (special_type(kind) || kind == TYPE_USER_DEFINED).then_some(kind != TYPE_USER_DEFINED)
    });
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": if pre.nfc { json!({"type": "NFC"}) } else { Json::Null },
        "pre_tokenizer": pre_tokenizer(&pre.cut),
        "post_processor": vocab.post_processor(pre.add_bos)?,
        "decoder": byte_level(true, true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre.ignore_merges, "vocab": vocab.to_json(), "merges": merges,
        },
    }))
}

fn pre_tokenizer(cut: &Cut) -> Json {
    let steps: Vec<Json> = match cut {
        Cut::ByteLevel => return byte_level(false, true),
        Cut::Digits => vec![json!({"type": "Digits", "individual_digits": true}), byte_level(false, true)],
        Cut::Patterns(patterns) => patterns
            .iter()
            .map(|p| json!({"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": false}))
            .chain([byte_level(false, false)])
            .collect(),
    };
    json!({"type": "Sequence", "pretokenizers": steps})
}

fn byte_level(add_prefix_space: bool, use_regex: bool) -> Json {
    json!({
        "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": use_regex,
    })
}

/// `[[left, right], …]`; both parts and their union must be tokens.
fn merges(vocab: &Vocab<'_>) -> Result<Vec<Json>, GgufProblem> {
    let key = "tokenizer.ggml.merges";
    let known: HashSet<&str> = vocab.tokens.iter().copied().collect();
    let pairs = required(vocab.meta.texts(key), key)?;
    let pair = |merge: &str| -> Option<Json> {
        let (left, right) = merge.split_once(' ')?;
        let whole = format!("{left}{right}");
        let all = known.contains(left) && known.contains(right) && known.contains(whole.as_str());
        all.then(|| json!([left, right]))
    };
    pairs
        .into_iter()
        .map(|merge| {
            let expected = "pairs of tokens whose union is a token, with one space between";
            pair(merge).ok_or_else(|| GgufProblem::field(key, expected, super::super::header::shown(merge)))
        })
        .collect()
}
