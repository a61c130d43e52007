//! Which files of a data set on the hub hold which split.
//!
//! In the order of the `datasets` library (docs: "Structure your repository"): the `configs` in the head of README.md;
//! else file and directory names; else the hub's own conversion to Parquet, the branch `refs/convert/parquet` with
//! `<config>/<split>/*.parquet`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use regex::Regex;
use serde_yaml_ng::Value as Yaml;

use super::data::SUFFIXES;
use super::error::SuiteError;
use crate::checkpoint::hub::HubId;
use crate::checkpoint::hub_dataset::HubDataset;
use crate::checkpoint::hub_env::HubEnv;

const README: &str = "README.md";
/// The branch that the hub's conversion bot keeps for every public data set.
const CONVERTED: &str = "refs/convert/parquet";
/// Words in file names that stand for a split (`datasets`, `data_files.py`, `SPLIT_KEYWORDS`).
const SPLIT_WORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

type Splits = BTreeMap<String, Vec<String>>;

/// A data set on the hub with the files of its splits.
#[derive(Debug, Clone)]
pub(super) struct HubData {
    dataset: HubDataset,
    name: String,
    splits: Splits,
}

impl HubData {
    /// Finds the files of each split of a data set's subset.
    pub fn resolve(
        repo: &str,
        subset: Option<&str>,
        revision: Option<&str>,
        env: &HubEnv,
    ) -> Result<Self, SuiteError> {
        let id =
            HubId::dataset(repo, revision).ok_or_else(|| SuiteError::NoHubName { name: repo.to_owned() })?;
        let dataset = HubDataset::open(&id, env)?;
        let mut splits = stated(&dataset, subset)?;
        if splits.is_empty() {
            splits = by_name(dataset.names(), subset);
        }
        // A pinned revision is never replaced by a branch that follows another one.
        if splits.is_empty() && revision.is_none() {
            let converted = HubId { revision: Some(CONVERTED.to_owned()), ..id };
            let dataset = HubDataset::open(&converted, env)?;
            let splits = by_directory(dataset.names(), subset.unwrap_or("default"));
            return Self { dataset, name: repo.to_owned(), splits }.checked(subset);
        }
        Self { dataset, name: repo.to_owned(), splits }.checked(subset)
    }

    fn checked(self, subset: Option<&str>) -> Result<Self, SuiteError> {
        if !self.splits.is_empty() {
            return Ok(self);
        }
        Err(SuiteError::NoSplits {
            dataset: self.name,
            subset: subset.unwrap_or("default").to_owned(),
            commit: self.dataset.commit().to_owned(),
        })
    }

    pub fn commit(&self) -> &str {
        self.dataset.commit()
    }

    pub fn has(&self, split: &str) -> bool {
        self.splits.contains_key(split)
    }

    /// A split in words.
    pub fn describe(&self, split: &str) -> String {
        format!("split '{split}' of {}@{}", self.name, self.commit())
    }

    /// The files of a split, in the hub's cache.
    pub fn fetch(&self, split: &str) -> Result<Vec<PathBuf>, SuiteError> {
        let names = self.splits.get(split).map_or(&[][..], Vec::as_slice);
        names.iter().map(|name| Ok(self.dataset.fetch(name)?)).collect()
    }
}

/// Splits as README.md states them; none where it states none for the subset.
fn stated(dataset: &HubDataset, subset: Option<&str>) -> Result<Splits, SuiteError> {
    if !dataset.names().contains(README) {
        return Ok(Splits::new());
    }
    let path = dataset.fetch(README)?;
    let text = std::fs::read_to_string(&path).map_err(|source| SuiteError::Read { path, source })?;
    Ok(read_configs(&text, subset, dataset.names()))
}

/// The `configs` entry of the subset; without a subset the only one, or the default one. A head that is no YAML or
/// has another shape states nothing.
fn read_configs(readme: &str, subset: Option<&str>, names: &BTreeSet<String>) -> Splits {
    let head = readme.strip_prefix("---").and_then(|rest| rest.split("\n---").next()).unwrap_or_default();
    let head: Yaml = serde_yaml_ng::from_str(head).unwrap_or(Yaml::Null);
    let configs = head.get("configs").and_then(Yaml::as_sequence).map_or(&[][..], Vec::as_slice);
    let named =
        |name: &str| configs.iter().find(|c| c.get("config_name").and_then(Yaml::as_str) == Some(name));
    let config = match subset {
        Some(name) => named(name),
        None => named("default")
            .or_else(|| configs.iter().find(|c| c.get("default").and_then(Yaml::as_bool) == Some(true)))
            .or_else(|| configs.first().filter(|_| configs.len() == 1)),
    };
    let Some(config) = config else { return Splits::new() };
    let dir = config.get("data_dir").and_then(Yaml::as_str).map_or_else(String::new, |dir| format!("{dir}/"));
    let mut splits = Splits::new();
    match config.get("data_files") {
        Some(Yaml::Sequence(list)) if list.iter().any(|e| e.get("split").is_some()) => {
            for entry in list {
                let Some(split) = entry.get("split").and_then(Yaml::as_str) else { continue };
                add(&mut splits, split, entry.get("path"), &dir, names);
            }
        }
        Some(Yaml::Mapping(map)) => {
            for (split, paths) in map {
                add(&mut splits, split.as_str().unwrap_or_default(), Some(paths), &dir, names);
            }
        }
        // Files without a split are the training split.
        paths => add(&mut splits, "train", paths, &dir, names),
    }
    splits
}

fn add(splits: &mut Splits, split: &str, paths: Option<&Yaml>, dir: &str, names: &BTreeSet<String>) {
    let patterns: Vec<&str> = match paths {
        Some(Yaml::String(path)) => vec![path],
        Some(Yaml::Sequence(list)) => list.iter().filter_map(Yaml::as_str).collect(),
        _ => Vec::new(),
    };
    let mut files: Vec<String> = Vec::new();
    for pattern in patterns {
        let Some(pattern) = glob(&format!("{dir}{}", pattern.trim_start_matches("./"))) else { continue };
        files.extend(names.iter().filter(|name| pattern.is_match(name) && readable(name)).cloned());
    }
    if !files.is_empty() {
        splits.insert(split.to_owned(), files);
    }
}

/// A path pattern with `*`, `?` and `**` as a regular expression.
fn glob(pattern: &str) -> Option<Regex> {
    let mut regex = "^".to_owned();
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        let (taken, part) = match c {
            '*' if rest.starts_with("**/") => (3, "(?:.*/)?".to_owned()),
            '*' if rest.starts_with("**") => (2, ".*".to_owned()),
            '*' => (1, "[^/]*".to_owned()),
            '?' => (1, "[^/]".to_owned()),
            other => (other.len_utf8(), regex::escape(&other.to_string())),
        };
        regex.push_str(&part);
        rest = &rest[taken..];
    }
    Regex::new(&(regex + "$")).ok()
}

fn readable(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, suffix)| SUFFIXES.contains(&suffix))
}

/// Splits by words in the names of files, or of the directories that they lie in; with a subset only files below a
/// directory of its name.
fn by_name(names: &BTreeSet<String>, subset: Option<&str>) -> Splits {
    let mut splits = Splits::new();
    for name in names.iter().filter(|n| readable(n)) {
        let parts: Vec<&str> = name.split('/').collect();
        let below = subset.is_none_or(|s| parts[..parts.len() - 1].contains(&s));
        if !below {
            continue;
        }
        let word_of = |part: &&str| {
            let words: Vec<&str> = part.split(|c: char| !c.is_ascii_alphabetic()).collect();
            let stands = |(_, keys): &&(&str, &[&str])| keys.iter().any(|k| words.contains(k));
            SPLIT_WORDS.iter().find(stands).map(|(split, _)| *split)
        };
        if let Some(split) = parts.iter().rev().filter(|p| Some(**p) != subset).find_map(word_of) {
            splits.entry(split.to_owned()).or_default().push(name.clone());
        }
    }
    splits
}

/// Splits of the converted branch: `<config>/<split>/<number>.parquet`.
fn by_directory(names: &BTreeSet<String>, config: &str) -> Splits {
    let mut splits = Splits::new();
    for name in names {
        if let [first, split, file] = name.split('/').collect::<Vec<_>>()[..]
            && first == config
            && file.ends_with(".parquet")
        {
            splits.entry(split.to_owned()).or_default().push(name.clone());
        }
    }
    splits
}

#[cfg(test)]
#[path = "hub_data_tests.rs"]
mod tests;
