//! Rows of a data set: JSON lines or Parquet, from a directory, from named files, from the hub, or embedded.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};

use super::embedded;
use super::error::{Place, SuiteError};
use super::hub_data::HubData;
use super::parquet_rows;
use crate::base::digest::{Digest, DigestBuilder};

/// Suffixes of data files, in the order in which they are tried.
pub(super) const SUFFIXES: [&str; 3] = ["jsonl", "json", "parquet"];

/// Where a task's splits lie.
#[derive(Debug, Clone)]
pub(super) enum DataSource {
    /// Embedded files `<stem>.<split>.jsonl`.
    Embedded {
        /// Stem of the file names.
        stem: String,
    },
    /// Files `<stem>.<split>.jsonl` or `.parquet` of a directory.
    Dir {
        /// The directory.
        dir: PathBuf,
        /// Stem of the file names.
        stem: String,
        /// Column and the value that rows of this task have in it, where several tasks share the file.
        subset: Option<(String, String)>,
        /// Files that other tasks have read already.
        cache: RowCache,
    },
    /// Files of each split.
    Files(BTreeMap<String, Vec<PathBuf>>),
    /// A data set on the hub.
    Hub(HubData),
}

/// Files read once for all tasks that share them.
#[derive(Debug, Clone, Default)]
pub(super) struct RowCache(Arc<Mutex<HashMap<PathBuf, Arc<Rows>>>>);

impl RowCache {
    fn read(&self, path: &Path) -> Result<Arc<Rows>, SuiteError> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rows) = files.get(path) {
            return Ok(Arc::clone(rows));
        }
        let rows = Arc::new(Rows::read(&[path.to_path_buf()])?);
        files.insert(path.to_path_buf(), Arc::clone(&rows));
        Ok(rows)
    }
}

impl DataSource {
    /// Name of the file of a split.
    pub fn file(&self, split: &str) -> Option<String> {
        match self {
            Self::Embedded { stem } => Some(format!("built-in/{stem}.{split}.jsonl")),
            Self::Dir { dir, stem, .. } => {
                let path =
                    file_in(dir, stem, split).unwrap_or_else(|| dir.join(format!("{stem}.{split}.jsonl")));
                Some(path.display().to_string())
            }
            Self::Files(files) => Some(files.get(split)?.first()?.display().to_string()),
            Self::Hub(hub) => Some(hub.describe(split)),
        }
    }

    /// Whether a split is there.
    pub fn has(&self, split: &str) -> bool {
        match self {
            Self::Embedded { stem } => embedded::data(&format!("{stem}.{split}.jsonl")).is_some(),
            Self::Dir { dir, stem, .. } => file_in(dir, stem, split).is_some(),
            Self::Files(files) => files.get(split).is_some_and(|paths| paths.iter().all(|p| p.is_file())),
            Self::Hub(hub) => hub.has(split),
        }
    }

    /// The rows of a split.
    pub fn read(&self, split: &str) -> Result<Rows, SuiteError> {
        match self {
            Self::Embedded { stem } => {
                let text = embedded::data(&format!("{stem}.{split}.jsonl")).unwrap_or_default();
                Rows::parse(self.file(split).unwrap_or_default(), text.as_bytes())
            }
            Self::Dir { dir, stem, subset, cache } => {
                let path = file_in(dir, stem, split).unwrap_or_default();
                match subset {
                    None => Rows::read(&[path]),
                    Some((column, value)) => cache.read(&path)?.subset(column, value),
                }
            }
            Self::Files(files) => Rows::read(files.get(split).map_or(&[], Vec::as_slice)),
            Self::Hub(hub) => Rows::read(&hub.fetch(split)?),
        }
    }

    /// The commit that rows from the hub belong to.
    pub fn revision(&self) -> Option<&str> {
        match self {
            Self::Hub(hub) => Some(hub.commit()),
            _ => None,
        }
    }
}

fn file_in(dir: &Path, stem: &str, split: &str) -> Option<PathBuf> {
    SUFFIXES.iter().map(|suffix| dir.join(format!("{stem}.{split}.{suffix}"))).find(|path| path.is_file())
}

/// The columns of a row as they are written, and where.
pub(super) type PlacedRow = (Place, Map<String, Value>);

/// The rows of one split.
#[derive(Debug, Clone)]
pub(super) struct Rows {
    /// Name of the first file, for messages.
    pub file: String,
    /// Rows with their places. A column that other rows have and this one lacks is null, as the `datasets` library
    /// reads it, and counts as missing where a task needs it.
    pub list: Vec<Row>,
    /// All columns in order of first appearance.
    pub columns: Vec<String>,
    /// Digest of the content of the files, and of the subset if it is one.
    pub digest: Digest,
}

/// One row.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// File, and line or row in it, from 1.
    pub place: Place,
    /// Columns.
    pub fields: Map<String, Value>,
    /// Columns that this row lacks.
    pub missing: Vec<String>,
}

impl Rows {
    /// Reads the files of a split in order.
    fn read(paths: &[PathBuf]) -> Result<Self, SuiteError> {
        let mut digest = DigestBuilder::default();
        let mut parsed = Vec::new();
        let mut file_digest = None;
        for path in paths {
            let file = path.display().to_string();
            let bytes =
                std::fs::read(path).map_err(|source| SuiteError::Read { path: path.clone(), source })?;
            let one = Digest::of(&bytes);
            digest.field(one.as_str().as_bytes());
            file_digest = Some(one);
            if parquet_rows::is_parquet(&bytes) {
                parsed.extend(parquet_rows::read(&file, path)?);
            } else {
                parsed.extend(parse_lines(&file, &bytes)?);
            }
        }
        let file = paths.first().map_or_else(String::new, |path| path.display().to_string());
        let digest = file_digest.filter(|_| paths.len() == 1).unwrap_or_else(|| digest.finish());
        Self::complete(file, parsed, digest)
    }

    /// Parses JSON lines; blank lines are skipped.
    pub fn parse(file: String, bytes: &[u8]) -> Result<Self, SuiteError> {
        let parsed = parse_lines(&file, bytes)?;
        Self::complete(file, parsed, Digest::of(bytes))
    }

    /// Gives all rows the same columns.
    fn complete(file: String, parsed: Vec<PlacedRow>, digest: Digest) -> Result<Self, SuiteError> {
        if parsed.is_empty() {
            return Err(SuiteError::NoRows { file });
        }
        let mut columns: Vec<String> = Vec::new();
        let mut known = std::collections::HashSet::new();
        for key in parsed.iter().flat_map(|(_, fields)| fields.keys()) {
            if known.insert(key.as_str()) {
                columns.push(key.clone());
            }
        }
        drop(known);
        let list = parsed.into_iter().map(|(place, fields)| complete(place, fields, &columns)).collect();
        Ok(Self { file, list, columns, digest })
    }

    /// Rows whose `column` is `value`.
    fn subset(&self, column: &str, value: &str) -> Result<Self, SuiteError> {
        let list: Vec<Row> = self
            .list
            .iter()
            .filter(|row| row.fields.get(column).is_some_and(|v| v == value))
            .cloned()
            .collect();
        if list.is_empty() {
            let place = Place::new(self.file.clone(), None);
            return Err(SuiteError::Row {
                place,
                detail: format!("no row has '{value}' in column '{column}'"),
            });
        }
        let mut digest = DigestBuilder::default();
        for part in [self.digest.as_str(), column, value] {
            digest.field(part.as_bytes());
        }
        Ok(Self { file: self.file.clone(), list, columns: self.columns.clone(), digest: digest.finish() })
    }

    /// Refuses two rows with the same `id`: their answers could not be told apart.
    pub fn check_ids(&self) -> Result<(), SuiteError> {
        let mut seen: HashMap<String, &Place> = HashMap::new();
        for row in &self.list {
            let id = match row.fields.get("id") {
                Some(id @ (Value::String(_) | Value::Number(_))) => id.to_string(),
                _ => continue,
            };
            if let Some(first) = seen.insert(id.clone(), &row.place) {
                let detail = format!("id {id} is also that of {first}");
                return Err(SuiteError::Row { place: row.place.clone(), detail });
            }
        }
        Ok(())
    }
}

/// The rows of JSON lines, or of one JSON array, whose elements count as lines.
fn parse_lines(file: &str, bytes: &[u8]) -> Result<Vec<PlacedRow>, SuiteError> {
    let place = |line: usize| Place::new(file, Some(line));
    if bytes.trim_ascii_start().starts_with(b"[") {
        let not_rows = |e: serde_json::Error| SuiteError::Row {
            place: place(e.line()),
            detail: format!("not a JSON array of objects: {e}"),
        };
        let rows: Vec<Map<String, Value>> = serde_json::from_slice(bytes).map_err(not_rows)?;
        return Ok(rows.into_iter().enumerate().map(|(index, fields)| (place(index + 1), fields)).collect());
    }
    let lines = bytes.split(|b| *b == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty());
    let row = |(index, line): (usize, &[u8])| {
        let place = place(index + 1);
        match parse_row(line) {
            Ok(fields) => Ok((place, fields)),
            Err(detail) => Err(SuiteError::Row { place, detail }),
        }
    };
    lines.map(row).collect()
}

fn parse_row(line: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice(line) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err("a row must be a JSON object".to_owned()),
        // serde_json counts lines within the row; only its column helps here.
        Err(e) if e.is_eof() => Err("the JSON object is not complete".to_owned()),
        Err(e) => {
            let text = e.to_string();
            let reason = text.split(" at line ").next().unwrap_or(&text);
            Err(format!("not JSON: {reason} at column {}", e.column()))
        }
    }
}

fn complete(place: Place, mut fields: Map<String, Value>, columns: &[String]) -> Row {
    if fields.len() == columns.len() && fields.keys().eq(columns) {
        return Row { place, fields, missing: Vec::new() };
    }
    let mut missing = Vec::new();
    let ordered = columns.iter().map(|column| {
        let value = fields.shift_remove(column).unwrap_or_else(|| {
            missing.push(column.clone());
            Value::Null
        });
        (column.clone(), value)
    });
    let fields = ordered.collect();
    Row { place, fields, missing }
}
