//! Files of a data set on the hub at one commit, fetched one by one into the hub's own cache.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::hub::{self, HubError, HubId};
use super::hub_env::HubEnv;

/// A data set's files at one commit.
#[derive(Debug, Clone)]
pub struct HubDataset {
    id: HubId,
    env: HubEnv,
    commit: String,
    names: BTreeSet<String>,
}

impl HubDataset {
    /// Resolves the revision to a commit and lists its files; offline, the files that the cache holds.
    pub fn open(id: &HubId, env: &HubEnv) -> Result<Self, HubError> {
        let (commit, names) = if env.offline {
            let snapshot = hub::cached_snapshot(id, env)?;
            let mut names = BTreeSet::new();
            list_files(&snapshot.dir, "", &mut names);
            (snapshot.commit, names)
        } else {
            let info = hub::ask(id, env)?;
            let names = info.siblings.into_iter().map(|s| s.rfilename).filter(|n| stays_inside(n));
            (info.sha, names.collect())
        };
        Ok(Self { id: id.clone(), env: env.clone(), commit, names })
    }

    /// The commit.
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// Paths of all files, `/` between their parts.
    pub fn names(&self) -> &BTreeSet<String> {
        &self.names
    }

    /// Makes a file available and returns its place in the cache.
    pub fn fetch(&self, name: &str) -> Result<PathBuf, HubError> {
        let place = hub::snapshot_dir(&self.id, &self.env, &self.commit).join(name);
        if self.env.offline {
            return if place.is_file() { Ok(place) } else { Err(hub::not_cached(&self.id, &self.env, name)) };
        }
        let place = hub::fetch_file(&self.id, &self.env, &self.commit, name)?;
        hub::remember(&self.id, &self.env, &self.commit)?;
        Ok(place)
    }
}

/// Whether a path leads nowhere but below the directory it is joined to.
fn stays_inside(name: &str) -> bool {
    let mut parts = Path::new(name).components().peekable();
    parts.peek().is_some() && parts.all(|p| matches!(p, Component::Normal(_))) && !name.contains('\0')
}

fn list_files(dir: &Path, prefix: &str, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = entry.path();
        if path.is_dir() {
            list_files(&path, &format!("{prefix}{name}/"), names);
        } else if path.is_file() {
            names.insert(format!("{prefix}{name}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        assert!(stays_inside("a.parquet") && stays_inside("a b/c.jsonl"));
        for bad in ["", "/a", "../a", "a/../b", "a\0b"] {
            assert!(!stays_inside(bad), "{bad:?}");
        }
    }
}
