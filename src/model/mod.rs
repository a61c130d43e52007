//! Layer 4: decoder graph, architectures, quantized linears, tokenizer, chat template.
