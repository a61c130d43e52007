//! Checkpoints and data sets on the Hugging Face hub, fetched into the hub's own cache.
//!
//! The revision is resolved to a commit first and everything is fetched at that commit. Files go through hf-hub, into
//! the cache layout that all Hugging Face tools share; hf-hub reads no HF_HUB_OFFLINE, so that is checked here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use serde::Deserialize;

use super::error::CheckpointError;
use super::files::{self, CONFIG, INDEX, SINGLE};
use super::http::{self, HttpError};
use super::hub_env::HubEnv;
use super::index;
use crate::base::env_vars;
use crate::base::progress::{self, Progress};
use crate::record::{Classified, FailureClass};

/// Time for the question which files there are.
const INFO_TIMEOUT: Duration = Duration::from_secs(60);
/// Repeated attempts of one download.
const RETRIES: usize = 2;
/// The branch that is meant when no revision is named.
const MAIN: &str = "main";

/// What a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepoKind {
    /// A model.
    Model,
    /// A data set.
    Dataset,
}

/// A repository on the hub: `org/name[@revision]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// What it holds.
    pub kind: RepoKind,
    /// `org/name`.
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: Option<String>,
}

/// A checkpoint in the hub's cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubSnapshot {
    /// The directory with the files.
    pub dir: PathBuf,
    /// The commit they belong to.
    pub commit: String,
}

/// A checkpoint that the hub does not give.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The hub refuses access.
    #[error(
        "{id}: the hub refuses access (HTTP status {status}, {} token was sent)",
        if *token_sent { "a" } else { "no" }
    )]
    Refused {
        /// The model.
        id: String,
        /// 401 or 403.
        status: u16,
        /// Whether a token was sent.
        token_sent: bool,
    },
    /// There is no such repository, revision or file.
    #[error("{id}: not found on {endpoint}")]
    NotFound {
        /// The model, with its file if it is one.
        id: String,
        /// The hub.
        endpoint: String,
    },
    /// A request failed.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The hub's answer is not what it should be.
    #[error("{id}: {field}: expected {expected}, found {found}")]
    Answer {
        /// The model.
        id: String,
        /// What is wrong.
        field: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A download failed.
    #[error("{id}: {file}: the download failed: {message}")]
    Download {
        /// The model.
        id: String,
        /// The file.
        file: String,
        /// Why.
        message: String,
    },
    /// The repository lacks a file.
    #[error("{id}: no {file} in the repository")]
    MissingFile {
        /// The model.
        id: String,
        /// The file.
        file: String,
    },
    /// The repository has weights in a pickle-based format only.
    #[error("{id}: {file}: pickle files are never read, expected *.safetensors")]
    Pickle {
        /// The model.
        id: String,
        /// The file.
        file: String,
    },
    /// The repository has no weights.
    #[error("{id}: no weights, expected {SINGLE} or {INDEX}{}", found.as_ref().map(|f| format!(", found {f}")).unwrap_or_default())]
    NoWeights {
        /// The model.
        id: String,
        /// Another weight file in it, if any.
        found: Option<String>,
    },
    /// Connections are forbidden and the cache lacks something.
    #[error("{id}: {what} is not in the cache {}, and {} forbids fetching it", cache.display(), env_vars::HF_HUB_OFFLINE)]
    Offline {
        /// The model.
        id: String,
        /// What is missing.
        what: String,
        /// The cache.
        cache: PathBuf,
    },
    /// The index is invalid.
    #[error(transparent)]
    Content(#[from] CheckpointError),
}

impl Classified for HubError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Http(error) => error.failure_class(),
            Self::Content(error) => error.failure_class(),
            Self::Download { .. } => FailureClass::InfraTransient,
            _ => FailureClass::UserConfigError,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Refused { token_sent: false, .. } => {
                "the repository is private, gated or does not exist; set HF_TOKEN if you have access".to_owned()
            }
            Self::Refused { .. } => {
                "the token has no access; accept the model's terms on its page, or use another token".to_owned()
            }
            Self::NotFound { .. } => {
                "MODEL is a directory, a .gguf file, a hub id org/name[@revision], or day0-tiny; check the spelling"
                    .to_owned()
            }
            Self::Pickle { .. } => {
                "choose a revision or a copy of the model with safetensors; pickle files can run code when loaded"
                    .to_owned()
            }
            Self::NoWeights { found: Some(file), .. } if files::has_extension(file, "gguf") => {
                format!("download {file} and name the file instead")
            }
            Self::Offline { .. } => {
                format!("unset {} once, or copy the files into the cache", env_vars::HF_HUB_OFFLINE)
            }
            Self::Download { .. } => "run the command again; what was downloaded is kept".to_owned(),
            Self::Http(error) => return error.hint(),
            Self::Content(error) => return error.hint(),
            _ => return None,
        })
    }
}

impl HubId {
    /// Parses a model's `org/name[@revision]`; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (repo, revision) = match text.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (text, None),
        };
        let (org, name) = repo.split_once('/')?;
        let word = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && part.len() <= 96
                && !part.contains("..")
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        // A revision may name a branch with slashes, e.g. `refs/pr/1`.
        let revision_is_good = revision.is_none_or(|r| !r.is_empty() && r.split('/').all(word));
        (word(org) && word(name) && revision_is_good).then(|| Self {
            kind: RepoKind::Model,
            repo: repo.to_owned(),
            revision: revision.map(str::to_owned),
        })
    }

    /// A data set by the name of its repository and its revision; `None` if that is no name.
    pub fn dataset(repo: &str, revision: Option<&str>) -> Option<Self> {
        let name = revision.map_or_else(|| repo.to_owned(), |revision| format!("{repo}@{revision}"));
        Self::parse(&name).map(|id| Self { kind: RepoKind::Dataset, ..id })
    }

    fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }
}

impl std::fmt::Display for HubId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.repo)?;
        self.revision.as_ref().map_or(Ok(()), |revision| write!(f, "@{revision}"))
    }
}

/// Makes a checkpoint available in the hub's cache.
pub fn fetch(id: &HubId, env: &HubEnv) -> Result<HubSnapshot, HubError> {
    if env.offline { from_cache(id, env) } else { from_hub(id, env) }
}

/// The cached snapshot, without asking the hub.
fn from_cache(id: &HubId, env: &HubEnv) -> Result<HubSnapshot, HubError> {
    let snapshot = cached_snapshot(id, env)?;
    let has = |name: &str| snapshot.dir.join(name).is_file();
    let weights = if has(INDEX) { shards_of(&snapshot.dir)? } else { BTreeSet::from([SINGLE.to_owned()]) };
    let needed = std::iter::once(CONFIG.to_owned()).chain(weights);
    match needed.into_iter().find(|name| !has(name)) {
        Some(missing) => Err(not_cached(id, env, &missing)),
        None => Ok(snapshot),
    }
}

/// The snapshot that the cache holds of a revision, complete or not.
pub(super) fn cached_snapshot(id: &HubId, env: &HubEnv) -> Result<HubSnapshot, HubError> {
    let folder = env.cache.join(repo_at(id, id.revision()).folder_name());
    let named = std::fs::read_to_string(folder.join("refs").join(id.revision())).map(|c| c.trim().to_owned());
    let commit = named.unwrap_or_else(|_| id.revision().to_owned());
    let dir = folder.join("snapshots").join(&commit);
    if !is_commit(&commit) || !dir.is_dir() {
        return Err(not_cached(id, env, &format!("revision {}", id.revision())));
    }
    Ok(HubSnapshot { dir, commit })
}

pub(super) fn not_cached(id: &HubId, env: &HubEnv, what: &str) -> HubError {
    HubError::Offline { id: id.to_string(), what: what.to_owned(), cache: env.cache.clone() }
}

/// What the hub says about a repository.
#[derive(Deserialize)]
pub(super) struct RepoInfo {
    pub(super) sha: String,
    pub(super) siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
pub(super) struct Sibling {
    pub(super) rfilename: String,
}

fn from_hub(id: &HubId, env: &HubEnv) -> Result<HubSnapshot, HubError> {
    let info = ask(id, env)?;
    let names: BTreeSet<String> = info
        .siblings
        .into_iter()
        .map(|s| s.rfilename)
        .filter(|name| files::plain_name(name).is_some())
        .collect();
    refuse_without_weights(id, &names)?;
    let dir = snapshot_dir(id, env, &info.sha);
    let download = Download { id, env, commit: &info.sha, dir: &dir, repo: open_api(id, &info.sha, env)? };
    let small = names.iter().filter(|name| files::is_identity(name));
    download.all(small)?;
    let weights = if names.contains(INDEX) { shards_of(&dir)? } else { BTreeSet::from([SINGLE.to_owned()]) };
    if let Some(missing) = weights.iter().find(|shard| !names.contains(*shard)) {
        return Err(HubError::MissingFile { id: id.to_string(), file: missing.clone() });
    }
    download.all(&weights)?;
    // Only now does the cache say that this revision is there.
    remember(id, env, &info.sha)?;
    Ok(HubSnapshot { dir, commit: info.sha })
}

/// Notes in the cache which commit the revision is.
pub(super) fn remember(id: &HubId, env: &HubEnv, commit: &str) -> Result<(), HubError> {
    let cache = Cache::new(env.cache.clone()).repo(repo_at(id, id.revision()));
    cache.create_ref(commit).map_err(|source| CheckpointError::Read { path: env.cache.clone(), source })?;
    Ok(())
}

/// The directory of a commit's files in the cache.
pub(super) fn snapshot_dir(id: &HubId, env: &HubEnv, commit: &str) -> PathBuf {
    env.cache.join(repo_at(id, MAIN).folder_name()).join("snapshots").join(commit)
}

/// Asks for commit and files of the revision.
pub(super) fn ask(id: &HubId, env: &HubEnv) -> Result<RepoInfo, HubError> {
    let url = format!("{}/api/{}", env.endpoint, repo_at(id, id.revision()).api_url());
    let body = http::get(&http::client(INFO_TIMEOUT)?, &url, env.token.as_deref())
        .map_err(|error| explain(id, env, error.status()).unwrap_or(HubError::Http(error)))?;
    let answer = |field: &str, expected: &str, found: String| HubError::Answer {
        id: id.to_string(),
        field: field.to_owned(),
        expected: expected.to_owned(),
        found,
    };
    let info: RepoInfo = serde_json::from_slice(&body)
        .map_err(|error| answer(&url, "an object with sha and siblings", error.to_string()))?;
    if !is_commit(&info.sha) {
        return Err(answer("sha", "a commit", super::header::shown(&info.sha)));
    }
    Ok(info)
}

/// The error that a status stands for, if it is one of the common three.
fn explain(id: &HubId, env: &HubEnv, status: Option<u16>) -> Option<HubError> {
    match status? {
        status @ (401 | 403) => {
            Some(HubError::Refused { id: id.to_string(), status, token_sent: env.token.is_some() })
        }
        404 => Some(HubError::NotFound { id: id.to_string(), endpoint: env.endpoint.clone() }),
        _ => None,
    }
}

fn refuse_without_weights(id: &HubId, names: &BTreeSet<String>) -> Result<(), HubError> {
    if !names.contains(SINGLE) && !names.contains(INDEX) {
        if let Some(file) = names.iter().find(|name| files::is_pickle(name)) {
            return Err(HubError::Pickle { id: id.to_string(), file: file.clone() });
        }
        let found = names.iter().find(|name| files::is_weights(name)).cloned();
        return Err(HubError::NoWeights { id: id.to_string(), found });
    }
    if names.contains(CONFIG) {
        return Ok(());
    }
    Err(HubError::MissingFile { id: id.to_string(), file: CONFIG.to_owned() })
}

fn shards_of(dir: &Path) -> Result<BTreeSet<String>, HubError> {
    let path = dir.join(INDEX);
    let text = std::fs::read(&path).map_err(|source| CheckpointError::Read { path: path.clone(), source })?;
    Ok(index::parse(&path, &text)?.into_values().collect())
}

fn repo_at(id: &HubId, revision: &str) -> Repo {
    let kind = match id.kind {
        RepoKind::Model => RepoType::Model,
        RepoKind::Dataset => RepoType::Dataset,
    };
    Repo::with_revision(id.repo.clone(), kind, revision.to_owned())
}

/// Commits become directory names, so nothing else is accepted.
fn is_commit(text: &str) -> bool {
    (4..=64).contains(&text.len()) && text.chars().all(|c| c.is_ascii_hexdigit())
}

fn open_api(id: &HubId, commit: &str, env: &HubEnv) -> Result<ApiRepo, HubError> {
    http::install_crypto();
    let api = ApiBuilder::from_cache(Cache::new(env.cache.clone()))
        .with_endpoint(env.endpoint.clone())
        .with_token(env.token.clone())
        .with_retries(RETRIES)
        .with_progress(false)
        .build()
        .map_err(|error| HubError::Download {
            id: id.to_string(),
            file: CONFIG.to_owned(),
            message: error.to_string(),
        })?;
    Ok(api.repo(repo_at(id, commit)))
}

/// Fetches one file of a commit into the cache.
pub(super) fn fetch_file(id: &HubId, env: &HubEnv, commit: &str, name: &str) -> Result<PathBuf, HubError> {
    let dir = snapshot_dir(id, env, commit);
    Download { id, env, commit, dir: &dir, repo: open_api(id, commit, env)? }.one(name)?;
    Ok(dir.join(name))
}

/// Fetches the files of one commit.
struct Download<'a> {
    id: &'a HubId,
    env: &'a HubEnv,
    commit: &'a str,
    dir: &'a Path,
    repo: ApiRepo,
}

impl Download<'_> {
    fn all<'n>(&self, names: impl IntoIterator<Item = &'n String>) -> Result<(), HubError> {
        names.into_iter().try_for_each(|name| self.one(name))
    }

    /// Fetches a file unless it is there; the cache holds complete files only.
    fn one(&self, name: &str) -> Result<(), HubError> {
        let place = self.dir.join(name);
        if place.is_file() {
            return Ok(());
        }
        progress::detail(&format!("fetching {name} of {} at {}", self.id, self.commit));
        let path =
            self.repo.download_with_progress(name, Bar(None)).map_err(|error| self.failed(name, &error))?;
        if path == place {
            return Ok(());
        }
        Err(HubError::Answer {
            id: self.id.to_string(),
            field: format!("{name}: x-repo-commit"),
            expected: self.commit.to_owned(),
            found: path.display().to_string(),
        })
    }

    fn failed(&self, file: &str, error: &ApiError) -> HubError {
        let message = error.to_string();
        // hf-hub's error holds one of ureq, which is not among our dependencies; its text ends in the status.
        let status = message
            .rsplit_once("http status: ")
            .and_then(|(_, rest)| rest.get(..3))
            .and_then(|s| s.parse().ok());
        match explain(self.id, self.env, status) {
            Some(HubError::NotFound { endpoint, .. }) => {
                HubError::NotFound { id: format!("{}: {file}", self.id), endpoint }
            }
            Some(other) => other,
            None => HubError::Download { id: self.id.to_string(), file: file.to_owned(), message },
        }
    }
}

/// Shows a download as our own progress.
struct Bar(Option<Progress>);

impl hf_hub::api::Progress for Bar {
    fn init(&mut self, size: usize, filename: &str) {
        self.0 = Some(Progress::new(filename, size as u64, "bytes"));
    }

    fn update(&mut self, size: usize) {
        if let Some(progress) = &self.0 {
            progress.inc(size as u64);
        }
    }

    fn finish(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
