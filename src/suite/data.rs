//! Rows of a data set: JSON lines from a directory, from named files, or embedded.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::embedded;
use super::error::{Place, SuiteError};
use crate::base::digest::Digest;

/// Where a task's splits lie.
#[derive(Debug, Clone)]
pub(super) enum DataSource {
    /// Embedded files `<stem>.<split>.jsonl`.
    Embedded {
        /// Stem of the file names.
        stem: String,
    },
    /// Files `<stem>.<split>.jsonl` of a directory.
    Dir {
        /// The directory.
        dir: PathBuf,
        /// Stem of the file names.
        stem: String,
    },
    /// One file for each split.
    Files(BTreeMap<String, PathBuf>),
}

impl DataSource {
    /// Name of the file of a split.
    pub fn file(&self, split: &str) -> Option<String> {
        match self {
            Self::Embedded { stem } => Some(format!("built-in/{stem}.{split}.jsonl")),
            Self::Dir { dir, stem } => Some(dir.join(format!("{stem}.{split}.jsonl")).display().to_string()),
            Self::Files(files) => files.get(split).map(|path| path.display().to_string()),
        }
    }

    /// Whether a split is there.
    pub fn has(&self, split: &str) -> bool {
        match self {
            Self::Embedded { stem } => embedded::data(&format!("{stem}.{split}.jsonl")).is_some(),
            Self::Dir { dir, stem } => dir.join(format!("{stem}.{split}.jsonl")).is_file(),
            Self::Files(files) => files.get(split).is_some_and(|path| path.is_file()),
        }
    }

    /// The rows of a split.
    pub fn read(&self, split: &str) -> Result<Rows, SuiteError> {
        let file = self.file(split).unwrap_or_default();
        if let Self::Embedded { stem } = self {
            let text = embedded::data(&format!("{stem}.{split}.jsonl")).unwrap_or_default();
            return Rows::parse(file, text.as_bytes());
        }
        let path = PathBuf::from(&file);
        let bytes = std::fs::read(&path).map_err(|source| SuiteError::Read { path, source })?;
        Rows::parse(file, &bytes)
    }
}

/// The rows of one file.
#[derive(Debug, Clone)]
pub(super) struct Rows {
    /// File name, for messages.
    pub file: String,
    /// Line number (from 1) and columns of each row. A column that other rows have and this one lacks is null, as
    /// the `datasets` library reads it, and counts as missing where a task needs it.
    pub list: Vec<Row>,
    /// All columns in order of first appearance.
    pub columns: Vec<String>,
    /// Digest of the file's content.
    pub digest: Digest,
}

/// One row.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// Line in the file, from 1.
    pub line: usize,
    /// Columns.
    pub fields: Map<String, Value>,
    /// Columns that this row lacks.
    pub missing: Vec<String>,
}

impl Rows {
    /// Parses JSON lines; blank lines are skipped.
    pub fn parse(file: String, bytes: &[u8]) -> Result<Self, SuiteError> {
        let mut parsed = Vec::new();
        let mut columns: Vec<String> = Vec::new();
        let mut known = std::collections::HashSet::new();
        for (index, line) in bytes.split(|b| *b == b'\n').enumerate() {
            if line.trim_ascii().is_empty() {
                continue;
            }
            let place = Place::new(file.clone(), Some(index + 1));
            let fields = parse_row(line).map_err(|detail| SuiteError::Row { place, detail })?;
            for key in fields.keys() {
                if known.insert(key.clone()) {
                    columns.push(key.clone());
                }
            }
            parsed.push((index + 1, fields));
        }
        if parsed.is_empty() {
            return Err(SuiteError::NoRows { file });
        }
        let list = parsed.into_iter().map(|(line, fields)| complete(line, fields, &columns)).collect();
        Ok(Self { digest: Digest::of(bytes), file, list, columns })
    }

    /// Where a row is.
    pub fn place(&self, row: &Row) -> Place {
        Place::new(self.file.clone(), Some(row.line))
    }
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

fn complete(line: usize, mut fields: Map<String, Value>, columns: &[String]) -> Row {
    if fields.len() == columns.len() && fields.keys().eq(columns) {
        return Row { line, fields, missing: Vec::new() };
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
    Row { line, fields, missing }
}
