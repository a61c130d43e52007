//! The tasks, groups and data that come with the program: the files of `suites/`.

macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_str!(concat!("../../suites/", $path)))),*]
    };
}

macro_rules! data {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../suites/day0-tiny/data/", $name)))),*]
    };
}

/// Task and group files by their path under `suites/`.
const DEFINITIONS: &[(&str, &str)] = files![
    "arc_challenge.yaml",
    "arc_easy.yaml",
    "boolq.yaml",
    "day0-tiny/day0-tiny.yaml",
    "day0-tiny/tiny_colours.yaml",
    "day0-tiny/tiny_homes.yaml",
    "day0-tiny/tiny_jobs.yaml",
    "day0-tiny/tiny_pets.yaml",
    "day0-tiny/tiny_stories.yaml",
    "hellaswag.yaml",
    "lambada_openai.yaml",
    "openbookqa.yaml",
    "piqa.yaml",
    "truthfulqa_mc1.yaml",
    "wikitext.yaml",
    "winogrande.yaml",
];

/// Rows by file name, `<data_stem>.<split>.jsonl`.
const DATA: &[(&str, &str)] = data![
    "tiny_colours.test.jsonl",
    "tiny_homes.test.jsonl",
    "tiny_jobs.test.jsonl",
    "tiny_pets.test.jsonl",
    "tiny_stories.test.jsonl",
];

/// Paths of all task and group files.
pub(super) fn definition_names() -> Vec<&'static str> {
    DEFINITIONS.iter().map(|(name, _)| *name).collect()
}

/// Text of a task or group file.
pub(super) fn definition(name: &str) -> Option<&'static str> {
    DEFINITIONS.iter().find(|(n, _)| *n == name).map(|(_, text)| *text)
}

/// Rows of a data file.
pub(super) fn data(file: &str) -> Option<&'static str> {
    DATA.iter().find(|(n, _)| *n == file).map(|(_, text)| *text)
}
