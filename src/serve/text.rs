//! What the server and the probes need from a tokenizer.

use crate::model::chat_template::ChatMessage;
use crate::model::tokenizer::Tokenizer;
use crate::record::failure::chain;

/// Text to token ids and back.
pub trait TextCodec: Send + Sync {
    /// Token ids of `text`, with the tokenizer's own special tokens (BOS) if `add_special`.
    fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, String>;

    /// Text of `ids`, special tokens included.
    fn decode(&self, ids: &[u32]) -> String;

    /// Text of one token as it stands alone; bytes that are no UTF-8 become U+FFFD.
    fn token_text(&self, id: u32) -> String;

    /// Number of ids the tokenizer knows.
    fn vocab_size(&self) -> usize;

    /// Ids that end a generation.
    fn eos_ids(&self) -> Vec<u32>;

    /// Text of the begin-of-sequence token.
    fn bos_token(&self) -> Option<String>;

    /// Text of the end-of-sequence token.
    fn eos_token(&self) -> Option<String>;

    /// The chat template, in Jinja.
    fn chat_template(&self) -> Option<String>;

    /// The prompt for `messages`; `None` without a template.
    fn render_chat(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Option<Result<String, String>>;
}

impl TextCodec for Tokenizer {
    fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, String> {
        Self::encode(self, text, add_special).map_err(|e| chain(&e))
    }

    fn decode(&self, ids: &[u32]) -> String {
        // Ids are checked against the vocabulary before they come here; a decoder that still fails has no text.
        Self::decode(self, ids).unwrap_or_default()
    }

    fn token_text(&self, id: u32) -> String {
        Self::token_text(self, id)
    }

    fn vocab_size(&self) -> usize {
        Self::vocab_size(self)
    }

    fn eos_ids(&self) -> Vec<u32> {
        Self::eos_ids(self).to_vec()
    }

    fn bos_token(&self) -> Option<String> {
        self.bos().map(|t| t.text.clone())
    }

    fn eos_token(&self) -> Option<String> {
        self.eos().map(|t| t.text.clone())
    }

    fn chat_template(&self) -> Option<String> {
        Self::chat_template(self).map(|t| t.source().to_owned())
    }

    fn render_chat(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Option<Result<String, String>> {
        let template = Self::chat_template(self)?;
        Some(template.render(messages, add_generation_prompt).map_err(|e| chain(&e)))
    }
}
