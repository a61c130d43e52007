//! Layer 2: checkpoints on disk and on the hub: headers, shards, GGUF import, quantization dialects.

pub mod quant_args;
