//! The maker of the embedded default: its generator, its tasks, and a run of five steps.

#[path = "../../examples/train_tiny/card.rs"]
mod card;
#[path = "../../examples/train_tiny/check.rs"]
mod check;
#[path = "../../examples/train_tiny/files.rs"]
mod files;
#[path = "../../examples/train_tiny/pipeline.rs"]
mod pipeline;
#[path = "../../examples/train_tiny/schemes.rs"]
mod schemes;
#[path = "../../examples/train_tiny/tasks.rs"]
mod tasks;
#[path = "../../examples/train_tiny/tokenizer.rs"]
mod tokenizer;
#[path = "../../examples/train_tiny/train.rs"]
mod train;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

use candle_core::DType;
use day0::ready::train::{corpus, fused, generator, model, tokens, trainer, words};

use corpus::{Corpus, Stream, stream};
use generator::World;
use model::Config;
use pipeline::Options;
use tasks::{CHOICES, Item, TASKS, items};
use trainer::Schedule;

const SEED: u64 = 7;

fn world() -> World {
    World::new(&mut stream(SEED, Stream::World))
}

fn small(out: &Path) -> Options {
    Options {
        schedule: Schedule { steps: 5, batch: 2, seq_len: 32, lr: 1e-3, threads: 2 },
        items: 8,
        documents: 4,
        seed: SEED,
        out: out.to_owned(),
        ..Options::default()
    }
}

#[test]
fn five_steps_write_a_whole_model() {
    let out = tempfile::tempdir().unwrap();
    let options = small(out.path());
    let trained = pipeline::run(&options, &mut |_| ()).unwrap();
    assert_eq!(trained.curve.len(), 5);
    assert!(trained.curve.iter().all(|point| point.loss.is_finite()));
    assert!(trained.curve[4].loss < trained.curve[0].loss, "{:?}", trained.curve);

    let dir = out.path().join("models/day0-tiny");
    for file in
        ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md"]
    {
        assert!(dir.join(file).is_file(), "{file} is missing");
    }
    let stored =
        candle_core::safetensors::load(dir.join("model.safetensors"), &candle_core::Device::Cpu).unwrap();
    let expected = Config::tiny(832).tensors();
    assert_eq!(stored.len(), expected.len());
    for (name, dims) in expected {
        let tensor = stored.get(&name).unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!((tensor.dims(), tensor.dtype()), (dims.as_slice(), DType::BF16), "{name}");
    }

    let suite = out.path().join("suites/day0-tiny");
    for task in TASKS {
        assert!(suite.join(format!("{}.yaml", task.name)).is_file());
        let data = fs::read_to_string(suite.join(format!("data/{}.test.jsonl", task.name))).unwrap();
        let read: Vec<Item> = data.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read, items(&world(), task, 8, SEED));
    }
    let tables = pipeline::check_only(&options).unwrap();
    assert!(
        fs::read_to_string(dir.join("README.md")).unwrap().ends_with(&tables),
        "the card repeats the check"
    );
}

#[test]
fn the_same_seed_trains_the_same_tokenizer() {
    let (world, none) = (world(), HashSet::new());
    let make = || {
        let tokenizer = tokenizer::train(&mut Corpus::new(&world, &none, SEED), 1_024).unwrap();
        tokenizer.to_string(false).unwrap()
    };
    assert_eq!(make(), make());
}

#[test]
fn a_vocabulary_too_small_for_whole_words_is_refused() {
    let (world, none) = (world(), HashSet::new());
    let error = tokenizer::train(&mut Corpus::new(&world, &none, SEED), 300).unwrap_err();
    assert!(error.to_string().contains("raise --vocab"), "{error}");
}

#[test]
fn items_repeat_by_seed_and_differ_between_seeds() {
    for task in TASKS {
        assert_eq!(items(&world(), task, 50, SEED), items(&world(), task, 50, SEED));
        assert_ne!(items(&world(), task, 50, SEED), items(&world(), task, 50, SEED + 1));
    }
}

#[test]
fn items_are_distinct_and_gold_is_anywhere() {
    for task in TASKS {
        let items = items(&world(), task, 2_000, SEED);
        let contexts: HashSet<&str> = items.iter().map(|item| item.context.as_str()).collect();
        assert_eq!(contexts.len(), items.len());
        let mut at = [0_usize; CHOICES];
        for item in &items {
            assert_eq!(item.choices.iter().collect::<HashSet<_>>().len(), CHOICES, "{item:?}");
            assert!(!item.context.ends_with(char::is_whitespace));
            at[item.label] += 1;
        }
        // Four standard errors of a quarter of 2,000.
        assert!(at.iter().all(|&n| (423..=577).contains(&n)), "{}: {at:?}", task.name);
    }
}

/// The likeliest answer to a question is the person's own value: the share of golds that agree with the majority of
/// the golds for the same person and attribute is the declared probability.
#[test]
fn golds_follow_the_facts_as_often_as_declared() {
    for task in TASKS {
        let items = items(&world(), task, 4_000, SEED);
        let mut golds: HashMap<&str, HashMap<&str, usize>> = HashMap::new();
        for item in &items {
            let name = item.context.rsplit(". ").next().unwrap().split(' ').next().unwrap();
            *golds.entry(name).or_default().entry(item.choices[item.label].as_str()).or_default() += 1;
        }
        let own: usize = golds.values().map(|counts| counts.values().max().unwrap()).sum();
        let share = own as f64 / items.len() as f64;
        // Four standard errors.
        assert!((share - task.truth()).abs() < 0.03, "{}: {share} against {}", task.name, task.truth());
    }
}

#[test]
fn held_out_stories_stay_out_of_the_corpus() {
    let world = world();
    let free = HashSet::new();
    let first: Vec<String> = {
        let mut corpus = Corpus::new(&world, &free, SEED);
        (0..50).map(|_| corpus.document()).collect()
    };
    let held_out = HashSet::from([first[20].clone()]);
    let mut corpus = Corpus::new(&world, &held_out, SEED);
    assert!((0..200).all(|_| corpus.document() != first[20]));
}
