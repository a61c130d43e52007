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
    "core.yaml",
    "day0-tiny/day0-tiny.yaml",
    "day0-tiny/tiny_colours.yaml",
    "day0-tiny/tiny_homes.yaml",
    "day0-tiny/tiny_jobs.yaml",
    "day0-tiny/tiny_pets.yaml",
    "day0-tiny/tiny_stories.yaml",
    "hellaswag.yaml",
    "lambada_openai.yaml",
    "mmlu/_default_template_yaml",
    "mmlu/_mmlu.yaml",
    "mmlu/_mmlu_humanities.yaml",
    "mmlu/_mmlu_other.yaml",
    "mmlu/_mmlu_social_sciences.yaml",
    "mmlu/_mmlu_stem.yaml",
    "mmlu/mmlu_abstract_algebra.yaml",
    "mmlu/mmlu_anatomy.yaml",
    "mmlu/mmlu_astronomy.yaml",
    "mmlu/mmlu_business_ethics.yaml",
    "mmlu/mmlu_clinical_knowledge.yaml",
    "mmlu/mmlu_college_biology.yaml",
    "mmlu/mmlu_college_chemistry.yaml",
    "mmlu/mmlu_college_computer_science.yaml",
    "mmlu/mmlu_college_mathematics.yaml",
    "mmlu/mmlu_college_medicine.yaml",
    "mmlu/mmlu_college_physics.yaml",
    "mmlu/mmlu_computer_security.yaml",
    "mmlu/mmlu_conceptual_physics.yaml",
    "mmlu/mmlu_econometrics.yaml",
    "mmlu/mmlu_electrical_engineering.yaml",
    "mmlu/mmlu_elementary_mathematics.yaml",
    "mmlu/mmlu_formal_logic.yaml",
    "mmlu/mmlu_global_facts.yaml",
    "mmlu/mmlu_high_school_biology.yaml",
    "mmlu/mmlu_high_school_chemistry.yaml",
    "mmlu/mmlu_high_school_computer_science.yaml",
    "mmlu/mmlu_high_school_european_history.yaml",
    "mmlu/mmlu_high_school_geography.yaml",
    "mmlu/mmlu_high_school_government_and_politics.yaml",
    "mmlu/mmlu_high_school_macroeconomics.yaml",
    "mmlu/mmlu_high_school_mathematics.yaml",
    "mmlu/mmlu_high_school_microeconomics.yaml",
    "mmlu/mmlu_high_school_physics.yaml",
    "mmlu/mmlu_high_school_psychology.yaml",
    "mmlu/mmlu_high_school_statistics.yaml",
    "mmlu/mmlu_high_school_us_history.yaml",
    "mmlu/mmlu_high_school_world_history.yaml",
    "mmlu/mmlu_human_aging.yaml",
    "mmlu/mmlu_human_sexuality.yaml",
    "mmlu/mmlu_international_law.yaml",
    "mmlu/mmlu_jurisprudence.yaml",
    "mmlu/mmlu_logical_fallacies.yaml",
    "mmlu/mmlu_machine_learning.yaml",
    "mmlu/mmlu_management.yaml",
    "mmlu/mmlu_marketing.yaml",
    "mmlu/mmlu_medical_genetics.yaml",
    "mmlu/mmlu_miscellaneous.yaml",
    "mmlu/mmlu_moral_disputes.yaml",
    "mmlu/mmlu_moral_scenarios.yaml",
    "mmlu/mmlu_nutrition.yaml",
    "mmlu/mmlu_philosophy.yaml",
    "mmlu/mmlu_prehistory.yaml",
    "mmlu/mmlu_professional_accounting.yaml",
    "mmlu/mmlu_professional_law.yaml",
    "mmlu/mmlu_professional_medicine.yaml",
    "mmlu/mmlu_professional_psychology.yaml",
    "mmlu/mmlu_public_relations.yaml",
    "mmlu/mmlu_security_studies.yaml",
    "mmlu/mmlu_sociology.yaml",
    "mmlu/mmlu_us_foreign_policy.yaml",
    "mmlu/mmlu_virology.yaml",
    "mmlu/mmlu_world_religions.yaml",
    "openbookqa.yaml",
    "piqa.yaml",
    "quick.yaml",
    "truthfulqa_mc1.yaml",
    "truthfulqa_mc2.yaml",
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
