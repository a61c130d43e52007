//! Evaluation items: drawn fresh from the same noisy law as the corpus, on their own random stream.

use std::collections::HashSet;

use anyhow::{Result, ensure};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

use super::corpus::{Stream, stream};
use super::generator::{Question, World};
use super::tokenizer::{choice_id, encode};
use super::words::ATTRIBUTES;

/// Enough for a flip rate of 2 % at a margin of 0.01: 16 · 0.02 / 0.01² = 3,200, and some room.
pub const ITEMS: usize = 4_096;
/// More than the 300 that a paired interval of bits per byte asks for.
pub const DOCUMENTS: usize = 320;
/// Choices of every item.
pub const CHOICES: usize = 4;
const MAX_CONTEXT_TOKENS: usize = 24;
const MAX_TOKENS_PER_ARM: usize = 300_000;

/// A task of multiple choice.
pub struct TaskKind {
    /// Name of the task and of its data file.
    pub name: &'static str,
    /// What it measures.
    pub description: &'static str,
    /// Index of the attribute that is asked for.
    pub attribute: usize,
}

impl TaskKind {
    /// The share of items whose gold is the canonical value.
    pub fn truth(&self) -> f64 {
        ATTRIBUTES[self.attribute].truth
    }
}

/// The tasks of multiple choice.
pub const TASKS: &[TaskKind] = &[
    TaskKind {
        name: "tiny_colours",
        description: "the colour a person likes, after an unrelated fact",
        attribute: 0,
    },
    TaskKind {
        name: "tiny_homes",
        description: "where a person lives, after an unrelated fact",
        attribute: 1,
    },
    TaskKind {
        name: "tiny_jobs",
        description: "what a person works as, after an unrelated fact",
        attribute: 2,
    },
    TaskKind {
        name: "tiny_pets",
        description: "the animal a person keeps, after an unrelated fact",
        attribute: 3,
    },
];

/// The task of held-out documents.
pub const PERPLEXITY: &str = "tiny_stories";

/// One item of multiple choice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Everything before the space and the choice.
    pub context: String,
    /// Four different words of one token each.
    pub choices: Vec<String>,
    /// Index of the gold choice.
    pub label: usize,
}

/// One held-out document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// The text.
    pub page: String,
}

/// The items of a task; no context occurs twice in it.
pub fn items(world: &World, task: &TaskKind, count: usize, seed: u64) -> Vec<Item> {
    let mut rng = stream(seed, Stream::Tasks);
    // Each task starts far from the others on the stream, whatever the order of the table.
    let at = TASKS.iter().position(|t| t.name == task.name).unwrap_or_default();
    rng.set_word_pos((at as u128) << 32);
    let mut seen = HashSet::new();
    let mut items = Vec::with_capacity(count);
    while items.len() < count {
        let question = world.question(task.attribute, &mut rng);
        if seen.insert(question.context.clone()) {
            items.push(item(question, &mut rng));
        }
    }
    items
}

/// Draws the wrong choices, then the gold from the noisy law, then the order.
fn item(mut question: Question, rng: &mut ChaCha8Rng) -> Item {
    question.others.shuffle(rng);
    let mut choices = vec![question.answer];
    choices.extend(question.others.iter().take(CHOICES - 1));
    let gold = if rng.random_bool(question.truth) { 0 } else { rng.random_range(1..CHOICES) };
    let gold = choices[gold];
    choices.shuffle(rng);
    let label = choices.iter().position(|&word| word == gold).unwrap_or_default();
    Item { context: question.context, choices: choices.into_iter().map(str::to_owned).collect(), label }
}

/// Stories that the corpus must not contain.
pub fn documents(world: &World, count: usize, seed: u64) -> Vec<Document> {
    let mut rng = stream(seed, Stream::HeldOut);
    (0..count).map(|_| Document { page: world.story_document(&mut rng) }).collect()
}

/// All evaluation data of a seed.
pub struct Suite {
    /// Items by task, in the order of [`TASKS`].
    pub tasks: Vec<Vec<Item>>,
    /// Held-out documents.
    pub documents: Vec<Document>,
}

impl Suite {
    /// Draws everything.
    pub fn new(world: &World, items_per_task: usize, num_documents: usize, seed: u64) -> Self {
        Self {
            tasks: TASKS.iter().map(|task| items(world, task, items_per_task, seed)).collect(),
            documents: documents(world, num_documents, seed),
        }
    }

    /// The pages, for the corpus to avoid.
    pub fn pages(&self) -> HashSet<String> {
        self.documents.iter().map(|d| d.page.clone()).collect()
    }

    /// Checks lengths and choices, and returns the tokens one arm forwards.
    pub fn check(&self, tokenizer: &Tokenizer) -> Result<usize> {
        let mut total = 0;
        for item in self.tasks.iter().flatten() {
            let tokens = encode(tokenizer, &item.context)?.len();
            ensure!(tokens <= MAX_CONTEXT_TOKENS, "{tokens} tokens in {:?}", item.context);
            for choice in &item.choices {
                choice_id(tokenizer, choice)?;
            }
            // All choices are scored from the row that the context ends with.
            total += tokens;
        }
        for document in &self.documents {
            total += encode(tokenizer, &document.page)?.len();
        }
        ensure!(
            total <= MAX_TOKENS_PER_ARM,
            "an arm forwards {total} tokens, more than {MAX_TOKENS_PER_ARM}"
        );
        Ok(total)
    }
}
