//! A suite with a score of its own is decided by that score, from the command line.

use serde_json::{Value, json};

use super::common::{day0, read_json, turn};

const SUITE: &str = "group: tiny_all\ntask: [tiny_colours, tiny_homes, tiny_jobs, tiny_pets]\n\
                     aggregate_metric_list: [{metric: acc, weight_by_size: true}]\nmetadata: {version: 1.0}\n";

#[test]
fn a_group_is_visited_as_one_and_decided_once() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("all.yaml"), SUITE).unwrap();
    let release = |run: &str, more: &[&str]| {
        let args = ["release", "--suite", "all.yaml", "--out", run];
        day0(dir.path(), args.iter().chain(more))
    };
    release("run", &[]).expect(0).says("on all 1 tasks").says("all 1 task(s) shown to be within the margin");
    let run = dir.path().join("run");
    let report = read_json(run.join("gates/compare.json"));
    let group = &report["per_task"]["tiny_all"];
    assert_eq!(group["pooled"].as_array().unwrap().len(), 4);
    assert_eq!(group["method"], json!("betting"));
    let count = |value: &Value, key: &str| value[key].as_u64().unwrap();
    assert!(
        count(group, "n") < 1500
            && count(group, "n") + count(group, "not_needed") == count(group, "full_split")
    );
    let record = read_json(run.join("eval/candidate/record.json"));
    let mut visited = 0;
    for task in ["tiny_colours", "tiny_homes", "tiny_jobs", "tiny_pets"] {
        assert_eq!(report["per_task"][task]["part_of"], json!("tiny_all"));
        let visit = &record["tasks"][task]["visit"];
        assert_eq!(visit["group"], json!("tiny_all"));
        assert_eq!(visit["looks"].as_array().unwrap().len(), group["looks"].as_array().unwrap().len());
        visited += visit["order"].as_array().unwrap().len() as u64;
    }
    assert_eq!(visited, count(group, "n"));
    let results = read_json(run.join("eval/candidate/results.json"));
    assert_eq!(results["groups"]["tiny_all"]["sample_len"], json!(visited));
    let text = std::fs::read_to_string(run.join("report.md")).unwrap();
    assert!(text.contains("| part of tiny_all |"), "{text}");
    // The gate replays the looks of the group from the records alone.
    day0(
        dir.path(),
        ["gate", "compare", "--baseline", "run/eval/baseline", "--candidate", "run/eval/candidate"],
    )
    .expect(0)
    .says("all 1 task(s)");
    // A part has no margin of its own, unless the group is decided task by task.
    let config = |text: &str| std::fs::write(dir.path().join("day0.yaml"), text).unwrap();
    config("tasks: {tiny_homes: {margin: 0.02}}");
    release("part", &[])
        .expect(2)
        .says("tasks.tiny_homes: is decided as a part of tiny_all")
        .says("pooled: false");
    config("tasks: {tiny_all: {pooled: false, margin: 0.02}, tiny_homes: {tier: advisory}}");
    release("each", &["--limit", "600"]);
    let each = read_json(dir.path().join("each/gates/compare.json"));
    assert!(each["per_task"].get("tiny_all").is_none());
    assert_eq!(each["per_task"]["tiny_colours"]["margin"], json!({"absolute": 0.02}));
    assert_eq!(each["per_task"]["tiny_homes"]["tier"], json!("advisory"));
    // A plan knows the group, too, as day0.yaml says, and how long it takes on this machine.
    let rows = || {
        let args = ["power", "--suite", "all.yaml", "--simulations", "50", "--model", "day0-tiny", "--json"];
        day0(dir.path(), args).expect(0).json()
    };
    assert!(rows().as_array().unwrap().iter().all(|row| row["task"] != json!("tiny_all")));
    std::fs::remove_file(dir.path().join("day0.yaml")).unwrap();
    let rows = rows();
    assert_eq!((rows[0]["task"].as_str(), rows.as_array().unwrap().len()), (Some("tiny_all"), 3));
    assert!(rows[0]["seconds"].as_f64().unwrap() > 0.0);
}
