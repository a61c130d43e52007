//! What a measurement of reproducibility found: a table of the criteria, and loss curves as SVG.

use std::fmt::Write as _;

use super::cell;
use crate::base::units::human_seconds;
use crate::record::GateReport;
use crate::record::repro::{FamilyRuns, Point, SeedRuns};

/// `report.md` of a measurement.
pub fn repro(runs: &SeedRuns, decided: &GateReport) -> String {
    let verdict = decided.verdict.map_or_else(|| "no verdict".to_owned(), |v| v.to_string());
    let mut text = format!("# Reproducibility: {verdict}\n\n{}\n\n", cell(&decided.detail));
    text.push_str(&criteria(decided));
    for family in &runs.families {
        let _ = writeln!(
            text,
            "## {}\n\n| seed | {}s | set-up | steps | error |\n|---|---|---|---|---|",
            family.family, family.step
        );
        for run in &family.runs {
            let (setup, steps) = (human_seconds(run.setup_s), human_seconds(run.steps_s));
            let _ = writeln!(
                text,
                "| {} | {} of {} | {setup} | {steps} | {} |",
                run.seed,
                run.steps_done,
                run.steps_wanted(family.steps),
                cell(&run.error)
            );
        }
        text.push('\n');
    }
    for (name, _) in curves(runs) {
        let _ = writeln!(text, "![{name}]({name})\n");
    }
    text
}

/// The table of the criteria.
pub fn criteria(decided: &GateReport) -> String {
    let mut text = String::from("| criterion | result | tier | seen |\n|---|---|---|---|\n");
    for (name, seen) in decided.checks.iter().filter(|(_, seen)| seen.get("state").is_some()) {
        let word = |key: &str| cell(seen[key].as_str().unwrap_or_default());
        let state = if seen["state"] == "broken" { "**broken**".to_owned() } else { word("state") };
        let _ = writeln!(text, "| {name} | {state} | {} | {} |", word("tier"), word("detail"));
    }
    text.push('\n');
    text
}

/// One SVG a family and loss metric: file name and text.
pub fn curves(runs: &SeedRuns) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for family in &runs.families {
        let mut metrics: Vec<&String> = family.runs.iter().flat_map(|r| r.curves.keys()).collect();
        metrics.sort();
        metrics.dedup();
        for metric in metrics.into_iter().filter(|m| m.contains("loss") || m.contains("error")) {
            files.push((format!("curve_{}_{}.svg", family.family, plain(metric)), svg(family, metric)));
        }
    }
    files
}

/// A name that is safe in a file name.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' }).collect()
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 56.0;
const BOTTOM: f64 = 36.0;
const MARGIN: f64 = 16.0;
/// Points drawn of a curve.
const DRAWN: usize = 400;
/// Tab10 of Matplotlib.
const COLOURS: [&str; 10] = [
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22",
    "#17becf",
];

/// The curves of all seeds of one metric.
fn svg(family: &FamilyRuns, metric: &str) -> String {
    let curves: Vec<(u64, &[Point])> =
        family.runs.iter().filter_map(|r| Some((r.seed, r.curves.get(metric)?.as_slice()))).collect();
    let finite =
        || curves.iter().flat_map(|(_, c)| c.iter()).filter_map(|p| p.value).filter(|v| v.is_finite());
    let (low, high) = finite().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    let (low, high) = match (low < high, low.is_finite()) {
        (true, _) => (low, high),
        // A flat curve, or none.
        (false, true) => (low - 0.5, low + 0.5),
        (false, false) => (0.0, 1.0),
    };
    let last = curves.iter().filter_map(|(_, c)| c.last()).map(|p| p.step).max().unwrap_or(1).max(1) as f64;
    let x = |step: u64| LEFT + step as f64 / last * (WIDTH - LEFT - MARGIN);
    let y = |value: f64| HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - BOTTOM - MARGIN);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"12\">{}: {}</text>\n",
        escaped(&family.family),
        escaped(metric)
    );
    for tick in 0..=4 {
        let value = low + (high - low) * f64::from(tick) / 4.0;
        let at = y(value);
        let right = WIDTH - MARGIN;
        let _ = writeln!(
            text,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value:.3}</text>",
            LEFT - 4.0,
            at + 4.0
        );
    }
    let floor = HEIGHT - BOTTOM + 16.0;
    let _ = writeln!(text, "<text x=\"{LEFT}\" y=\"{floor}\">0</text>");
    let (right, step) = (WIDTH - MARGIN, escaped(&family.step));
    let _ = writeln!(text, "<text x=\"{right}\" y=\"{floor}\" text-anchor=\"end\">{last} {step}s</text>");
    for (index, (seed, curve)) in curves.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let skip = curve.len().div_ceil(DRAWN).max(1);
        let drawn = curve.iter().enumerate().filter(|(i, _)| i % skip == 0 || i + 1 == curve.len());
        let points: Vec<String> = drawn
            .filter_map(|(_, p)| Some((p.step, p.value.filter(|v| v.is_finite())?)))
            .map(|(step, value)| format!("{:.1},{:.1}", x(step), y(value)))
            .collect();
        let _ = writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">seed {seed}</text>",
            points.join(" "),
            LEFT + 70.0 * index as f64,
            HEIGHT - 6.0
        );
    }
    text + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::record::repro::SeedRun;

    fn family(values: &[Option<f64>]) -> FamilyRuns {
        let curve = values.iter().enumerate().map(|(i, v)| Point { step: i as u64 + 1, value: *v }).collect();
        let run = SeedRun {
            seed: 4,
            steps_done: values.len() as u64,
            steps_available: None,
            error: String::new(),
            setup_s: 0.0,
            steps_s: 0.0,
            curves: BTreeMap::from([("a<loss".to_owned(), curve)]),
            finals: BTreeMap::new(),
            non_finite: BTreeMap::new(),
            digest: None,
            repeat_digest: None,
            repeat_values: BTreeMap::new(),
            prompts_digest: None,
            notes: vec![],
        };
        FamilyRuns { family: "f".into(), step: "step".into(), steps: 1, criteria: vec![], runs: vec![run] }
    }

    #[test]
    fn curves_are_well_formed_whatever_their_values() {
        for values in [
            vec![],
            vec![Some(1.0)],
            vec![Some(2.0), None, Some(1.0)],
            vec![Some(f64::NAN), Some(f64::INFINITY)],
            (0..5000).map(|i| Some(f64::from(i))).collect(),
        ] {
            let text = svg(&family(&values), "a<loss");
            let document = roxmltree::Document::parse(&text).unwrap();
            let line = document.descendants().find(|n| n.has_tag_name("polyline")).unwrap();
            let points = line.attribute("points").unwrap();
            assert!(!points.contains("NaN") && !points.contains("inf"), "{points}");
            assert!(points.split(' ').count() <= DRAWN + 2);
            assert!(text.contains("seed 4") && text.contains("a&lt;loss"));
        }
    }

    #[test]
    fn a_falling_loss_is_drawn_falling() {
        let text = svg(&family(&[Some(2.0), Some(1.0)]), "a<loss");
        let document = roxmltree::Document::parse(&text).unwrap();
        let line = document.descendants().find(|n| n.has_tag_name("polyline")).unwrap();
        // Downwards is larger in SVG.
        assert_eq!(line.attribute("points"), Some("340.0,16.0 624.0,284.0"));
    }
}
