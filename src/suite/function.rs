//! Python functions of lm-eval's own tasks, translated: what a built-in suite may name with `!function`.
//!
//! Names are `<task>.<function>`, because lm-eval's (`utils.process_docs`) mean something else beside every task.
//! Source: lm-eval 0.4.13, `tasks/hellaswag/utils.py`, `tasks/winogrande/preprocess_winogrande.py`,
//! `tasks/wikitext/preprocess_wikitext.py`.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Map, Value, json};

use crate::base::python::is_space;

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
