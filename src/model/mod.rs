//! Layer 4: decoder graph, architectures, quantized linears, tokenizer, chat template.

pub mod chat_template;
pub mod jinja;
pub mod tokenizer;
