//! Layer 6: the OpenAI-compatible server.
//!
//! A request goes from its handler (`routes`) as a job to the engine's thread (`worker`), which answers by events;
//! they become one answer (`output`, `response`, `chat_response`) or a stream (`stream`).

mod access;
mod active;
mod admission;
mod backend;
mod chat;
mod chat_response;
mod choice_text;
mod connections;
mod error;
mod fields;
mod job;
mod metrics;
mod output;
mod params;
mod prompt;
mod request;
mod response;
mod routes;
mod server;
mod stream;
mod text;
mod tokenizer_routes;
mod worker;
mod write_deadline;
#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

pub use backend::{Backend, BackendError, Generation, OnScored, RequestFailed};
pub use server::{ServeError, Server, ServerHandle, ServerOptions};
pub use text::TextCodec;
