//! Text to token ids and back, as transformers' fast tokenizers do it: `tokenizer.json` for the algorithm,
//! `tokenizer_config.json` for the special tokens and whether BOS and EOS are added.
//!
//! Source: transformers 5.17, `tokenization_utils_tokenizers.py` (`update_post_processor`): a
//! `tokenizer_config.json` that states `add_bos_token` or `add_eos_token` replaces the post-processor of
//! `tokenizer.json`; otherwise that one decides.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::processors::template::TemplateProcessing;

use super::chat_template::{ChatTemplate, ChatTemplateError};
use crate::base::digest::{Digest, DigestBuilder};
use crate::record::{Classified, FailureClass};

/// A tokenizer that cannot be loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file is missing or cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not JSON, or its content is not what a tokenizer needs.
    #[error("{}: {detail}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A named special token is not in the vocabulary.
    #[error("{}: {name} {token:?} is not in the vocabulary of tokenizer.json", path.display())]
    UnknownSpecialToken {
        /// The file that names the token.
        path: PathBuf,
        /// `bos_token`, `eos_token`, …
        name: String,
        /// The token.
        token: String,
    },
    /// The chat template does not compile.
    #[error("chat template of {}", path.display())]
    ChatTemplate {
        /// The checkpoint directory.
        path: PathBuf,
        /// Why.
        source: ChatTemplateError,
    },
    /// The text cannot be encoded.
    #[error("text of {bytes} bytes cannot be encoded: {detail}")]
    Encode {
        /// Length of the text.
        bytes: usize,
        /// Why.
        detail: String,
    },
    /// The ids cannot be decoded.
    #[error("token ids cannot be decoded: {detail}")]
    Decode {
        /// Why.
        detail: String,
    },
}

impl Classified for TokenizerError {
    fn failure_class(&self) -> FailureClass {
        FailureClass::UserConfigError
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Read { path, .. } if path.ends_with("tokenizer.json") => Some(
                "day0 reads the tokenizers format: save the tokenizer with transformers' \
                 AutoTokenizer.from_pretrained(…).save_pretrained(DIR)"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

/// The tokenizer of one checkpoint.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<SpecialToken>,
    eos: Option<SpecialToken>,
    eos_ids: Vec<u32>,
    prefix_text: Option<String>,
    chat_template: Option<ChatTemplate>,
    model_max_length: Option<usize>,
    digest: Digest,
}

/// A special token with its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialToken {
    /// Text, e.g. `<|im_end|>`.
    pub text: String,
    /// Id in the vocabulary.
    pub id: u32,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Loads the tokenizer of a checkpoint directory.
    pub fn load(dir: &Path) -> Result<Self, TokenizerError> {
        let path = dir.join("tokenizer.json");
        let bytes = read(&path)?;
        let malformed = |detail: String| TokenizerError::Malformed { path: path.clone(), detail };
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| malformed(e.to_string()))?;
        // transformers pads and truncates only when asked to, whatever the file says.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| malformed(e.to_string()))?;

        let config = TokenizerConfig::load(dir)?;
        let bos = config.special("bos_token", &inner)?;
        let eos = config.special("eos_token", &inner)?;
        config.replace_post_processor(&mut inner, bos.as_ref(), eos.as_ref())?;
        let eos_ids = eos_ids(dir, eos.as_ref())?;
        let chat_template = config.chat_template(dir)?;
        let mut digest = DigestBuilder::default();
        digest.field(&bytes).field(config.digest_text().as_bytes());
        let mut tokenizer = Self {
            inner,
            bos,
            eos,
            eos_ids,
            prefix_text: None,
            chat_template,
            model_max_length: config.model_max_length(),
            digest: digest.finish(),
        };
        if let Some(id) = tokenizer.prefix_token_id() {
            tokenizer.prefix_text = Some(tokenizer.decode(&[id])?);
        }
        Ok(tokenizer)
    }

    /// Token ids of `text`, T ids; with `add_special`, as the checkpoint's post-processor adds BOS and EOS.
    ///
    /// Special tokens written out in the text become their ids either way, as in transformers.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self
            .inner
            .encode_fast(text, add_special)
            .map_err(|e| TokenizerError::Encode { bytes: text.len(), detail: e.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of a prompt, as lm-eval's Hugging Face backend encodes it (`tok_encode`): with the default special
    /// tokens, except where the text already starts with the prefix token.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let has_prefix = self.prefix_text.as_ref().is_some_and(|prefix| text.starts_with(prefix));
        self.encode(text, !has_prefix)
    }

    /// Text of `ids`, special tokens included.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.inner.decode(ids, false).map_err(|e| TokenizerError::Decode { detail: e.to_string() })
    }

    /// Text of one token as servers show it: the decoded id alone. A part of a character shows as U+FFFD, an id
    /// outside the vocabulary as the empty text.
    pub fn token_text(&self, id: u32) -> String {
        self.inner.decode(&[id], false).unwrap_or_default()
    }

    /// Number of ids, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token by its exact text in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Beginning-of-sequence token, if the checkpoint names one.
    pub fn bos(&self) -> Option<&SpecialToken> {
        self.bos.as_ref()
    }

    /// End-of-sequence token, if the checkpoint names one.
    pub fn eos(&self) -> Option<&SpecialToken> {
        self.eos.as_ref()
    }

    /// All ids that end a generation: those of generation_config.json, else of config.json, and the tokenizer's own.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// What lm-eval puts before an empty context: BOS, else EOS.
    pub fn prefix_token_id(&self) -> Option<u32> {
        self.bos.as_ref().or(self.eos.as_ref()).map(|t| t.id)
    }

    /// The checkpoint's chat template, if it has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// `model_max_length` of tokenizer_config.json, where it is a real number and not transformers' "unknown" (1e30).
    pub fn model_max_length(&self) -> Option<usize> {
        self.model_max_length
    }

    /// Identity: the content of tokenizer.json, the special tokens and the chat template.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}

/// `tokenizer_config.json`, with `special_tokens_map.json` behind it.
struct TokenizerConfig {
    path: PathBuf,
    values: Map<String, Value>,
}

impl TokenizerConfig {
    fn load(dir: &Path) -> Result<Self, TokenizerError> {
        let path = dir.join("tokenizer_config.json");
        let mut values = read_object(&path)?.unwrap_or_default();
        for (key, value) in read_object(&dir.join("special_tokens_map.json"))?.unwrap_or_default() {
            values.entry(key).or_insert(value);
        }
        Ok(Self { path, values })
    }

    /// A special token is written as text or as an object with `content`.
    fn token_text(&self, name: &str) -> Result<Option<&str>, TokenizerError> {
        match self.values.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(Value::Object(token)) if token.get("content").is_some_and(Value::is_string) => {
                Ok(token["content"].as_str())
            }
            Some(other) => Err(TokenizerError::Malformed {
                path: self.path.clone(),
                detail: format!("{name} is {other}, expected a text or an object with 'content'"),
            }),
        }
    }

    fn special(
        &self,
        name: &str,
        inner: &tokenizers::Tokenizer,
    ) -> Result<Option<SpecialToken>, TokenizerError> {
        let Some(text) = self.token_text(name)? else { return Ok(None) };
        let id = inner.token_to_id(text).ok_or_else(|| TokenizerError::UnknownSpecialToken {
            path: self.path.clone(),
            name: name.to_owned(),
            token: text.to_owned(),
        })?;
        Ok(Some(SpecialToken { text: text.to_owned(), id }))
    }

    fn replace_post_processor(
        &self,
        inner: &mut tokenizers::Tokenizer,
        bos: Option<&SpecialToken>,
        eos: Option<&SpecialToken>,
    ) -> Result<(), TokenizerError> {
        let stated = |name: &str| self.values.get(name).and_then(Value::as_bool);
        let (add_bos, add_eos) = (stated("add_bos_token"), stated("add_eos_token"));
        if add_bos.is_none() && add_eos.is_none() {
            return Ok(());
        }
        let bos = bos.filter(|_| add_bos == Some(true));
        let eos = eos.filter(|_| add_eos == Some(true));
        let piece = |t: Option<&SpecialToken>, type_id| t.map(|t| format!("{}:{type_id}", t.text));
        let malformed = |detail: String| TokenizerError::Malformed { path: self.path.clone(), detail };
        // Pieces are given one by one, because a template in one text would split tokens that contain spaces.
        let pieces = |sequence: &str, type_id| {
            let middle = Some(format!("${sequence}:{type_id}"));
            [piece(bos, type_id), middle, piece(eos, type_id)].into_iter().flatten().collect::<Vec<_>>()
        };
        let pair: Vec<String> = [pieces("A", 0), pieces("B", 1)].concat();
        let tokens: Vec<(String, u32)> =
            [bos, eos].into_iter().flatten().map(|t| (t.text.clone(), t.id)).collect();
        let processor = TemplateProcessing::builder()
            .try_single(pieces("A", 0))
            .map_err(|e| malformed(e.clone()))?
            .try_pair(pair)
            .map_err(|e| malformed(e.clone()))?
            .special_tokens(tokens)
            .build()
            .map_err(|e| malformed(e.to_string()))?;
        inner.with_post_processor(Some(processor));
        Ok(())
    }

    /// `chat_template.jinja` beside the tokenizer, else `chat_template` of the config (a text, or a list of named
    /// templates of which `default` is taken).
    fn chat_template(&self, dir: &Path) -> Result<Option<ChatTemplate>, TokenizerError> {
        let path = dir.join("chat_template.jinja");
        let source = match std::fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => self.named_template(),
            Err(source) => return Err(TokenizerError::Read { path, source }),
        };
        let Some(source) = source else { return Ok(None) };
        let mut tokens = Vec::new();
        for name in
            ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"]
        {
            if let Some(text) = self.token_text(name)? {
                tokens.push((name.to_owned(), text.to_owned()));
            }
        }
        ChatTemplate::new(source, tokens)
            .map(Some)
            .map_err(|source| TokenizerError::ChatTemplate { path: dir.to_path_buf(), source })
    }

    fn named_template(&self) -> Option<String> {
        match self.values.get("chat_template")? {
            Value::String(text) => Some(text.clone()),
            Value::Array(list) => {
                let default = list.iter().find(|t| t["name"] == "default")?;
                default["template"].as_str().map(str::to_owned)
            }
            _ => None,
        }
    }

    fn model_max_length(&self) -> Option<usize> {
        let length = self.values.get("model_max_length")?.as_f64()?;
        (1.0..1e9).contains(&length).then_some(length as usize)
    }

    /// The settings that change token ids or prompts.
    fn digest_text(&self) -> String {
        const NAMES: [&str; 5] =
            ["bos_token", "eos_token", "add_bos_token", "add_eos_token", "chat_template"];
        let used: Vec<String> = NAMES
            .iter()
            .filter_map(|name| self.values.get(*name).map(|value| format!("{name}={value}")))
            .collect();
        used.join("\n")
    }
}

/// Union of the end ids that the checkpoint's configs name; one id or a list each.
fn eos_ids(dir: &Path, eos: Option<&SpecialToken>) -> Result<Vec<u32>, TokenizerError> {
    let mut ids: Vec<u32> = Vec::new();
    for file in ["generation_config.json", "config.json"] {
        let config = read_object(&dir.join(file))?.unwrap_or_default();
        match config.get("eos_token_id") {
            Some(Value::Array(list)) => ids.extend(list.iter().filter_map(as_id)),
            Some(value) => ids.extend(as_id(value)),
            None => {}
        }
        if !ids.is_empty() {
            break;
        }
    }
    ids.extend(eos.map(|t| t.id));
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn as_id(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

fn read(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    std::fs::read(path).map_err(|source| TokenizerError::Read { path: path.to_path_buf(), source })
}

/// The object in a JSON file; `None` if there is no such file.
fn read_object(path: &Path) -> Result<Option<Map<String, Value>>, TokenizerError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(TokenizerError::Read { path: path.to_path_buf(), source }),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| TokenizerError::Malformed { path: path.to_path_buf(), detail: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(name: &str) -> Option<PathBuf> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(name);
        path.exists().then_some(path)
    }

    fn write(path: &Path, text: &str) {
        crate::base::atomic::write(path, text.as_bytes()).unwrap();
    }

    /// A byte-level vocabulary of three letters and two special tokens.
    fn tiny(dir: &Path, config: &str) {
        let vocab = r#"{"<s>":0,"</s>":1,"a":2,"b":3,"c":4,"ab":5}"#;
        let added = r#"[{"id":0,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},
            {"id":1,"content":"</s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}]"#;
        let json = format!(
            r#"{{"version":"1.0","truncation":{{"direction":"Right","max_length":2,"strategy":"LongestFirst","stride":0}},
            "padding":null,"added_tokens":{added},"normalizer":null,"pre_tokenizer":null,"post_processor":null,"decoder":null,
            "model":{{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,
            "end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"vocab":{vocab},"merges":["a b"]}}}}"#
        );
        write(&dir.join("tokenizer.json"), &json);
        write(&dir.join("tokenizer_config.json"), config);
    }

    #[test]
    fn bos_is_added_as_the_config_says() {
        let dir = tempfile::tempdir().unwrap();
        tiny(dir.path(), r#"{"bos_token":{"content":"<s>"},"eos_token":"</s>","model_max_length":1e30}"#);
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        // The truncation that tokenizer.json states is not applied.
        assert_eq!(tokenizer.encode("abcab", true).unwrap(), [5, 4, 5]);
        assert_eq!(tokenizer.prefix_token_id(), Some(0));
        assert_eq!(tokenizer.model_max_length(), None);

        tiny(
            dir.path(),
            r#"{"bos_token":"<s>","eos_token":"</s>","add_bos_token":true,"add_eos_token":false}"#,
        );
        let with_bos = Tokenizer::load(dir.path()).unwrap();
        assert_eq!(with_bos.encode("ab", true).unwrap(), [0, 5]);
        assert_eq!(with_bos.encode("ab", false).unwrap(), [5]);
        assert_eq!(with_bos.encode_prompt("<s>ab").unwrap(), [0, 5]);
        assert_eq!(with_bos.encode_prompt("ab").unwrap(), [0, 5]);
        assert_ne!(with_bos.digest(), tokenizer.digest());
    }

    #[test]
    fn end_ids_come_from_all_configs() {
        let dir = tempfile::tempdir().unwrap();
        tiny(dir.path(), r#"{"eos_token":"</s>"}"#);
        write(&dir.path().join("generation_config.json"), r#"{"eos_token_id":[4,3]}"#);
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        assert_eq!(tokenizer.eos_ids(), [1, 3, 4]);
        assert_eq!(tokenizer.prefix_token_id(), Some(1));
    }

    #[test]
    fn broken_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let message = || crate::record::failure::chain(&Tokenizer::load(dir.path()).unwrap_err());
        assert!(message().contains("tokenizer.json"));
        write(&dir.path().join("tokenizer.json"), "{");
        assert!(message().contains("tokenizer.json"));
        tiny(dir.path(), "[1]");
        assert!(message().contains("tokenizer_config.json"));
        tiny(dir.path(), r#"{"bos_token":7}"#);
        assert!(message().contains("bos_token is 7"));
        tiny(dir.path(), r#"{"bos_token":"<bos>"}"#);
        assert!(message().contains("\"<bos>\" is not in the vocabulary"));
        tiny(dir.path(), r#"{"bos_token":"<s>","chat_template":"{% if %}"}"#);
        assert!(message().contains("chat template"));
    }

    /// Reference: `testdata/tokenizer_golden.py`, transformers 5.17.
    #[test]
    fn golden_ids() {
        let golden: Value = serde_json::from_str(include_str!("testdata/tokenizer_golden.json")).unwrap();
        for (name, dir) in [("stories260k", shared("models/stories260k")), ("smollm2", smollm2())] {
            let Some(dir) = dir else {
                eprintln!("skipped: {name} is not there");
                continue;
            };
            let tokenizer = Tokenizer::load(&dir).unwrap();
            let golden = &golden[name];
            for case in golden["texts"].as_array().unwrap() {
                let text = case["text"].as_str().unwrap();
                assert_eq!(serde_json::json!(tokenizer.encode(text, true).unwrap()), case["ids"], "{text:?}");
                assert_eq!(
                    serde_json::json!(tokenizer.encode(text, false).unwrap()),
                    case["plain"],
                    "{text:?}"
                );
                let ids = tokenizer.encode(text, true).unwrap();
                assert_eq!(tokenizer.decode(&ids).unwrap(), case["decoded"], "{text:?}");
                let each: Vec<String> = ids.iter().map(|id| tokenizer.token_text(*id)).collect();
                assert_eq!(serde_json::json!(each), case["token_texts"], "{text:?}");
            }
            if let Some(chat) = golden["chat"].as_str() {
                let messages = [
                    super::super::chat_template::ChatMessage::new("user", " What is 2+2?\n"),
                    super::super::chat_template::ChatMessage::new("assistant", "4 <b>&"),
                ];
                assert_eq!(tokenizer.chat_template().unwrap().render(&messages, true).unwrap(), chat);
            }
        }
    }

    /// SmolLM2's tokenizer as the GGUF import or oracle/convert_smollm2.py writes it.
    fn smollm2() -> Option<PathBuf> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/models/smollm2");
        dir.join("tokenizer.json").exists().then_some(dir)
    }
}
