//! HTTP requests of the whole program: one client configuration, small bodies with a cap, byte ranges.

use std::io::Read;
use std::ops::Range;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::blocking::{Client, RequestBuilder, Response};
use reqwest::header::{CONTENT_RANGE, RANGE, RETRY_AFTER};

use crate::base::progress;
use crate::record::{Classified, FailureClass};

/// Time to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Waits before a server that is busy (429, 503) or broke off is asked again, unless it says how long.
const RETRY_WAITS: [Duration; 3] = if cfg!(test) {
    [Duration::from_millis(1); 3]
} else {
    [Duration::from_secs(1), Duration::from_secs(4), Duration::from_secs(15)]
};
/// The longest wait that a server may ask for.
const MAX_RETRY_WAIT: Duration = Duration::from_secs(60);
/// Cap on bodies that are read whole, in bytes.
const MAX_BODY_BYTES: u64 = 128 << 20;
/// Characters of an error page that are shown.
const MAX_EXCERPT_CHARS: usize = 200;

/// A request that did not bring what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// No HTTP client could be made.
    #[error("no HTTP client could be made")]
    Client(#[source] reqwest::Error),
    /// The server could not be reached, or the connection broke.
    #[error("{url}: the request failed")]
    Request {
        /// The address.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The body could not be read to its end.
    #[error("{url}: the answer broke off")]
    Body {
        /// The address.
        url: String,
        /// Why.
        source: std::io::Error,
    },
    /// The server answered with an error.
    #[error("{url}: HTTP status {status}{}", excerpt(message))]
    Status {
        /// The address.
        url: String,
        /// The status code.
        status: u16,
        /// The start of what the server said.
        message: String,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// The answer is longer than anything that is read whole.
    #[error("{url}: the answer is longer than {MAX_BODY_BYTES} bytes")]
    TooLong {
        /// The address.
        url: String,
    },
    /// The server sent the whole file, or another part, instead of the range.
    #[error("{url}: the server does not serve byte ranges (expected bytes {expected:?}, found {found})")]
    NoRange {
        /// The address.
        url: String,
        /// The range that was asked for.
        expected: Range<u64>,
        /// What came instead.
        found: String,
    },
}

impl HttpError {
    /// The status code, if the server answered with an error.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }
}

impl Classified for HttpError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Request { source, .. } if source.is_builder() => FailureClass::UserConfigError,
            Self::Request { .. }
            | Self::Body { .. }
            | Self::Status { status: 408 | 425 | 429 | 500.., .. } => FailureClass::InfraTransient,
            _ => FailureClass::UserConfigError,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Request { source, .. } if source.is_builder() => {
                "an address begins with http:// or https://"
            }
            Self::Request { .. } | Self::Body { .. } => "check the address and the network, then try again",
            Self::Status { status: 401 | 403, .. } => {
                "the server wants credentials; set HF_TOKEN for the hub"
            }
            Self::Status { status: 429, .. } => {
                "the server limits requests; wait, or set HF_TOKEN for the hub"
            }
            Self::Status { status: 404, .. } => "check the spelling of the address",
            Self::NoRange { .. } => "download the checkpoint and name its directory instead",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// A client whose requests take at most `timeout`, body included. Not to be made or used inside an async runtime.
pub fn client(timeout: Duration) -> Result<Client, HttpError> {
    install_crypto();
    let builder = || {
        Client::builder()
            .user_agent(concat!("day0/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(timeout)
    };
    // A machine without root certificates can still speak plain HTTP, to a server on the same machine for example.
    builder().build().or_else(|_| builder().tls_certs_only([]).build()).map_err(HttpError::Client)
}

/// Chooses ring as the process's TLS arithmetic. Safe to call more than once.
pub fn install_crypto() {
    // An error means that a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Sends a request and returns the answer if its status is a success.
pub fn send(request: RequestBuilder, url: &str) -> Result<Response, HttpError> {
    let response = request
        .send()
        .map_err(|source| HttpError::Request { url: url.to_owned(), source: source.without_url() })?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
    let retry_after = retry_after.map(Duration::from_secs);
    let mut text = Vec::new();
    // The status alone is the error; what the server said is a courtesy.
    let _ = response.take(4096).read_to_end(&mut text);
    let message = String::from_utf8_lossy(&text).into_owned();
    Err(HttpError::Status { url: url.to_owned(), status: status.as_u16(), message, retry_after })
}

/// The whole body of a small file.
pub fn get(client: &Client, url: &str, token: Option<&str>) -> Result<Vec<u8>, HttpError> {
    retrying(url, || {
        let response = send(authorized(client.get(url), token), url)?;
        read_body(response, url, MAX_BODY_BYTES)
    })
}

/// Asks again where the server is busy or broke off; every other error is final.
fn retrying<T>(url: &str, ask: impl Fn() -> Result<T, HttpError>) -> Result<T, HttpError> {
    for default in RETRY_WAITS {
        let error = match ask() {
            Err(error) => error,
            answer => return answer,
        };
        let wait = match &error {
            HttpError::Status { status: 429 | 503, retry_after, .. } => retry_after.unwrap_or(default),
            HttpError::Body { .. } => default,
            _ => return Err(error),
        };
        if wait > MAX_RETRY_WAIT {
            return Err(error);
        }
        progress::detail(&format!("{url}: asking again in {} s", wait.as_secs()));
        std::thread::sleep(wait);
    }
    ask()
}

/// Bytes `range` of a file, fewer where the file ends before, and the size of the whole file. Never reads more than
/// the range, whatever the server sends.
pub fn get_range(
    client: &Client,
    url: &str,
    token: Option<&str>,
    range: Range<u64>,
) -> Result<(Vec<u8>, u64), HttpError> {
    retrying(url, || get_range_once(client, url, token, &range))
}

fn get_range_once(
    client: &Client,
    url: &str,
    token: Option<&str>,
    range: &Range<u64>,
) -> Result<(Vec<u8>, u64), HttpError> {
    let header = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
    let response = send(authorized(client.get(url), token).header(RANGE, header), url)?;
    let refused = |found: String| HttpError::NoRange { url: url.to_owned(), expected: range.clone(), found };
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return Err(refused(format!("status {}", response.status().as_u16())));
    }
    let content_range = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or("");
    let Some((first, last, total)) = parse_content_range(content_range) else {
        return Err(refused(format!("Content-Range '{content_range}'")));
    };
    let expected_last = range.end.min(total).saturating_sub(1);
    if (first, last) != (range.start, expected_last) {
        return Err(refused(format!("Content-Range '{content_range}'")));
    }
    let body = read_body(response, url, last - first + 1)?;
    if body.len() as u64 != last - first + 1 {
        let source = std::io::ErrorKind::UnexpectedEof.into();
        return Err(HttpError::Body { url: url.to_owned(), source });
    }
    Ok((body, total))
}

fn authorized(request: RequestBuilder, token: Option<&str>) -> RequestBuilder {
    match token {
        Some(token) => request.bearer_auth(token),
        None => request,
    }
}

fn read_body(response: Response, url: &str, max_bytes: u64) -> Result<Vec<u8>, HttpError> {
    let mut body = Vec::new();
    response
        .take(max_bytes + 1)
        .read_to_end(&mut body)
        .map_err(|source| HttpError::Body { url: url.to_owned(), source })?;
    if body.len() as u64 > max_bytes {
        return Err(HttpError::TooLong { url: url.to_owned() });
    }
    Ok(body)
}

/// `bytes first-last/total` (RFC 9110, section 14.4), with first ≤ last < total.
fn parse_content_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, total) = (first.parse().ok()?, last.parse().ok()?, total.parse().ok()?);
    (first <= last && last < total).then_some((first, last, total))
}

/// The start of an error page, in one line; empty when it is no text worth showing.
fn excerpt(message: &str) -> String {
    let text = message.trim();
    if text.is_empty() || text.starts_with('<') {
        return String::new();
    }
    let line: String = text.chars().take(MAX_EXCERPT_CHARS).flat_map(char::escape_debug).collect();
    format!(": {line}")
}

#[cfg(test)]
mod tests {
    use super::super::test_server::{Reply, TestServer};
    use super::*;

    fn fetch(server: &TestServer, range: Range<u64>) -> Result<(Vec<u8>, u64), HttpError> {
        get_range(&client(Duration::from_secs(5)).unwrap(), &server.url("/f"), Some("secret"), range)
    }

    #[test]
    fn ranges() {
        let server = TestServer::start(|request| {
            assert_eq!(request.header("authorization"), Some("Bearer secret"));
            Reply::range(request, b"0123456789")
        });
        assert_eq!(fetch(&server, 2..5).unwrap(), (b"234".to_vec(), 10));
        assert_eq!(fetch(&server, 8..500).unwrap(), (b"89".to_vec(), 10));
    }

    #[test]
    fn server_without_ranges_is_not_downloaded() {
        let server = TestServer::start(|_| Reply::ok(vec![0; 1 << 20]));
        let error = fetch(&server, 0..8).unwrap_err();
        assert!(matches!(&error, HttpError::NoRange { found, .. } if found == "status 200"), "{error}");
        let lying =
            TestServer::start(|_| Reply::new(206, b"0123".to_vec()).header("Content-Range", "bytes 4-7/8"));
        assert!(matches!(fetch(&lying, 0..4), Err(HttpError::NoRange { .. })));
        let short =
            TestServer::start(|_| Reply::new(206, b"01".to_vec()).header("Content-Range", "bytes 0-3/8"));
        assert!(matches!(fetch(&short, 0..4), Err(HttpError::Body { .. })));
        let long =
            TestServer::start(|_| Reply::new(206, vec![0; 100]).header("Content-Range", "bytes 0-3/8"));
        assert!(matches!(fetch(&long, 0..4), Err(HttpError::TooLong { .. })));
    }

    #[test]
    fn statuses_are_classified() {
        for (status, class) in [
            (401, FailureClass::UserConfigError),
            (404, FailureClass::UserConfigError),
            (429, FailureClass::InfraTransient),
            (503, FailureClass::InfraTransient),
        ] {
            let server = TestServer::start(move |_| Reply::new(status, b"{\"error\":\"no\"}".to_vec()));
            let error = fetch(&server, 0..8).unwrap_err();
            assert_eq!(error.failure_class(), class);
            assert!(error.to_string().contains("no"), "{error}");
        }
        let client = client(Duration::from_secs(1)).unwrap();
        assert_eq!(
            get(&client, "http://127.0.0.1:1/x", None).unwrap_err().failure_class(),
            FailureClass::InfraTransient
        );
        assert_eq!(
            get(&client, "no address", None).unwrap_err().failure_class(),
            FailureClass::UserConfigError
        );
    }

    /// A server that is busy, then breaks off, then answers.
    #[test]
    fn busy_servers_are_asked_again() {
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let server = TestServer::start(move |request| {
            match asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0 => Reply::new(429, b"slow down".to_vec()).header("Retry-After", "0"),
                1 => Reply::range(request, b"0123456789").broken_off(1),
                _ => Reply::range(request, b"0123456789"),
            }
        });
        assert_eq!(fetch(&server, 2..5).unwrap(), (b"234".to_vec(), 10));
        assert_eq!(server.seen().len(), 3);
        // A server that wants to be left alone for an hour is not waited for.
        let server = TestServer::start(|_| Reply::new(429, Vec::new()).header("Retry-After", "3600"));
        let error = fetch(&server, 0..8).unwrap_err();
        assert_eq!(error.failure_class(), FailureClass::InfraTransient);
        assert!(error.hint().unwrap().contains("limits requests"));
        assert_eq!(server.seen().len(), 1);
        let server = TestServer::start(|_| Reply::new(404, Vec::new()));
        assert!(fetch(&server, 0..8).is_err());
        assert_eq!(server.seen().len(), 1);
    }

    #[test]
    fn content_ranges() {
        assert_eq!(parse_content_range("bytes 0-7/100"), Some((0, 7, 100)));
        for bad in ["", "bytes */100", "bytes 7-0/100", "bytes 0-100/100", "bytes 0-7/*", "items 0-1/2"] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
