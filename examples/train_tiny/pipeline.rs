//! The run in order: world, tasks, tokenizer, training, files, check, card.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use tokenizers::Tokenizer;

use super::card::{self, Run};
use super::check;
use super::corpus::{Corpus, Stream, stream};
use super::files::{self, NAME};
use super::generator::World;
use super::model::{Config, Model, rounded};
use super::tasks::{self, Suite};
use super::tokenizer;
use super::train::{Trained, train};
use super::trainer::{Schedule, Trainer};

/// The vocabulary of a model is rounded up to this, for aligned rows of logits.
const VOCAB_MULTIPLE: usize = 64;
/// Items a task that progress lines report on; not the items of the suite, which training never sees.
const GLANCE_ITEMS: usize = 100;

/// What a run may choose.
#[derive(Clone, Debug)]
pub struct Options {
    /// Training.
    pub schedule: Schedule,
    /// Largest vocabulary of the tokenizer.
    pub vocab: usize,
    /// Seed of everything.
    pub seed: u64,
    /// Directory that gets `models/` and `suites/`.
    pub out: PathBuf,
    /// Items a task; fewer than the default only in tests.
    pub items: usize,
    /// Held-out documents.
    pub documents: usize,
}

impl Options {
    fn model_dir(&self) -> PathBuf {
        self.out.join("models").join(NAME)
    }
}

/// Makes the data, trains, writes everything and returns the training's outcome.
pub fn run(options: &Options, progress: &mut dyn FnMut(&str)) -> Result<Trained> {
    let world = World::new(&mut stream(options.seed, Stream::World));
    let suite = Suite::new(&world, options.items, options.documents, options.seed);
    let held_out = suite.pages();
    let tokenizer = tokenizer::train(&mut Corpus::new(&world, &held_out, options.seed), options.vocab)?;
    let tokens_per_arm = suite.check(&tokenizer)?;
    let config = Config::tiny(tokenizer.get_vocab_size(true).next_multiple_of(VOCAB_MULTIPLE));
    progress(&format!(
        "{} parameters, vocabulary {} ({} tokens), {tokens_per_arm} tokens an arm",
        config.num_parameters(),
        config.vocab_size,
        tokenizer.get_vocab_size(true),
    ));
    let dir = options.model_dir();
    files::write_tokenizer(&dir, &config, &tokenizer)?;
    files::write_suite(&options.out.join("suites").join(NAME), &suite)?;

    let vars = config.initial(&mut stream(options.seed, Stream::Weights))?;
    let corpus = Corpus::new(&world, &held_out, options.seed);
    let glance = Suite::new(&world, GLANCE_ITEMS, 0, options.seed.wrapping_add(1));
    let look = |model: &Model| check::glance(model, &tokenizer, &glance);
    let trainer = Trainer::new(&config, vars, &options.schedule, corpus, &tokenizer)?;
    let trained = train(trainer, &options.schedule, progress, &look)?;
    files::write_weights(&dir, &trained.weights)?;

    progress("checking the tasks under simulated schemes");
    let report = check::check(&config, &rounded(&trained.weights)?, &tokenizer, &suite)?;
    let run = Run { config: &config, options, trained: &trained };
    files::write(&dir.join("README.md"), card::render(&run, &report).as_bytes())?;
    progress(&card::measurements(&report));
    Ok(trained)
}

/// Measures the model in place again and returns the tables of the card.
pub fn check_only(options: &Options) -> Result<String> {
    let world = World::new(&mut stream(options.seed, Stream::World));
    let suite = Suite::new(&world, options.items, options.documents, options.seed);
    let dir = options.model_dir();
    let tokenizer = Tokenizer::from_file(dir.join("tokenizer.json")).map_err(|e| anyhow!(e))?;
    let weights = files::read_weights(&dir)?;
    let vocab = weights.get("model.embed_tokens.weight").map_or(0, |w| w.dims()[0]);
    let report = check::check(&Config::tiny(vocab), &weights, &tokenizer, &suite)?;
    Ok(card::measurements(&report))
}

impl Default for Options {
    fn default() -> Self {
        Self {
            schedule: Schedule { steps: 2_000, batch: 8, seq_len: 128, lr: 1.5e-3, threads: 2 },
            vocab: 1_024,
            seed: 20_261_121,
            out: PathBuf::from("."),
            items: tasks::ITEMS,
            documents: tasks::DOCUMENTS,
        }
    }
}
