//! Scoring over any OpenAI-compatible `/v1/completions` that returns log-probs of echoed prompts (day0, vLLM), and over
//! SGLang's own interface (`sglang`).
//!
//! A request is sent as lm-eval's `local-completions` sends it: token ids, `echo`, `logprobs` 1, `max_tokens` 1; the
//! generated token is dropped (day0's own server is asked for none). Every answer is checked before it counts (`answer`).

pub(crate) mod answer;
mod client;
#[cfg(test)]
mod engine_tests;
mod http;
mod scorer;
mod sglang;
#[cfg(test)]
pub(crate) mod stand_in;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

pub use client::EndpointClient;
pub(crate) use client::ServedModel;
pub use http::{ApiKey, Gone, RetryPolicy};
pub use scorer::EndpointScorer;
pub(crate) use scorer::read_fingerprint;

pub(crate) use http::CallError;

use crate::record::{Classified, FailureClass};

/// How to reach an endpoint.
#[derive(Debug, Clone)]
pub struct EndpointOptions {
    /// Address, with or without `/v1`.
    pub url: String,
    /// Model to ask for; `None`: the first one listed.
    pub model: Option<String>,
    /// Bearer token.
    pub api_key: Option<ApiKey>,
    /// Prompts in one request.
    pub batch_size: usize,
    /// Requests at once.
    pub concurrency: usize,
    /// Longest time a request may take, queueing included.
    pub timeout: Duration,
    /// When to try again.
    pub retry: RetryPolicy,
    /// Set when the server's process ends, where that is known.
    pub gone: Option<Gone>,
    /// What the server computes on, where that is known and it does not say so itself.
    pub device: Option<String>,
}

impl EndpointOptions {
    /// Defaults for the endpoint at `url`.
    pub fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            model: None,
            api_key: None,
            batch_size: 16,
            concurrency: 4,
            timeout: Duration::from_secs(600),
            retry: RetryPolicy::default(),
            gone: None,
            device: None,
        }
    }
}

/// An endpoint that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The address is none.
    #[error("endpoint {url:?}: {why}")]
    BadUrl {
        /// As given.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The file with the API key cannot be read.
    #[error("{}: cannot be read", path.display())]
    ReadKey {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The variable with the API key is not set.
    #[error("environment variable {variable} is not set")]
    NoKey {
        /// Its name.
        variable: String,
    },
    /// The HTTP client cannot be set up.
    #[error("cannot set up the HTTP client")]
    Client {
        /// Why.
        source: reqwest::Error,
    },
    /// The list of models cannot be had.
    #[error("{url}: {message}")]
    Unreachable {
        /// Address.
        url: String,
        /// HTTP status, if there was an answer.
        status: Option<u16>,
        /// What happened.
        message: String,
    },
    /// The endpoint does not serve the model.
    #[error("{url} does not serve {model:?}; it serves {}", served.join(", "))]
    NoSuchModel {
        /// Address.
        url: String,
        /// Asked for.
        model: String,
        /// What it lists.
        served: Vec<String>,
    },
}

impl EndpointError {
    /// HTTP status, if the endpoint answered.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Unreachable { status, .. } => *status,
            _ => None,
        }
    }
}

impl Classified for EndpointError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::BadUrl { .. } | Self::ReadKey { .. } | Self::NoKey { .. } | Self::NoSuchModel { .. } => {
                FailureClass::UserConfigError
            }
            Self::Client { .. } => FailureClass::Unknown,
            Self::Unreachable { status: Some(401 | 403 | 429), .. } => FailureClass::EvalJudgeFailed,
            Self::Unreachable { .. } => FailureClass::DeploymentHealthFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::BadUrl { .. } => {
                Some("give the server's address, e.g. --endpoint http://127.0.0.1:8000".to_owned())
            }
            Self::Unreachable { status: Some(401 | 403), .. } => Some("give the API key".to_owned()),
            Self::Unreachable { url, .. } => {
                Some(format!("check that the server is up: curl {url}/v1/models"))
            }
            _ => None,
        }
    }
}
