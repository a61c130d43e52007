//! `day0 list`.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{Settings, output};
use crate::model::architecture::{ARCHITECTURES, Architecture};
use crate::record::Failure;
use crate::{recipe, suite};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// What to list.
    what: What,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    Recipes,
    /// Tasks and groups.
    #[value(alias = "tasks")]
    Suites,
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
        What::Suites => names(suite::builtin_names()),
        What::Architectures => architectures(),
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

fn architectures() -> Vec<Row> {
    let row = |a: &Architecture| Row { name: a.class.to_owned(), description: a.description.to_owned() };
    ARCHITECTURES.iter().map(row).collect()
}

fn names(names: impl IntoIterator<Item = String>) -> Vec<Row> {
    names.into_iter().map(|name| Row { name, description: String::new() }).collect()
}
