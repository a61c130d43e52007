//! HTTP calls with bounded time, bounded answers and retries.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::blocking::{Client, RequestBuilder};
use reqwest::{Url, redirect};
use serde_json::Value;

use super::EndpointError;
use crate::base::{env_vars, interrupt};
use crate::checkpoint::http::install_crypto;
use crate::record::eval::ItemError;
use crate::record::failure::chain;

/// Largest answer read, in bytes: a batch of long prompts with log-probs stays far below.
const MAX_ANSWER_BYTES: u64 = 1 << 30;
/// A `Retry-After` beyond this is not waited for in full.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A bearer token, kept out of debug output.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// The key as text; surrounding white space is dropped.
    pub fn new(key: &str) -> Self {
        Self(key.trim().to_owned())
    }

    /// The key in a file.
    pub fn from_file(path: &Path) -> Result<Self, EndpointError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| EndpointError::ReadKey { path: path.to_path_buf(), source })?;
        Ok(Self::new(&text))
    }

    /// The key in the environment variable `name`.
    pub fn from_env(name: &str) -> Result<Self, EndpointError> {
        let key = env_vars::get(name).ok_or_else(|| EndpointError::NoKey { variable: name.to_owned() })?;
        Ok(Self::new(&key))
    }

    /// The key itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// When to try again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries after the first.
    pub retries: u32,
    /// Delay before the first retry; it doubles with each.
    pub base_delay: Duration,
    /// Longest delay.
    pub max_delay: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { retries: 4, base_delay: Duration::from_secs(1), max_delay: Duration::from_secs(30) }
    }
}

impl RetryPolicy {
    /// Delay before retry number `retry` (from 0): what the server asks for, else exponential backoff of which a
    /// random half is taken, so that clients do not come back together.
    fn delay(&self, retry: u32, retry_after: Option<Duration>) -> Duration {
        if let Some(asked) = retry_after {
            return asked.min(MAX_RETRY_AFTER);
        }
        let full = self.base_delay.saturating_mul(2u32.saturating_pow(retry)).min(self.max_delay);
        full.mul_f64(rand::random_range(0.5..=1.0))
    }
}

/// A call that gave no usable answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CallError {
    pub status: Option<u16>,
    /// Whether the same call may succeed later.
    pub retryable: bool,
    pub message: String,
    retry_after: Option<Duration>,
}

impl CallError {
    /// An answer that came but cannot be used.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self { status: Some(200), retryable: false, message: message.into(), retry_after: None }
    }

    /// Whether the server refuses this client.
    pub fn is_refusal(&self) -> bool {
        matches!(self.status, Some(401 | 403 | 429))
    }
}

impl From<&CallError> for ItemError {
    fn from(error: &CallError) -> Self {
        // 429 was retried; a client that is still limited is being refused, which only the user can settle.
        let transient = error.retryable && !error.is_refusal();
        Self { status: error.status, transient, message: error.message.clone() }
    }
}

/// Whether the server's process has ended: then it is not asked again and again.
#[derive(Debug, Clone, Default)]
pub struct Gone(Arc<AtomicBool>);

impl Gone {
    /// It has.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it has.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Calls to one server.
#[derive(Debug)]
pub(crate) struct Http {
    client: Client,
    /// Address without path, e.g. `http://host:8000`, or with the prefix before `/v1`.
    root: String,
    key: Option<ApiKey>,
    retry: RetryPolicy,
    timeout: Duration,
    gone: Option<Gone>,
}

impl Http {
    /// A client for `url`, which may end in `/v1` or `/v1/completions`.
    pub fn new(
        url: &str,
        key: Option<ApiKey>,
        retry: RetryPolicy,
        timeout: Duration,
    ) -> Result<Self, EndpointError> {
        let root = root_of(url)?;
        install_crypto();
        let builder = || {
            let builder = Client::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                // A redirected POST becomes a GET, and the key would go to another server.
                .redirect(redirect::Policy::none())
                .user_agent(concat!("day0/", env!("CARGO_PKG_VERSION")));
            if is_loopback(&root) { builder.no_proxy() } else { builder }
        };
        // A machine without root certificates can still speak plain HTTP, to a server of its own for example.
        let client = builder().build().or_else(|_| builder().tls_certs_only([]).build());
        let client = client.map_err(|source| EndpointError::Client { source })?;
        Ok(Self {
            client,
            root: root.as_str().trim_end_matches('/').to_owned(),
            key,
            retry,
            timeout,
            gone: None,
        })
    }

    /// The server's address without `/v1`.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// One GET, without retries.
    pub fn get(&self, path: &str, timeout: Duration) -> Result<Vec<u8>, CallError> {
        let request = self.client.get(format!("{}{path}", self.root)).timeout(timeout);
        self.send(request)
    }

    /// One GET of a JSON document.
    pub fn get_json(&self, path: &str, timeout: Duration) -> Result<Value, CallError> {
        let bytes = self.get(path, timeout)?;
        serde_json::from_slice(&bytes).map_err(|e| CallError::malformed(format!("{path}: not JSON: {e}")))
    }

    /// A POST, tried again after connection errors, timeouts, 408, 429 and 5xx.
    pub fn post(&self, path: &str, body: &Value) -> Result<Vec<u8>, CallError> {
        let mut retry = 0;
        loop {
            let request = self.client.post(format!("{}{path}", self.root)).timeout(self.timeout).json(body);
            let error = match self.send(request) {
                Ok(bytes) => return Ok(bytes),
                Err(error) => error,
            };
            if !error.retryable || retry >= self.retry.retries || self.is_gone() {
                return Err(error);
            }
            if !self.sleep(self.retry.delay(retry, error.retry_after)) {
                return Err(error);
            }
            retry += 1;
        }
    }

    /// One POST without retries whose answer is handed out as it comes: `each` gets the data of its server-sent events
    /// up to `[DONE]`.
    pub fn post_stream(&self, path: &str, body: &Value, each: &mut dyn FnMut(&str)) -> Result<(), CallError> {
        let request = self.client.post(format!("{}{path}", self.root)).timeout(self.timeout).json(body);
        let request = match &self.key {
            Some(key) => request.bearer_auth(key.reveal()),
            None => request,
        };
        let failed =
            |message: String| CallError { status: None, retryable: false, message, retry_after: None };
        let answer = request.send().map_err(|e| failed(chain(&e.without_url())))?;
        let status = answer.status().as_u16();
        let mut lines = BufReader::new(answer.take(MAX_ANSWER_BYTES)).lines();
        if status != 200 {
            let text: Vec<String> = lines.map_while(Result::ok).collect();
            let message = error_message(status, text.join("\n").as_bytes());
            return Err(CallError { status: Some(status), ..failed(message) });
        }
        while let Some(line) = lines.next().transpose().map_err(|e| failed(chain(&e)))? {
            match line.strip_prefix("data:").map(str::trim_start) {
                Some("[DONE]") => return Ok(()),
                Some(data) => each(data),
                None => {}
            }
        }
        Err(CallError::malformed("the stream ended without [DONE]"))
    }

    /// Makes calls end early once the server's process has ended.
    pub fn watching(self, gone: Option<Gone>) -> Self {
        Self { gone, ..self }
    }

    pub fn is_gone(&self) -> bool {
        self.gone.as_ref().is_some_and(Gone::is_set)
    }

    /// Waits; `false` when a signal asks to stop, or nobody is left to be asked.
    fn sleep(&self, mut left: Duration) -> bool {
        const STEP: Duration = Duration::from_millis(100);
        let go_on = || interrupt::received().is_none() && !self.is_gone();
        while !left.is_zero() && go_on() {
            std::thread::sleep(left.min(STEP));
            left = left.saturating_sub(STEP);
        }
        go_on()
    }

    fn send(&self, request: RequestBuilder) -> Result<Vec<u8>, CallError> {
        let request = match &self.key {
            Some(key) => request.bearer_auth(key.reveal()),
            None => request,
        };
        let lost = |e: &dyn std::error::Error| CallError {
            status: None,
            retryable: true,
            message: chain(e),
            retry_after: None,
        };
        let answer = request.send().map_err(|e| lost(&e.without_url()))?;
        let status = answer.status().as_u16();
        let retry_after = answer
            .headers()
            .get(reqwest::header::RETRY_AFTER)
            .and_then(|v| v.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let mut bytes = Vec::new();
        answer.take(MAX_ANSWER_BYTES + 1).read_to_end(&mut bytes).map_err(|e| lost(&e))?;
        if bytes.len() as u64 > MAX_ANSWER_BYTES {
            return Err(CallError::malformed(format!("answer of more than {MAX_ANSWER_BYTES} bytes")));
        }
        if status == 200 {
            return Ok(bytes);
        }
        let retryable = matches!(status, 408 | 425 | 429 | 500..=599);
        Err(CallError {
            status: Some(status),
            retryable,
            message: error_message(status, &bytes),
            retry_after,
        })
    }
}

/// The message of an OpenAI-style error, else the beginning of the body.
fn error_message(status: u16, body: &[u8]) -> String {
    const SHOWN_CHARS: usize = 300;
    let json: Option<Value> = serde_json::from_slice(body).ok();
    let text = json
        .as_ref()
        .and_then(|v| {
            [&v["error"]["message"], &v["message"], &v["error"], &v["detail"]]
                .into_iter()
                .find_map(Value::as_str)
        })
        .map_or_else(|| String::from_utf8_lossy(body).into_owned(), str::to_owned);
    let text: String = text.trim().chars().take(SHOWN_CHARS).collect();
    format!("status {status}: {text}")
}

fn root_of(url: &str) -> Result<Url, EndpointError> {
    let bad = |why: &str| EndpointError::BadUrl { url: url.to_owned(), why: why.to_owned() };
    let trimmed = url.trim_end_matches('/');
    let trimmed = trimmed.strip_suffix("/completions").unwrap_or(trimmed);
    let trimmed = trimmed.strip_suffix("/v1").unwrap_or(trimmed);
    let parsed = Url::parse(trimmed).map_err(|e| bad(&e.to_string()))?;
    if !matches!(parsed.scheme(), "http" | "https") || !parsed.has_host() {
        return Err(bad("expected http://host:port or https://host"));
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        // The address is written into records.
        return Err(EndpointError::BadUrl {
            url: "(hidden)".to_owned(),
            why: "contains credentials".to_owned(),
        });
    }
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(bad("expected no query and no fragment"));
    }
    Ok(parsed)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for url in
            ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/", "http://h:1/v1/completions"]
        {
            assert_eq!(root_of(url).unwrap().as_str(), "http://h:1/", "{url}");
        }
        assert_eq!(root_of("https://h/gw/v1").unwrap().as_str(), "https://h/gw");
        for url in ["", "h:1", "file:///x", "http://", "ftp://h", "http://u:p@h", "http://h/?k=1"] {
            assert!(root_of(url).is_err(), "{url}");
        }
        assert!(!root_of("http://u:secret@h").unwrap_err().to_string().contains("secret"));
        assert!(is_loopback(&root_of("http://[::1]:80").unwrap()));
        assert!(is_loopback(&root_of("http://127.0.0.1:80").unwrap()));
        assert!(!is_loopback(&root_of("http://10.0.0.1:80").unwrap()));
    }

    #[test]
    fn delays() {
        let policy = RetryPolicy::default();
        for (retry, full) in [(0, 1.0), (1, 2.0), (2, 4.0), (10, 30.0), (60, 30.0)] {
            let delay = policy.delay(retry, None).as_secs_f64();
            assert!((0.5 * full..=full).contains(&delay), "{retry}: {delay}");
        }
        assert_eq!(policy.delay(3, Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(policy.delay(0, Some(Duration::from_secs(1 << 40))), MAX_RETRY_AFTER);
    }

    #[test]
    fn the_key_is_not_shown() {
        assert_eq!(format!("{:?}", ApiKey::new(" abc\n")), "ApiKey(…)");
        assert_eq!(ApiKey::new(" abc\n").reveal(), "abc");
    }
}
