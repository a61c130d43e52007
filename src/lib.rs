//! day0 decides whether a quantized language model may be published: it quantizes a checkpoint, verifies what was
//! written, serves both versions, evaluates them on the same requests and compares them item by item. The answer is
//! ACCEPT, REGRESSION, ANOMALOUS or INFEASIBLE, with the evidence in one run directory.
//!
//! # Code map
//!
//! Rows are layers; a module uses only rows above it, or modules to its left in its row.
//!
//! | layer | modules | holds |
//! |---|---|---|
//! | 0 | [`base`] | units, digests, atomic writes, environment, progress, statistics |
//! | 1 | [`record`] | what stages exchange: records, `Finding`, verdict, fold |
//! | 2 | [`checkpoint`], [`device`] | safetensors, GGUF, hub, quantization dialects; CPU features, GPU probe |
//! | 3 | [`ops`], [`dense`], [`recipe`] | one operation a file; any source as dense rows; recipes as typed schemes |
//! | 4 | [`model`] | decoder graph, quantized linears, tokenizer, chat template |
//! | 5 | [`exec`], [`scan`], [`quantize`], [`engine`] | units and ledger; verifier; quantizer; scoring and generation |
//! | 6 | [`serve`], [`suite`] | the OpenAI-compatible server; tasks, prompts, data sets |
//! | 7 | [`eval`] | requests to log-likelihoods to metrics to sample files |
//! | 8 | [`gate`], [`ready`] | pure decisions, which use [`base`] and [`record`] only; measuring for the readiness gates |
//! | 9 | [`report`], [`release`] | Markdown; the conductor |
//! | 10 | [`cli`] | the command line |

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::disallowed_methods))]

pub mod base;
pub mod record;
pub mod checkpoint;
pub mod device;
pub mod ops;
pub mod dense;
pub mod recipe;
pub mod model;
pub mod exec;
pub mod scan;
pub mod quantize;
pub mod engine;
pub mod serve;
pub mod suite;
pub mod eval;
pub mod gate;
pub mod ready;
pub mod report;
pub mod release;
pub mod cli;
