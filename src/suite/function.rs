//! Python functions of lm-eval's own tasks, translated: what a built-in suite may name with `!function`.
//!
//! Names are `<task>.<function>`, because lm-eval's (`utils.process_docs`) mean something else beside every task; a
//! file of lm-eval that names one of its own is recognized by the content of the Python module beside it.
//! Source: lm-eval 0.4.13, `tasks/hellaswag/utils.py`, `tasks/winogrande/preprocess_winogrande.py`,
//! `tasks/wikitext/preprocess_wikitext.py`, `tasks/truthfulqa/utils.py`.

use std::path::Path;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Map, Value, json};

use super::metric::OutputType;
use crate::base::digest::sha256_hex;
use crate::base::python::is_space;

/// SHA-256 of lm-eval's modules (0.4.13), their functions, and day0's names of them.
const MODULES: [(&str, &[(&str, &str)]); 4] = [
    (
        "07d23b60b28f2a4f658dcf8440623a63fe6644854ce9b846a114dde980dc1214",
        &[("process_docs", "hellaswag.process_docs")],
    ),
    (
        "e55327629264a98f1d383fda24645b6779afb53fa0bce2150042b9416b1ae006",
        &[
            ("doc_to_text", "winogrande.doc_to_text"),
            ("doc_to_target", "winogrande.doc_to_target"),
            ("doc_to_choice", "winogrande.doc_to_choice"),
        ],
    ),
    (
        "a44020374b172159bf5be80a64d2c4194c9d5c77284f696ac666361338c8da7d",
        &[("wikitext_detokenizer", "wikitext.detokenizer"), ("process_results", "wikitext.process_results")],
    ),
    (
        "d3c827d1e2cd442a1e4738b527a18effd48cbb2aed478c12a652311b5ea4dbc8",
        &[("process_results_mc2", "truthfulqa.process_results_mc2")],
    ),
];

/// day0's name for `module.function` as the YAML file `file` calls it, if the module beside it is a known one.
pub(super) fn of_module(file: &Path, name: &str) -> Option<&'static str> {
    let (module, function) = name.split_once('.')?;
    let source = std::fs::read(file.with_file_name(format!("{module}.py"))).ok()?;
    let sha = sha256_hex(&source);
    let (_, functions) = MODULES.iter().find(|(known, _)| *known == sha)?;
    functions.iter().find(|(theirs, _)| *theirs == function).map(|(_, ours)| *ours)
}

/// Row of a data set.
type Fields = Map<String, Value>;

/// A function that gives a value for a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueFunction {
    /// Index of the right option.
    WinograndeText,
    /// What follows the blank.
    WinograndeTarget,
    /// What comes before the blank, with each option.
    WinograndeChoice,
    /// The page with the spaces of its tokenization removed.
    WikitextDetokenizer,
}

/// A function that adds columns to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowFunction {
    /// `query`, `choices` and `gold` from the parts of a HellaSwag row.
    Hellaswag,
}

/// A function that makes metrics of log-likelihoods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResultsFunction {
    /// Words and bytes are counted on the page as it was before it was detokenized.
    WikitextUnits,
    /// `acc` is the share of the probability of all choices that the true ones have.
    TruthfulqaMc2,
}

impl ResultsFunction {
    pub(super) fn from_name(name: &str) -> Option<Self> {
        match name {
            "wikitext.process_results" => Some(Self::WikitextUnits),
            "truthfulqa.process_results_mc2" => Some(Self::TruthfulqaMc2),
            _ => None,
        }
    }

    pub(super) fn output_type(self) -> OutputType {
        match self {
            Self::WikitextUnits => OutputType::LoglikelihoodRolling,
            Self::TruthfulqaMc2 => OutputType::MultipleChoice,
        }
    }

    /// The column that it reads.
    pub fn column(self) -> &'static str {
        match self {
            Self::WikitextUnits => "page",
            Self::TruthfulqaMc2 => "mc2_targets",
        }
    }
}

/// Which choices of a TruthfulQA row are true.
pub fn mc2_labels(row: &Map<String, Value>) -> Result<Vec<bool>, String> {
    let labels = row.get("mc2_targets").and_then(|t| t.get("labels")).and_then(Value::as_array);
    let labels = labels.ok_or("column 'mc2_targets' has no list of labels")?;
    let truth = |label: &Value| match label.as_u64() {
        Some(label @ (0 | 1)) => Ok(label == 1),
        _ => Err(format!("mc2_targets: the label {label} is neither 0 nor 1")),
    };
    labels.iter().map(truth).collect()
}

impl ValueFunction {
    pub(super) fn from_name(name: &str) -> Option<Self> {
        match name {
            "winogrande.doc_to_text" => Some(Self::WinograndeText),
            "winogrande.doc_to_target" => Some(Self::WinograndeTarget),
            "winogrande.doc_to_choice" => Some(Self::WinograndeChoice),
            "wikitext.detokenizer" => Some(Self::WikitextDetokenizer),
            _ => None,
        }
    }

    /// Columns that it reads.
    pub(super) fn columns(self) -> &'static [&'static str] {
        match self {
            Self::WinograndeText => &["answer"],
            Self::WinograndeTarget => &["sentence"],
            Self::WinograndeChoice => &["sentence", "option1", "option2"],
            Self::WikitextDetokenizer => &["page"],
        }
    }

    pub(super) fn apply(self, row: &Fields) -> Result<Value, String> {
        match self {
            Self::WinograndeText => match text(row, "answer")? {
                "1" => Ok(json!(0)),
                "2" => Ok(json!(1)),
                other => Err(format!("answer is {other:?}, expected \"1\" or \"2\"")),
            },
            Self::WinograndeTarget => {
                let (_, after) = blank(row)?;
                Ok(after.trim_matches(is_space).into())
            }
            Self::WinograndeChoice => {
                let (before, _) = blank(row)?;
                let options = [text(row, "option1")?, text(row, "option2")?];
                Ok(options.iter().map(|o| format!("{before}{o}")).collect())
            }
            Self::WikitextDetokenizer => Ok(detokenize(text(row, "page")?).into()),
        }
    }
}

impl RowFunction {
    pub(super) fn from_name(name: &str) -> Option<Self> {
        (name == "hellaswag.process_docs").then_some(Self::Hellaswag)
    }

    /// Columns that it adds, in order.
    pub(super) fn added(self) -> &'static [&'static str] {
        match self {
            Self::Hellaswag => &["query", "choices", "gold"],
        }
    }

    pub(super) fn apply(self, row: &mut Fields) -> Result<(), String> {
        match self {
            Self::Hellaswag => hellaswag(row),
        }
    }
}

fn text<'a>(row: &'a Fields, column: &str) -> Result<&'a str, String> {
    match row.get(column) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("column '{column}' is {other}, expected a text")),
        None => Err(format!("column '{column}' is missing")),
    }
}

/// The sentence before and after its blank.
fn blank(row: &Fields) -> Result<(&str, &str), String> {
    let sentence = text(row, "sentence")?;
    sentence.split_once('_').ok_or_else(|| format!("sentence {sentence:?} has no blank '_'"))
}

fn hellaswag(row: &mut Fields) -> Result<(), String> {
    let context = format!("{} {}", text(row, "ctx_a")?, capitalize(text(row, "ctx_b")?));
    let query = clean_wikihow(&format!("{}: {context}", text(row, "activity_label")?));
    let endings = row.get("endings").and_then(Value::as_array).ok_or("column 'endings' is no list")?;
    let clean = |ending: &Value| ending.as_str().map(clean_wikihow).ok_or("an ending is no text".to_owned());
    let choices = endings.iter().map(clean).collect::<Result<Vec<_>, _>>()?;
    let label = text(row, "label")?;
    let gold: i64 = label.trim().parse().map_err(|_| format!("label {label:?} is no number"))?;
    row.insert("query".to_owned(), query.into());
    row.insert("choices".to_owned(), choices.into());
    row.insert("gold".to_owned(), gold.into());
    Ok(())
}

/// Text in brackets marks parts of WikiHow articles.
fn clean_wikihow(text: &str) -> String {
    static BRACKETS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\[.*?\]").expect("a constant pattern"));
    let text = text.trim_matches(is_space).replace(" [title]", ". ");
    BRACKETS.replace_all(&text, "").replace("  ", " ")
}

/// `str.capitalize()`: the first character in title case, the others in lower case.
fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return String::new() };
    let mut upper = first.to_uppercase();
    let head: String = upper.next().into_iter().chain(upper.flat_map(char::to_lowercase)).collect();
    head + &chars.as_str().to_lowercase()
}

fn detokenize(page: &str) -> String {
    /// Spaces inside (), [], {}, "" and ''. `[\s\x1c-\x1f]` is Python's `\s`.
    static INSIDE: LazyLock<[Regex; 5]> = LazyLock::new(|| {
        let space = r"[\s\x1c-\x1f]*";
        [
            format!(r"(\(){space}([^\)]*?){space}(\))"),
            format!(r"(\[){space}([^\]]*?){space}(\])"),
            format!(r"(\{{){space}([^}}]*?){space}(\}})"),
            format!(r#"("){space}([^"]*?){space}(")"#),
            format!(r"('){space}([^']*?){space}(')"),
        ]
        .map(|pattern| Regex::new(&pattern).expect("a constant pattern"))
    });
    const BEFORE: [(&str, &str); 10] = [
        ("s '", "s'"),
        (" @-@ ", "-"),
        (" @,@ ", ","),
        (" @.@ ", "."),
        (" : ", ": "),
        (" ; ", "; "),
        (" . ", ". "),
        (" ! ", "! "),
        (" ? ", "? "),
        (" , ", ", "),
    ];
    const AFTER: [(&str, &str); 8] = [
        ("= = = =", "===="),
        ("= = =", "==="),
        ("= =", "=="),
        (" \u{b0} ", "\u{b0}"),
        (" \n", "\n"),
        ("\n ", "\n"),
        (" N ", " 1 "),
        (" 's", "'s"),
    ];
    let mut text = page.to_owned();
    for (from, to) in BEFORE {
        text = text.replace(from, to);
    }
    for pattern in INSIDE.iter() {
        text = pattern.replace_all(&text, "$1$2$3").into_owned();
    }
    for (from, to) in AFTER {
        text = text.replace(from, to);
    }
    text
}
