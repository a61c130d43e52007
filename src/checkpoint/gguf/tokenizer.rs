//! The tokenizer inside a GGUF file, as `tokenizer.json` and `tokenizer_config.json`.

use serde_json::{Map, Value as Json, json};
use tokenizers::Tokenizer;

use super::error::GgufProblem;
use super::value::{Metadata, required};
use super::{tokenizer_bpe, tokenizer_spm};

/// llama.cpp's token types.
pub(crate) const TYPE_UNKNOWN: i64 = 2;
/// Special tokens.
pub(crate) const TYPE_CONTROL: i64 = 3;
/// Added tokens that are ordinary text.
pub(crate) const TYPE_USER_DEFINED: i64 = 4;
/// Byte fallback tokens of SentencePiece.
pub(crate) const TYPE_BYTE: i64 = 6;

/// The files of a tokenizer, and the ids that the configs repeat.
#[derive(Debug, Clone)]
pub struct ImportedTokenizer {
    /// `tokenizer.json`.
    pub tokenizer: Json,
    /// `tokenizer_config.json`.
    pub config: Json,
    /// Ids of special tokens.
    pub ids: SpecialIds,
    /// Number of tokens.
    pub vocab_size: usize,
}

/// Ids of special tokens, where the file names them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// Beginning of a sequence.
    pub bos: Option<usize>,
    /// End of a sequence.
    pub eos: Option<usize>,
    /// Ends of a turn or message other than `eos`.
    pub more_eos: Vec<usize>,
    /// Padding.
    pub pad: Option<usize>,
    /// Unknown token.
    pub unk: Option<usize>,
}

/// Tokens and their types.
pub(crate) struct Vocab<'a> {
    pub(crate) tokens: Vec<&'a str>,
    pub(crate) types: Vec<i64>,
    pub(crate) ids: SpecialIds,
    pub(crate) meta: &'a Metadata,
}

/// Builds the files; the result is loaded once to prove that it is a tokenizer with exactly these tokens.
pub fn read(meta: &Metadata, max_len: usize) -> Result<ImportedTokenizer, GgufProblem> {
    let vocab = Vocab::read(meta)?;
    let model = required(meta.text("tokenizer.ggml.model"), "tokenizer.ggml.model")?;
    let tokenizer = match model {
        "gpt2" => tokenizer_bpe::build(&vocab)?,
        "llama" => tokenizer_spm::build(&vocab)?,
        other => {
            return Err(GgufProblem::unsupported(
                "tokenizer.ggml.model",
                "gpt2 or llama",
                format_args!("'{other}'"),
            ));
        }
    };
    check_loads(&tokenizer, &vocab)?;
    let config = vocab.config(max_len)?;
    Ok(ImportedTokenizer { tokenizer, config, vocab_size: vocab.tokens.len(), ids: vocab.ids })
}

impl<'a> Vocab<'a> {
    fn read(meta: &'a Metadata) -> Result<Self, GgufProblem> {
        let tokens = required(meta.texts("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens")?;
        let types = required(meta.ints("tokenizer.ggml.token_type"), "tokenizer.ggml.token_type")?;
        if types.len() != tokens.len() {
            let expected = format!("{} types, one a token", tokens.len());
            return Err(GgufProblem::field("tokenizer.ggml.token_type", &expected, types.len()));
        }
        let mut seen = std::collections::HashSet::with_capacity(tokens.len());
        if let Some(twice) = tokens.iter().find(|token| !seen.insert(**token)) {
            let found = format!("{} twice", super::super::header::shown(twice));
            return Err(GgufProblem::field("tokenizer.ggml.tokens", "distinct tokens", found));
        }
        let id = |name: &str| -> Result<Option<usize>, GgufProblem> {
            let key = format!("tokenizer.ggml.{name}_token_id");
            match meta.count(&key)? {
                Some(id) if id >= tokens.len() => {
                    Err(GgufProblem::field(&key, &format!("an id below {}", tokens.len()), id))
                }
                other => Ok(other),
            }
        };
        let mut ids = SpecialIds {
            bos: id("bos")?,
            eos: id("eos")?,
            more_eos: Vec::new(),
            pad: id("padding")?,
            unk: id("unknown")?,
        };
        for more in [id("eot")?, id("eom")?].into_iter().flatten() {
            if Some(more) != ids.eos && !ids.more_eos.contains(&more) {
                ids.more_eos.push(more);
            }
        }
        Ok(Self { tokens, types, ids, meta })
    }

    /// `{token: id}` in the order of the ids.
    pub(crate) fn to_json(&self) -> Json {
        let entries = self.tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id)));
        Json::Object(entries.collect::<Map<_, _>>())
    }

    /// The entries of `added_tokens`: `is_special` decides about tokens that are not plain; `None` leaves one out.
    pub(crate) fn added_tokens(&self, is_special: impl Fn(i64) -> Option<bool>) -> Vec<Json> {
        let entries = self.tokens.iter().zip(&self.types).enumerate();
        entries
            .filter_map(|(id, (token, kind))| {
                let special = is_special(*kind)?;
                Some(json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": special,
                }))
            })
            .collect()
    }

    /// A template that adds BOS and EOS where the file asks for it; null where it does not.
    pub(crate) fn post_processor(&self, default_bos: bool) -> Result<Json, GgufProblem> {
        let wants = |name: &str, default| -> Result<bool, GgufProblem> {
            Ok(self.meta.bool(&format!("tokenizer.ggml.add_{name}_token"))?.unwrap_or(default))
        };
        let before =
            self.ids.bos.filter(|_| default_bos || self.meta.get("tokenizer.ggml.add_bos_token").is_some());
        let before = if wants("bos", default_bos)? { before } else { None };
        let after = if wants("eos", false)? { self.ids.eos } else { None };
        if before.is_none() && after.is_none() {
            return Ok(Json::Null);
        }
        let special = |id: usize, part: u8| json!({"SpecialToken": {"id": self.tokens[id], "type_id": part}});
        let sequence = |name: &str, part: u8| -> Vec<Json> {
            let text = json!({"Sequence": {"id": name, "type_id": part}});
            [before.map(|id| special(id, part)), Some(text), after.map(|id| special(id, part))]
                .into_iter()
                .flatten()
                .collect()
        };
        let tokens: Map<String, Json> = [before, after]
            .into_iter()
            .flatten()
            .map(|id| {
                let token = self.tokens[id];
                (token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}))
            })
            .collect();
        let pair = [sequence("A", 0), sequence("B", 1)].concat();
        Ok(json!({
            "type": "TemplateProcessing",
            "single": sequence("A", 0),
            "pair": pair,
            "special_tokens": tokens,
        }))
    }

    fn config(&self, max_len: usize) -> Result<Json, GgufProblem> {
        let mut decoder = Map::new();
        for added in self.added_tokens(|kind| special_type(kind).then_some(true)) {
            let mut entry = added.as_object().cloned().unwrap_or_default();
            let id = entry.remove("id").unwrap_or_default();
            decoder.insert(id.to_string(), Json::Object(entry));
        }
        let token = |id: Option<usize>| id.map(|id| json!(self.tokens[id]));
        let ends: Vec<&str> =
            [self.ids.bos, self.ids.eos].into_iter().flatten().map(|id| self.tokens[id]).collect();
        let mut config = Map::new();
        config.insert("added_tokens_decoder".to_owned(), Json::Object(decoder));
        config.insert("additional_special_tokens".to_owned(), json!(ends));
        for (key, value) in [
            ("bos_token", token(self.ids.bos)),
            ("eos_token", token(self.ids.eos)),
            ("pad_token", token(self.ids.pad)),
            ("unk_token", token(self.ids.unk)),
            ("chat_template", self.meta.text("tokenizer.chat_template")?.map(|t| json!(t))),
            ("add_bos_token", self.meta.bool("tokenizer.ggml.add_bos_token")?.map(|b| json!(b))),
        ] {
            if let Some(value) = value {
                config.insert(key.to_owned(), value);
            }
        }
        config.insert("add_prefix_space".to_owned(), json!(false));
        config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
        config.insert("model_max_length".to_owned(), json!(max_len));
        // A class of its own name would let transformers replace the pre-tokenizer of tokenizer.json by its own.
        config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
        Ok(Json::Object(config))
    }
}

/// Types whose tokens are special to Hugging Face.
pub(crate) fn special_type(kind: i64) -> bool {
    matches!(kind, TYPE_CONTROL | TYPE_UNKNOWN)
}

fn check_loads(tokenizer: &Json, vocab: &Vocab<'_>) -> Result<(), GgufProblem> {
    let text = tokenizer.to_string();
    let loaded = Tokenizer::from_bytes(text)
        .map_err(|error| GgufProblem::field("tokenizer.ggml", "a usable tokenizer", error))?;
    let found = loaded.get_vocab_size(true);
    if found != vocab.tokens.len() {
        let expected = format!("{} tokens", vocab.tokens.len());
        return Err(GgufProblem::field("tokenizer.ggml.tokens", &expected, found));
    }
    Ok(())
}
