//! `day0 list`.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{Settings, output};
use crate::record::Failure;
use crate::{model, recipe, suite};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// What to list.
    what: What,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    Recipes,
    Suites,
    Tasks,
    Architectures,
}

#[derive(Serialize)]
struct Row {
    name: String,
    description: String,
}

pub(super) fn run(arguments: &Arguments, settings: &Settings) -> Result<u8, Failure> {
    let rows = match arguments.what {
        What::Recipes => recipes()?,
        What::Suites => rows(suite::builtin_suites()),
        What::Tasks => rows(suite::builtin_tasks()),
        What::Architectures => rows(model::config::ARCHITECTURES.iter().map(|a| ((*a).to_owned(), String::new()))),
    };
    if settings.json {
        output::json(&rows)?;
        return Ok(0);
    }
    for row in rows {
        output::line(format!("{:<24} {}", row.name, row.description).trim_end());
    }
    Ok(0)
}

fn recipes() -> Result<Vec<Row>, Failure> {
    let describe = |name: &&str| {
        let recipe = recipe::load(name)?;
        Ok(Row { name: (*name).to_owned(), description: recipe.description })
    };
    recipe::builtin_names().iter().map(describe).collect()
}

fn rows(pairs: impl IntoIterator<Item = (String, String)>) -> Vec<Row> {
    pairs.into_iter().map(|(name, description)| Row { name, description }).collect()
}
