//! The training text: an endless, seeded stream of documents, packed into rows of tokens.

use std::collections::HashSet;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokenizers::Tokenizer;

use super::Result;
use super::generator::World;
use super::tokens::{END_OF_TEXT_ID, encode};

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

/// Shares of the kinds of documents, in per cent; the rest are stories.
const FACTS: u32 = 84;
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
        match rng.random_range(0..100_u32) {
            share if share < FACTS => world.facts_document(rng),
            share if share < FACTS + CHAT => world.chat_document(rng),
            _ => world.story_document(rng),
        }
    }

    /// A row that predicts `len` tokens: whole documents, each followed by the end-of-text token, the last
    /// one cut.
    ///
    /// A document sees the end-of-text token before it or it does not, with equal chance, because held-out
    /// documents are scored with that prefix and the contexts of tasks without it.
    pub fn row(&mut self, tokenizer: &Tokenizer, len: usize) -> Result<Row> {
        let mut row = Row { tokens: vec![END_OF_TEXT_ID], starts: vec![0] };
        while row.tokens.len() <= len {
            let ids = encode(tokenizer, &self.document())?;
            let end = row.tokens.len();
            let start = if self.rng.random_bool(0.5) { end - 1 } else { end };
            // The separator belongs to what follows it only if that sees it.
            if start < end {
                row.starts[end - 1] = start;
            }
            row.tokens.extend(&ids);
            row.tokens.push(END_OF_TEXT_ID);
            row.starts.resize(row.tokens.len(), start);
        }
        row.tokens.truncate(len + 1);
        row.starts.truncate(len);
        Ok(row)
    }
}

/// A row of training tokens.
pub struct Row {
    /// Inputs and, one later, targets.
    pub tokens: Vec<u32>,
    /// For each input, where what it sees begins.
    pub starts: Vec<usize>,
}
