use super::*;

const STAGES: [&str; 2] = ["quantize", "score"];

fn profile(text: &str) -> Result<Profile, Failure> {
    ProfileFile::parse(text, "cluster.yaml")?.validate(&STAGES)
}

#[test]
fn stages_inherit_and_override() {
    let text = "partition: cpu\ncpus: 4\ntime: 1:00:00\nstages: {score: {cpus: 8, gres: 'gpu:2'}}";
    let profile = profile(text).unwrap();
    let (quantize, score) = (profile.resources("quantize"), profile.resources("score"));
    assert_eq!((quantize.cpus, quantize.gres), (Some(4), None));
    assert_eq!((score.cpus, score.gres.as_deref()), (Some(8), Some("gpu:2")));
    assert_eq!((score.partition.as_deref(), score.time.as_deref()), (Some("cpu"), Some("1:00:00")));
}

#[test]
fn unknown_keys_are_refused_with_line_and_suggestion() {
    let failure = profile("partition: a\npartiton: b\n").unwrap_err();
    assert!(failure.message.contains("cluster.yaml") && failure.message.contains("line 2"), "{failure}");
    assert_eq!(failure.hint.as_deref(), Some("did you mean 'partition'?"));
    let failure = profile("stages: {scores: {cpus: 1}}").unwrap_err();
    assert_eq!(failure.hint.as_deref(), Some("did you mean 'score'?"));
    let failure = profile("stages:\n  score:\n    memry: 1G\n").unwrap_err();
    assert!(failure.message.contains("line 3"), "{failure}");
    assert_eq!(failure.hint.as_deref(), Some("did you mean 'memory'?"));
}

#[test]
fn bad_values_are_refused() {
    for text in [
        "cpus: 0",
        "cpus: -1",
        "time: soon",
        "time: 1-2-3",
        "time: 1",
        "memory: 64GB",
        "memory: lots",
        "sbatch: [exclusive]",
        "sbatch: ['--array=1-2']",
        "sbatch: ['-c4']",
        "sbatch: ['-N 2']",
        "sbatch: ['-J', x]",
        "sbatch: ['--ntasks=2']",
        "sbatch: ['--nodes=2']",
        "sbatch: ['--error=/tmp/x']",
        "sbatch: ['-e /tmp/x']",
        "sbatch: ['--err /tmp/x']",
        "sbatch: ['--wait']",
        "sbatch: ['-W']",
        "sbatch: ['--clusters=other']",
        "sbatch: ['-Mother']",
        "sbatch: ['-H']",
        "sbatch: ['--test-only']",
        "gpus: ''",
        "sbatch: [\"--x\\n#SBATCH --y\"]",
        "partition: ''",
        "environment: {'A B': c}",
        "container: {image: x, runtime: docker}",
        "stages: {score: {throttle: 0}}",
    ] {
        assert!(profile(text).is_err(), "{text}");
    }
}

#[test]
fn options_that_only_begin_like_ours_are_taken() {
    for option in ["--wait-all-nodes=1", "--exclusive", "--nodelist=n1", "--export-file=x", "-p gpu"] {
        assert!(profile(&format!("sbatch: ['{option}']")).is_ok(), "{option}");
    }
}

#[test]
fn a_time_limit_that_the_warning_may_use_up_is_remarked_on() {
    let remarks = |text: &str| profile(text).unwrap().remarks();
    assert!(remarks("time: 10").is_empty() && remarks("").is_empty());
    assert!(remarks("time: '3'")[0].starts_with("time: 3 may leave nothing"));
    let stage = "time: 10\nsignal_seconds: 30\nstages: {score: {time: '1:30'}}";
    assert!(remarks(stage)[0].starts_with("stages.score.time: 1:30"));
}

#[test]
fn another_image_keeps_the_runtime() {
    let image = |text: &str| {
        let file = ProfileFile::parse(text, "x").unwrap().with_image("/b.sif".to_owned());
        file.validate(&STAGES).unwrap().container.unwrap()
    };
    let kept = image("container: {image: /a.sif, runtime: pyxis, mounts: ['/tmp']}");
    assert_eq!((kept.image.as_str(), kept.runtime, kept.mounts.len()), ("/b.sif", Runtime::Pyxis, 1));
    assert_eq!(image("").runtime, Runtime::Apptainer);
}

#[test]
fn time_limits() {
    let cases = [
        ("10", 600),
        ("1:30", 90),
        ("2:00:00", 7200),
        ("1-0", 86_400),
        ("1-1:01", 90_060),
        ("1-0:0:1", 86_401),
    ];
    for (text, expected) in cases {
        assert_eq!(seconds(text), Some(expected), "{text}");
    }
    assert_eq!(seconds("UNLIMITED"), Some(u64::MAX));
    for text in ["", "x", "1:2:3:4", "-1", "+1", "1.5", "99999999999999999999"] {
        assert_eq!(seconds(text), None, "{text}");
    }
}

#[test]
fn paths_are_checked() {
    let missing = |text: &str| profile(text).unwrap().check_paths().unwrap_err().message;
    assert!(missing("program: /nowhere/day0").contains("program"));
    assert!(missing("container: {image: /nowhere.sif, runtime: apptainer}").contains("container.image"));
    let mounts = "container: {image: 'docker://x', runtime: pyxis, mounts: ['/nowhere:/data']}";
    assert!(missing(mounts).contains("container.mounts"));
    assert!(
        profile("container: {image: 'docker://x', runtime: pyxis, mounts: ['/tmp']}")
            .unwrap()
            .check_paths()
            .is_ok()
    );
}

proptest::proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in ".{0,200}") {
        let _ = profile(&text);
        let _ = seconds(&text);
    }
}
