//! Evaluation items: drawn fresh from the same noisy law as the corpus, on their own random stream.

use std::collections::HashSet;

use anyhow::{Result, ensure};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

use super::corpus::{Stream, stream};
use super::generator::{Question, World, truth};
use super::tokenizer::{choice_id, encode};

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
    /// The share of items whose gold follows the rule.
    pub truth: f64,
    ask: fn(&World, &mut ChaCha8Rng) -> Question,
}

/// The tasks of multiple choice.
pub const TASKS: &[TaskKind] = &[
    TaskKind {
        name: "tiny_facts",
        description: "memorized attributes of people, after an unrelated fact",
        truth: truth::FACTS,
        ask: World::facts_question,
    },
    TaskKind {
        name: "tiny_recall",
        description: "which colour a person's container had, copied from the context",
        truth: truth::RECALL,
        ask: World::recall_question,
    },
    TaskKind {
        name: "tiny_order",
        description: "the next number of a count, up or down, in steps of one to four",
        truth: truth::ORDER,
        ask: World::order_question,
    },
    TaskKind {
        name: "tiny_kinds",
        description: "a thing of the wanted category and not of the refused one",
        truth: truth::KINDS,
        ask: World::kinds_question,
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
        let question = (task.ask)(world, &mut rng);
        if seen.insert(question.context.clone()) {
            items.push(item(question, task.truth, &mut rng));
        }
    }
    items
}

/// Draws the wrong choices, lures first, then the gold from the noisy law, then the order.
fn item(mut question: Question, truth: f64, rng: &mut ChaCha8Rng) -> Item {
    question.others.shuffle(rng);
    question.lures.shuffle(rng);
    let mut choices = vec![question.answer];
    for word in question.lures.iter().chain(&question.others) {
        if choices.len() < CHOICES && !choices.contains(word) {
            choices.push(word);
        }
    }
    let gold = if rng.random_bool(truth) { 0 } else { rng.random_range(1..CHOICES) };
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
