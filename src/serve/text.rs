//! What the server and the probes need from a tokenizer.

/// Text to token ids and back.
pub trait TextCodec: Send + Sync {
    /// Token ids of `text`, with the tokenizer's own special tokens (BOS) if `add_special`.
    fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, String>;

    /// Text of `ids`, special tokens included.
    fn decode(&self, ids: &[u32]) -> String;

    /// Text of one token as it stands alone; bytes that are no UTF-8 become U+FFFD.
    fn token_text(&self, id: u32) -> String;

    /// Ids that end a generation.
    fn eos_ids(&self) -> Vec<u32>;

    /// Text of the begin-of-sequence token.
    fn bos_token(&self) -> Option<String>;

    /// Text of the end-of-sequence token.
    fn eos_token(&self) -> Option<String>;

    /// The chat template, in Jinja.
    fn chat_template(&self) -> Option<String>;
}
