//! `day0 runs`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{Settings, output};
use crate::base::json;
use crate::record::Failure;
use crate::record::release::ReleaseRecord;
use crate::release::run_dir::RunRecord;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Directory that holds run directories.
    #[arg(default_value = "runs")]
    dir: PathBuf,
}

#[derive(Serialize)]
struct Row {
    run: String,
    created_at: String,
    model: String,
    recipe: String,
    verdict: String,
}

pub(super) fn run(arguments: &Arguments, settings: &Settings) -> Result<u8, Failure> {
    let mut rows = Vec::new();
    let entries = match std::fs::read_dir(&arguments.dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return show(&rows, settings),
        Err(e) => return Err(Failure::io(arguments.dir.display(), &e)),
    };
    for entry in entries {
        let path = entry.map_err(|e| Failure::io(arguments.dir.display(), &e))?.path();
        if let Ok(run) = json::read::<RunRecord>(&path.join("run.json")) {
            rows.push(row(&path.display().to_string(), &run, json::read(&path.join("release.json")).ok()));
        }
    }
    rows.sort_by(|a, b| a.created_at.cmp(&b.created_at));
    show(&rows, settings)
}

fn row(path: &str, run: &RunRecord, release: Option<ReleaseRecord>) -> Row {
    let verdict = match &release {
        None => "unfinished".to_owned(),
        Some(r) => r.verdict.map_or_else(|| "no verdict".to_owned(), |v| v.to_string()),
    };
    let (model, recipe) = release.map_or_else(|| ("?".to_owned(), "?".to_owned()), |r| (r.model, r.recipe));
    Row { run: path.to_owned(), created_at: run.created_at.clone(), model, recipe, verdict }
}

fn show(rows: &[Row], settings: &Settings) -> Result<u8, Failure> {
    if settings.json {
        output::json(&rows)?;
        return Ok(0);
    }
    for row in rows {
        output::line(&format!(
            "{}  {:<11} {:<14} {:<20} {}",
            row.created_at, row.verdict, row.recipe, row.model, row.run
        ));
    }
    Ok(0)
}
