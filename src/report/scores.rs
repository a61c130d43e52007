//! What a comparison found, task by task and item by item: for `report.md` and for `day0 compare`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Deserialize;

use super::cell;
use crate::eval::ItemText;
use crate::gate::{Flip, TaskEvidence, TaskVerdict};
use crate::record::GateReport;

/// Texts of items by task and document.
pub type Texts = BTreeMap<String, BTreeMap<usize, ItemText>>;

/// Last characters of a prompt that are shown.
const SHOWN_PROMPT: usize = 600;

/// Flipped items shown of each task of a group, which may have many.
const SHOWN_OF_PART: usize = 2;

/// The judged tasks and groups of a comparison; the parts of a group follow it.
pub fn evidence(compare: &GateReport) -> impl Iterator<Item = (&String, TaskEvidence)> {
    let read = |value| TaskEvidence::deserialize(value).ok();
    let mut all: Vec<(&String, TaskEvidence)> =
        compare.per_task.iter().filter_map(|(name, value)| Some((name, read(value)?))).collect();
    all.sort_by_key(|(name, e)| {
        (e.part_of.clone().unwrap_or_else(|| (*name).clone()), e.part_of.is_some(), (*name).clone())
    });
    all.into_iter()
}

/// Number of tasks and groups that were decided.
pub fn decided(compare: &GateReport) -> usize {
    evidence(compare).filter(|(_, e)| e.part_of.is_none()).count()
}

/// Flipped items to show of a task, at most `shown`.
fn shown_of(e: &TaskEvidence, shown: usize) -> usize {
    if e.part_of.is_some() { shown.min(SHOWN_OF_PART) } else { shown }
}

/// The flipped items that [`explain`] shows, by task.
pub fn shown_flips(compare: &GateReport, shown: usize) -> BTreeMap<String, BTreeSet<usize>> {
    let ids = |e: &TaskEvidence| e.flips.iter().take(shown_of(e, shown)).map(|flip| flip.doc_id).collect();
    evidence(compare).map(|(name, e)| (name.clone(), ids(&e))).collect()
}

/// The table of all tasks, in Markdown.
pub fn table(compare: &GateReport) -> String {
    let mut text = String::from(
        "| task | metric | baseline | candidate | drop | bounds | margin | items used | flips lost/won | \
         smallest detectable | verdict |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for (name, e) in evidence(compare) {
        let flips = match (e.flips_b, e.flips_c) {
            (Some(b), Some(c)) => format!("{b}/{c}"),
            _ => "–".to_owned(),
        };
        let used = if e.n < e.full_split { format!("{} of {}", e.n, e.full_split) } else { e.n.to_string() };
        let (drop, lower, upper) = (number(e.drop_fraction), number(e.lower), number(e.upper));
        let verdict = match (&e.part_of, e.verdict) {
            (None, verdict) => format!("{verdict:?}"),
            (Some(group), TaskVerdict::Regression) => format!("part of {group}: Regression"),
            (Some(group), _) => format!("part of {group}"),
        };
        let _ = writeln!(
            text,
            "| {name} | {} | {:.4} | {:.4} | {drop} | {lower} … {upper} | {:.4} | {used} | {flips} | {} | {verdict} |",
            e.metric,
            e.baseline,
            e.candidate,
            e.margin.value(),
            number(e.mde)
        );
    }
    text
}

/// The first `shown` flipped items of each task with prompt, choices and both distributions, in Markdown.
pub fn explain(compare: &GateReport, texts: &Texts, shown: usize) -> String {
    let mut text = String::new();
    for (name, e) in evidence(compare).filter(|(_, e)| !e.flips.is_empty() && shown > 0) {
        let all = e.flips_b.unwrap_or(0) + e.flips_c.unwrap_or(0);
        let shown = shown_of(&e, shown).min(e.flips.len());
        let _ = writeln!(text, "### Flipped items of {name} ({shown} of {all})\n");
        for flip in e.flips.iter().take(shown) {
            one_flip(&mut text, flip, texts.get(name).and_then(|texts| texts.get(&flip.doc_id)));
        }
    }
    text
}

fn one_flip(text: &mut String, flip: &Flip, item: Option<&ItemText>) {
    let change = if flip.lost { "right → wrong" } else { "wrong → right" };
    let target = item.map_or_else(String::new, |item| format!(", target `{}`", cell(&item.target)));
    let _ = writeln!(text, "**item {}**: {change}{target}\n", flip.doc_id);
    if let Some(item) = item {
        let skipped = item.prompt.chars().count().saturating_sub(SHOWN_PROMPT);
        let tail: String = item.prompt.chars().skip(skipped).collect();
        let dots = if skipped > 0 { "… " } else { "" };
        let _ = writeln!(text, "> {dots}{}\n", cell(&tail));
    }
    if flip.baseline_loglikelihoods.is_empty() {
        return;
    }
    let _ = writeln!(text, "| choice | text | baseline p (ln p) | candidate p (ln p) |\n|---|---|---|---|");
    let (base, cand) = (softmax(&flip.baseline_loglikelihoods), softmax(&flip.candidate_loglikelihoods));
    for (index, (p, q)) in base.iter().zip(&cand).enumerate() {
        let choice = item.and_then(|item| item.choices.get(index)).map_or_else(String::new, |c| cell(c));
        let mark = |chosen: Option<usize>| if chosen == Some(index) { " ←" } else { "" };
        let _ = writeln!(
            text,
            "| {index} | {choice} | {p:.3} ({:.2}){} | {q:.3} ({:.2}){} |",
            flip.baseline_loglikelihoods[index],
            mark(flip.baseline_choice),
            flip.candidate_loglikelihoods[index],
            mark(flip.candidate_choice)
        );
    }
    let _ = writeln!(text);
}

/// Probabilities of the choices among themselves.
fn softmax(loglikelihoods: &[f64]) -> Vec<f64> {
    let largest = loglikelihoods.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = loglikelihoods.iter().map(|l| (l - largest).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|e| e / sum).collect()
}

/// Four digits, or a dash.
pub(super) fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |v| format!("{v:.4}"))
}
