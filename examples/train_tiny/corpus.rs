//! The training text: an endless, seeded stream of documents, packed into rows of tokens.

use std::collections::{HashSet, VecDeque};

use anyhow::Result;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokenizers::Tokenizer;

use super::generator::{World, truth};
use super::tokenizer::{END_OF_TEXT_ID, encode};

/// Independent random streams of one seed, so that more training text never changes a task.
#[derive(Clone, Copy)]
pub enum Stream {
    /// Attributes of people.
    World,
    /// Text the tokenizer and the model learn from.
    Corpus,
    /// Task items.
    Tasks,
    /// Held-out documents.
    HeldOut,
    /// Initial weights.
    Weights,
}

/// The generator of one stream of `seed`.
pub fn stream(seed: u64, which: Stream) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(which as u64);
    rng
}

/// Shares of the kinds of documents, in per cent.
const FACTS: u32 = 38;
const RECALL: u32 = 28;
const ORDER: u32 = 10;
const KINDS: u32 = 10;
const CHAT: u32 = 4;

/// The stream of training documents.
pub struct Corpus<'a> {
    world: &'a World,
    held_out: &'a HashSet<String>,
    rng: ChaCha8Rng,
}

impl<'a> Corpus<'a> {
    /// A stream from its beginning; documents in `held_out` never appear in it.
    pub fn new(world: &'a World, held_out: &'a HashSet<String>, seed: u64) -> Self {
        Self { world, held_out, rng: stream(seed, Stream::Corpus) }
    }

    /// The next document.
    pub fn document(&mut self) -> String {
        loop {
            let document = self.draw();
            if !self.held_out.contains(&document) {
                return document;
            }
        }
    }

    fn draw(&mut self) -> String {
        let (world, rng) = (self.world, &mut self.rng);
        let mut share = rng.random_range(0..100_u32);
        let mut below = |percent: u32| {
            let hit = share < percent;
            share = share.wrapping_sub(percent);
            hit
        };
        if below(FACTS) {
            world.facts_document(rng)
        } else if below(RECALL) {
            world.recall_document(rng)
        } else if below(ORDER) {
            world.order_question(rng).stated(truth::ORDER, rng)
        } else if below(KINDS) {
            world.kinds_question(rng).stated(truth::KINDS, rng)
        } else if below(CHAT) {
            world.chat_document(rng)
        } else {
            world.story_document(rng)
        }
    }

    /// A row of `len` tokens: whole documents, each followed by the end-of-text token, the last one cut.
    ///
    /// Half of the rows begin with that token and half with a document's first word, because a task's
    /// context is scored without it and a held-out document with it.
    pub fn row(&mut self, tokenizer: &Tokenizer, len: usize) -> Result<VecDeque<u32>> {
        let mut row = VecDeque::with_capacity(len + 128);
        if self.rng.random_bool(0.5) {
            row.push_back(END_OF_TEXT_ID);
        }
        while row.len() < len {
            row.extend(encode(tokenizer, &self.document())?);
            row.push_back(END_OF_TEXT_ID);
        }
        row.truncate(len);
        Ok(row)
    }
}
