//! What the user calls MODEL, made a local checkpoint directory.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{CheckpointError, is_transient};
use super::gguf::{GgufError, ImportOptions, import};
use super::hub::{self, HubError, HubId};
use super::hub_env::HubEnv;
use super::{embedded, file_digest, files};
use crate::base::atomic::{self, StagingDir};
use crate::record::{Classified, FailureClass};

/// Raised when the importer's output changes, so that older imports in the cache are not used.
const IMPORT_VERSION: u32 = 1;

/// A MODEL that is a local directory now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedModel {
    /// The checkpoint directory.
    pub dir: PathBuf,
    /// A name for people: the directory's, the file's, or the hub id.
    pub name: String,
    /// What MODEL was.
    pub kind: ModelKind,
    /// The commit, for a hub id.
    pub revision: Option<String>,
}

/// What MODEL was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// A checkpoint directory.
    Dir,
    /// A GGUF file, imported into the cache.
    Gguf,
    /// A model on the hub.
    Hub,
    /// The model inside the binary.
    Embedded,
}

/// A MODEL that cannot be made a checkpoint directory.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It is none of the forms that MODEL can have.
    #[error("{model}: no such directory or file, and no hub id")]
    Unknown {
        /// MODEL.
        model: String,
    },
    /// It is a file of another format.
    #[error("{}: expected a directory or a .gguf file", path.display())]
    OtherFile {
        /// The file.
        path: PathBuf,
    },
    /// The GGUF file cannot be imported.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The hub does not give it.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A file cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The cache cannot be written.
    #[error("{}: the cache cannot be written", path.display())]
    Cache {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Classified for SourceError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Gguf(error) => error.failure_class(),
            Self::Hub(error) => error.failure_class(),
            Self::Checkpoint(error) => error.failure_class(),
            Self::Cache { source, .. } if is_transient(source) => FailureClass::InfraTransient,
            _ => FailureClass::UserConfigError,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Gguf(error) => error.hint(),
            Self::Hub(error) => error.hint(),
            Self::Checkpoint(error) => error.hint(),
            Self::Cache { .. } => {
                Some("set DAY0_CACHE to a directory with space that you may write".to_owned())
            }
            _ => Some(
                "MODEL is a directory, a .gguf file, a hub id org/name[@revision], or day0-tiny".to_owned(),
            ),
        }
    }
}

/// Makes MODEL a local checkpoint directory. Nothing is written but below `cache`, and in the hub's own cache.
pub fn resolve(model: &str, cache: &Path) -> Result<ResolvedModel, SourceError> {
    resolve_with(model, cache, &HubEnv::from_env())
}

fn resolve_with(model: &str, cache: &Path, env: &HubEnv) -> Result<ResolvedModel, SourceError> {
    if model == embedded::NAME {
        return lay_out_embedded(cache);
    }
    let path = Path::new(model);
    if path.is_dir() {
        let whole = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let name = whole.file_name().map_or_else(|| model.to_owned(), |n| n.to_string_lossy().into_owned());
        return Ok(ResolvedModel { dir: path.to_path_buf(), name, kind: ModelKind::Dir, revision: None });
    }
    if path.is_file() {
        return import_file(path, cache);
    }
    let is_path = ["gguf", "safetensors"].iter().any(|extension| files::has_extension(model, extension));
    match HubId::parse(model).filter(|_| !is_path) {
        Some(id) => {
            let snapshot = hub::fetch(&id, env)?;
            let revision = Some(snapshot.commit);
            Ok(ResolvedModel { dir: snapshot.dir, name: id.repo, kind: ModelKind::Hub, revision })
        }
        None => Err(SourceError::Unknown { model: model.to_owned() }),
    }
}

/// Imports a GGUF file into the cache, once for each content.
fn import_file(path: &Path, cache: &Path) -> Result<ResolvedModel, SourceError> {
    let file_name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if files::is_pickle(&file_name) {
        return Err(CheckpointError::Pickle { path: path.to_path_buf() }.into());
    }
    let Some(name) = file_name.strip_suffix(".gguf") else {
        return Err(SourceError::OtherFile { path: path.to_path_buf() });
    };
    let digest = file_digest::of_file(path)
        .map_err(|source| CheckpointError::Read { path: path.to_path_buf(), source })?;
    let dir_name = format!("gguf-v{IMPORT_VERSION}-bf16-{}", digest.short(16));
    let dir = once(cache, &dir_name, |target| {
        import(path, target, ImportOptions::default())?;
        Ok(())
    })?;
    Ok(ResolvedModel { dir, name: name.to_owned(), kind: ModelKind::Gguf, revision: None })
}

fn lay_out_embedded(cache: &Path) -> Result<ResolvedModel, SourceError> {
    let dir_name = format!("{}-{}", embedded::NAME, embedded::digest().short(12));
    let dir = once(cache, &dir_name, |target| lay_out(embedded::FILES, target))?;
    Ok(ResolvedModel { dir, name: embedded::NAME.to_owned(), kind: ModelKind::Embedded, revision: None })
}

fn lay_out(contents: &[(&str, &[u8])], target: &Path) -> Result<(), SourceError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| SourceError::Cache { path, source }
    };
    let staging = StagingDir::open(target).map_err(failed(target))?;
    for (name, content) in contents {
        let path = staging.path().join(name);
        atomic::write(&path, content).map_err(failed(&path))?;
    }
    staging.commit().map_err(failed(target))
}

/// Fills `<cache>/models/<name>` unless it is there. A directory of this name is complete, because it is renamed into
/// place; a lock keeps two processes from filling it at once.
fn once(
    cache: &Path,
    name: &str,
    fill: impl FnOnce(&Path) -> Result<(), SourceError>,
) -> Result<PathBuf, SourceError> {
    let models = cache.join("models");
    let target = models.join(name);
    if target.is_dir() {
        return Ok(target);
    }
    let failed = |source| SourceError::Cache { path: models.clone(), source };
    std::fs::create_dir_all(&models).map_err(failed)?;
    let lock = File::create(models.join(format!("{name}.lock"))).map_err(failed)?;
    lock.lock().map_err(failed)?;
    if !target.is_dir() {
        fill(&target)?;
    }
    Ok(target)
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
