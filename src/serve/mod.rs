//! Layer 6: the OpenAI-compatible server.

mod backend;
mod complete;
mod error;
mod prompt;
mod queue;
mod request;
mod response;
mod routes;
mod server;
mod text;
#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

pub use backend::{Backend, BackendError};
pub use server::{ServeError, Server, ServerHandle, ServerOptions};
pub use text::TextCodec;
