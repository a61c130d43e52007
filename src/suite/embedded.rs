//! The tasks, groups and data that come with the program: the files of `suites/`.

macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_str!(concat!("../../suites/", $path)))),*]
    };
}

/// Task and group files by their path under `suites/`.
const DEFINITIONS: &[(&str, &str)] = files![
    "arc_challenge.yaml",
    "arc_easy.yaml",
    "boolq.yaml",
    "hellaswag.yaml",
    "lambada_openai.yaml",
    "openbookqa.yaml",
    "piqa.yaml",
    "truthfulqa_mc1.yaml",
    "wikitext.yaml",
    "winogrande.yaml",
];

/// Rows by file name, `<data_stem>.<split>.jsonl`.
const DATA: &[(&str, &str)] = &[];

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
