//! The headers of a checkpoint on a web server, read by byte ranges: no weights are downloaded.
//!
//! The address is a `.safetensors` file, a directory that holds a checkpoint, or the page of a model on the hub
//! (`https://huggingface.co/org/name[/tree/revision]`).

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rayon::prelude::*;
use reqwest::blocking::Client;
use serde_json::Value;

use super::error::CheckpointError;
use super::files::{CONFIG, INDEX, SINGLE};
use super::header::{self, Header, HeaderError, LENGTH_BYTES};
use super::http::{self, HttpError};
use super::hub_env::HubEnv;
use super::index;
use crate::record::scan::Transfer;
use crate::record::{Classified, FailureClass};

/// Bytes fetched at first: whole headers of small models. What is missing of a longer one is fetched exactly, so that a
/// scan reads little more than the headers.
const FIRST_BYTES: u64 = 32 << 10;
/// Time for one request, body included.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A checkpoint whose headers are known and validated, and nothing else.
#[derive(Debug, Clone)]
pub struct RemoteCheckpoint {
    /// The address of the directory, with a trailing slash.
    pub url: String,
    /// `config.json`, when the server has one.
    pub config: Option<Value>,
    /// The weight files, in the order of their names.
    pub shards: Vec<RemoteShard>,
    /// What was read for it.
    pub transfer: Transfer,
}

/// One weight file.
#[derive(Debug, Clone)]
pub struct RemoteShard {
    /// File name within the directory.
    pub file: String,
    /// Size of the file in bytes.
    pub file_bytes: u64,
    /// Its header.
    pub header: Header,
}

/// A remote checkpoint that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// A request failed.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// There are no weights at the address.
    #[error("{url}: no weights, expected {SINGLE} or {INDEX}")]
    NoWeights {
        /// The directory.
        url: String,
    },
    /// A header is invalid.
    #[error("{url}")]
    Header {
        /// The file.
        url: String,
        /// What is wrong, and with which tensor.
        source: HeaderError,
    },
    /// The file had another size at the second request.
    #[error("{url}: {first} bytes at the first request and {second} at the second, expected one file")]
    Changed {
        /// The file.
        url: String,
        /// Size by the first answer.
        first: u64,
        /// Size by the second answer.
        second: u64,
    },
    /// The index or the config is invalid; the message names the address.
    #[error(transparent)]
    Content(#[from] CheckpointError),
}

impl Classified for RemoteError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Http(error) => error.failure_class(),
            Self::Content(error) => error.failure_class(),
            Self::Changed { .. } => FailureClass::InfraTransient,
            _ => FailureClass::UserConfigError,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Http(error) => error.hint(),
            Self::Content(error) => error.hint(),
            Self::NoWeights { .. } => Some(
                "name a directory with safetensors files, a .safetensors file, or a model's page on the hub"
                    .to_owned(),
            ),
            Self::Header { .. } => Some("the file on the server is damaged or incomplete".to_owned()),
            Self::Changed { .. } => Some("the file was replaced meanwhile; scan it again".to_owned()),
        }
    }
}

/// Whether MODEL is an address.
pub fn is_url(model: &str) -> bool {
    model.starts_with("https://") || model.starts_with("http://")
}

/// The address of a model on the hub, for a scan of its headers.
pub fn hub_url(id: &super::hub::HubId, env: &HubEnv) -> String {
    format!("{}/{}/tree/{}", env.endpoint, id.repo, id.revision.as_deref().unwrap_or("main"))
}

/// Reads the headers of every weight file, and `config.json` where there is one.
pub fn open(url: &str) -> Result<RemoteCheckpoint, RemoteError> {
    open_with(url, &HubEnv::from_env())
}

/// [`open`] with the hub's address and token given.
pub(crate) fn open_with(url: &str, env: &HubEnv) -> Result<RemoteCheckpoint, RemoteError> {
    let client = http::client(TIMEOUT)?;
    let (base, single) = locate(url, &env.endpoint);
    let token = env.token_for(&base).map(str::to_owned);
    let access = Access { client, token, requests: AtomicU64::new(0), bytes_read: AtomicU64::new(0) };
    let config = access.optional_json(&format!("{base}{CONFIG}"))?;
    let (names, map) = match single {
        Some(file) => (vec![file], None),
        None => access.weight_files(&base)?,
    };
    let shards: Vec<RemoteShard> =
        names.par_iter().map(|file| access.shard(&base, file)).collect::<Result<_, _>>()?;
    if let Some(map) = map {
        let held = |s: &RemoteShard| s.header.tensors.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
        let held: Vec<_> = shards.iter().map(|s| (s.file.as_str(), held(s))).collect();
        index::check(&map, held.iter().map(|(f, names)| (*f, names.iter().map(String::as_str).collect())))?;
    }
    let transfer = Transfer {
        requests: access.requests.into_inner(),
        bytes_read: access.bytes_read.into_inner(),
        weight_file_bytes: shards.iter().map(|s| s.file_bytes).sum(),
    };
    Ok(RemoteCheckpoint { url: base, config, shards, transfer })
}

/// The directory with a trailing slash, and the file when the address names one.
fn locate(url: &str, endpoint: &str) -> (String, Option<String>) {
    let url = url.split(['?', '#']).next().unwrap_or(url);
    if url.ends_with(".safetensors")
        && let Some((dir, file)) = url.rsplit_once('/')
    {
        return (format!("{}/", dir.replace("/blob/", "/resolve/")), Some(file.to_owned()));
    }
    let url = url.trim_end_matches('/');
    let page = url.strip_prefix(endpoint.trim_end_matches('/')).filter(|rest| rest.starts_with('/'));
    if let Some(page) = page {
        let parts: Vec<&str> = page.trim_matches('/').split('/').collect();
        match parts.as_slice() {
            [_, _] => return (format!("{url}/resolve/main/"), None),
            [_, _, "tree", ..] => return (format!("{}/", url.replacen("/tree/", "/resolve/", 1)), None),
            _ => {}
        }
    }
    (format!("{url}/"), None)
}

/// A client with the token that belongs to the address, which counts what it reads.
struct Access {
    client: Client,
    token: Option<String>,
    requests: AtomicU64,
    bytes_read: AtomicU64,
}

impl Access {
    fn count<T>(&self, answer: Result<T, HttpError>, bytes: impl Fn(&T) -> usize) -> Result<T, HttpError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if let Ok(body) = &answer {
            self.bytes_read.fetch_add(bytes(body) as u64, Ordering::Relaxed);
        }
        answer
    }

    /// A small file, or `None` when the server has none.
    fn optional(&self, url: &str) -> Result<Option<Vec<u8>>, HttpError> {
        match self.count(http::get(&self.client, url, self.token.as_deref()), Vec::len) {
            Ok(body) => Ok(Some(body)),
            Err(error) if error.status() == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn optional_json(&self, url: &str) -> Result<Option<Value>, RemoteError> {
        let Some(body) = self.optional(url)? else { return Ok(None) };
        let value = crate::base::json::parse_unique(&body)
            .map_err(|source| CheckpointError::Json { path: Path::new(url).to_path_buf(), source })?;
        Ok(Some(value))
    }

    fn weight_files(&self, base: &str) -> Result<(Vec<String>, Option<index::WeightMap>), RemoteError> {
        let url = format!("{base}{INDEX}");
        let Some(text) = self.optional(&url)? else { return Ok((vec![SINGLE.to_owned()], None)) };
        let map = index::parse(Path::new(&url), &text)?;
        let shards: BTreeSet<String> = map.values().cloned().collect();
        Ok((shards.into_iter().collect(), Some(map)))
    }

    fn shard(&self, base: &str, file: &str) -> Result<RemoteShard, RemoteError> {
        let url = format!("{base}{file}");
        let range = |bytes| {
            let answer = http::get_range(&self.client, &url, self.token.as_deref(), bytes);
            self.count(answer, |(body, _)| body.len())
        };
        let (mut bytes, file_bytes) = match range(0..FIRST_BYTES) {
            Err(error) if error.status() == Some(404) && file == SINGLE => {
                return Err(RemoteError::NoWeights { url: base.to_owned() });
            }
            // "Range not satisfiable" from byte 0 on: the file is empty.
            Err(error) if error.status() == Some(416) => (Vec::new(), 0),
            other => other?,
        };
        let invalid = |source| RemoteError::Header { url: url.clone(), source };
        let end = LENGTH_BYTES + header::json_len(&bytes, file_bytes).map_err(invalid)?;
        if end > bytes.len() as u64 {
            let (rest, size_now) = range(bytes.len() as u64..end)?;
            if size_now != file_bytes || rest.len() as u64 != end - bytes.len() as u64 {
                return Err(RemoteError::Changed { url, first: file_bytes, second: size_now });
            }
            bytes.extend(rest);
        }
        let header =
            header::parse(&bytes[LENGTH_BYTES as usize..end as usize], file_bytes).map_err(invalid)?;
        Ok(RemoteShard { file: file.to_owned(), file_bytes, header })
    }
}

#[cfg(test)]
#[path = "remote_tests.rs"]
mod tests;
