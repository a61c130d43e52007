//! Continuous batching on one device: sequences join and leave between forward passes, prompts are computed in pieces
//! beside the tokens of running sequences, choices of one prompt share its keys and values.
//!
//! Every sequence is its tokens and how many of them the cache holds; a step computes some of the others and samples
//! where it reaches the end. So a sequence that must give up its pages starts over with the tokens it has, and, rows
//! being independent of the batch, goes on with the same bits.

use std::collections::VecDeque;
use std::sync::Arc;

use super::error::EngineError;
use super::generator::{GenerateRequest, Generated, GenerationFailure, GeneratorLoad, GeneratorOptions};
use super::pages::{PAGE, Page, PagePool, segments};
use super::run::{Engine, Replica};
use super::sampling::Sampler;
use crate::base::progress;
use crate::device::cuda::CudaError;
use crate::model::{HeadAnswer, RaggedBatch, Session, Slots as _, Stored};
use crate::ops::attention::{Segment, Sequence as BatchSequence, Source, tiles_for};
use crate::ops::log_softmax::{HeadQuery, HeadRow};

/// Generates on one device for any number of requests at once.
pub(super) struct Lane<'a> {
    engine: &'a Engine,
    replica: &'a Replica,
    options: GeneratorOptions,
    /// Tokens of the longest sequence.
    max_len: usize,
    session: Box<dyn Session>,
    pool: PagePool,
    running: Vec<Sequence>,
    waiting: VecDeque<Sequence>,
    /// Tokens of the last pass that were not handed out.
    ready: Vec<Generated>,
    /// Requests that the last pass ended, of which the caller does not know.
    failures: VecDeque<GenerationFailure>,
    next_key: u64,
    /// Whether the last step was for inputs of the long kind.
    long: bool,
    /// Sequences in one step.
    most_running: usize,
    /// Whether the session holds nothing yet.
    is_fresh: bool,
    /// Whether a sequence that ran alone found no memory, and none has generated a token since.
    alone_failed: bool,
}

/// Tokens of one or, until the first is generated, of several choices.
struct Sequence {
    key: u64,
    id: u64,
    request: Arc<GenerateRequest>,
    tokens: Vec<u32>,
    /// Leading tokens whose keys and values are in `pages`.
    computed: usize,
    pages: Vec<Page>,
    choices: Vec<Choice>,
}

struct Choice {
    index: usize,
    sampler: Sampler,
}

/// A sequence's share of a step.
#[derive(Clone, Copy)]
struct Turn {
    key: u64,
    rows: usize,
}

impl<'a> Lane<'a> {
    /// Nothing to generate yet, for sequences of at most `max_len` tokens.
    pub fn new(engine: &'a Engine, replica: &'a Replica, options: GeneratorOptions, max_len: usize) -> Self {
        let session = replica.backend.session();
        let mut lane = Self {
            engine,
            replica,
            options,
            max_len,
            session,
            pool: PagePool::new(0),
            running: Vec::new(),
            waiting: VecDeque::new(),
            ready: Vec::new(),
            failures: VecDeque::new(),
            next_key: 0,
            long: false,
            most_running: options.max_num_seqs,
            is_fresh: true,
            alone_failed: false,
        };
        lane.empty(lane.most_pages());
        lane
    }

    /// Pages that it was given.
    fn most_pages(&self) -> usize {
        let wanted = self.options.kv_cache_bytes / (self.session.slot_bytes() * PAGE).max(1);
        wanted.max(self.least_pages())
    }

    /// Pages of a sequence of full length, and a part-filled one where it branched off.
    fn least_pages(&self) -> usize {
        tiles_for(self.max_len) + 1
    }

    /// Queues a request that was checked, for at least one token of at least one choice.
    pub fn add(&mut self, id: u64, request: GenerateRequest) {
        let sampler = |index| Sampler::new(&request.sampling, index, &request.prompt);
        let choices = (0..request.n).map(|index| Choice { index, sampler: sampler(index) }).collect();
        let tokens = request.prompt.clone();
        let sequence = self.sequence(id, Arc::new(request), tokens, choices);
        self.waiting.push_back(sequence);
    }

    /// Choices that are generated or wait, and their tokens so far.
    pub fn burden(&self) -> (usize, usize) {
        let all = || self.running.iter().chain(&self.waiting);
        (all().map(|s| s.choices.len()).sum(), all().map(|s| s.tokens.len()).sum())
    }

    /// What the last pass made: requests that it ended, and tokens.
    pub fn take(&mut self) -> (VecDeque<GenerationFailure>, Vec<Generated>) {
        (std::mem::take(&mut self.failures), std::mem::take(&mut self.ready))
    }

    /// Whether there is nothing to compute.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Drops a choice that nobody wants any more, or all of them.
    pub fn cancel(&mut self, id: u64, choice: Option<usize>) {
        let pool = &mut self.pool;
        let mut keep = |sequence: &mut Sequence| {
            if sequence.id == id {
                sequence.choices.retain(|c| choice.is_some_and(|index| index != c.index));
                if sequence.choices.is_empty() {
                    pool.release(&sequence.pages);
                }
            }
            !sequence.choices.is_empty()
        };
        self.running.retain_mut(&mut keep);
        self.waiting.retain_mut(keep);
    }

    /// How busy it is.
    pub fn load(&self) -> GeneratorLoad {
        GeneratorLoad {
            running: self.running.len(),
            waiting: self.waiting.len(),
            kv_cache_bytes: self.pool.used() * PAGE * self.session.slot_bytes(),
        }
    }

    /// One forward pass.
    pub fn compute(&mut self) {
        self.admit();
        let turns = self.take_turns();
        if turns.is_empty() {
            return;
        }
        let (batch, asked) = self.assemble(&turns);
        match self.pass(&turns, &batch, &asked) {
            Ok(()) => self.is_fresh = false,
            Err(full @ CudaError::OutOfMemory { .. }) => self.start_over(batch.tokens.len(), &full),
            Err(error) => self.give_up(&error),
        }
        if self.is_idle() {
            // Memory goes back when nobody generates; there may be more of it the next time.
            self.empty(self.most_pages());
            self.most_running = self.options.max_num_seqs;
        }
    }

    /// The device has no memory for a pass of `rows` rows. All that runs starts over with the tokens it has, less of it at a
    /// time: the head, which fails before any sampler is asked, and a pass leave them as they were. A sequence that does not
    /// fit alone is given up.
    fn start_over(&mut self, rows: usize, full: &CudaError) {
        let has_forgotten = Engine::forget_prefixes(self.replica);
        let is_alone = self.running.len() == 1;
        // Else what former passes took may be what is missing.
        let is_certain = self.alone_failed || (self.is_fresh && !has_forgotten);
        let (mut pages, fewer) = (self.pool.capacity(), (self.pool.used() * 3 / 4).max(self.least_pages()));
        if !is_alone && !is_certain && fewer < pages {
            pages = fewer;
            progress::note(&format!("{full}; sequences start over in {pages} pages of keys and values"));
        } else if is_certain && let Some(rows) = self.replica.limits.fewer_rows(rows) {
            progress::note(&format!("{full}; sequences start over in batches of {rows} rows"));
        } else if !is_alone {
            self.most_running = self.most_running.min(self.running.len() / 2);
            progress::note(&format!("{full}; sequences start over, {} at a time", self.most_running));
        } else if is_certain {
            self.give_up(full);
        }
        self.alone_failed = is_alone && !self.running.is_empty();
        while let Some(mut sequence) = self.running.pop() {
            self.restart(&mut sequence);
            self.waiting.push_front(sequence);
        }
        self.empty(pages);
    }

    /// The cache anew, of so many pages, when no sequence has any.
    fn empty(&mut self, pages: usize) {
        self.session.clear();
        // A page of a high number would take the memory of all before it.
        self.pool = PagePool::new(pages);
        self.is_fresh = true;
    }

    /// A sequence gives up its pages.
    fn restart(&mut self, sequence: &mut Sequence) {
        self.pool.release(&sequence.pages);
        sequence.pages.clear();
        sequence.computed = 0;
    }

    /// Computes the rows of all turns and samples for the sequences `asked`.
    fn pass(&mut self, turns: &[Turn], batch: &RaggedBatch, asked: &[u64]) -> Result<(), CudaError> {
        self.session.forward(batch)?;
        for turn in turns {
            if let Some(sequence) = self.running.iter_mut().find(|s| s.key == turn.key) {
                sequence.computed += turn.rows;
            }
        }
        self.sample(asked)
    }

    /// The device failed, and with it everything that runs.
    fn give_up(&mut self, error: &CudaError) {
        for sequence in self.running.drain(..) {
            self.pool.release(&sequence.pages);
            if self.failures.iter().all(|f| f.request != sequence.id) {
                let source = EngineError::Device(error.clone());
                self.failures.push_back(GenerationFailure { request: sequence.id, source });
            }
        }
        let failed = |id: u64| self.failures.iter().any(|f| f.request == id);
        self.waiting.retain(|sequence| !failed(sequence.id));
    }

    fn sequence(
        &mut self,
        id: u64,
        request: Arc<GenerateRequest>,
        tokens: Vec<u32>,
        choices: Vec<Choice>,
    ) -> Sequence {
        self.next_key += 1;
        Sequence { key: self.next_key, id, request, tokens, computed: 0, pages: Vec::new(), choices }
    }

    /// Lets waiting sequences in, first come first served, while there is room for all they have.
    fn admit(&mut self) {
        let mut room = self.pool.available();
        while let Some(first) = self.waiting.front() {
            let needed = tiles_for(first.tokens.len()) + 1;
            let fits = self.running.len() < self.most_running && needed <= room;
            if !fits && !self.running.is_empty() {
                return;
            }
            room = room.saturating_sub(needed);
            self.running.extend(self.waiting.pop_front());
        }
    }

    /// Which sequences get how many rows, with pages for them: those that wait for one token first, prompts in what
    /// is left. Where pages run out, the youngest sequence gives up its own.
    fn take_turns(&mut self) -> Vec<Turn> {
        let mut budget = self.replica.limits.rows();
        let mut wanted = Vec::new();
        self.choose_kind();
        for decoding in [true, false] {
            let of_kind =
                |s: &&Sequence| (s.pending() == 1) == decoding && self.is_long(s.tokens.len()) == self.long;
            for sequence in self.running.iter().filter(of_kind) {
                let rows = sequence.pending().min(budget);
                budget -= rows;
                if rows > 0 {
                    wanted.push(Turn { key: sequence.key, rows });
                }
            }
        }
        let mut turns: Vec<Turn> = Vec::new();
        for turn in wanted {
            if self.make_room(turn, &turns) {
                turns.push(turn);
            }
        }
        turns
    }

    /// Whether an input of `len` tokens rotates all positions differently than a short one.
    fn is_long(&self, len: usize) -> bool {
        self.engine.config().is_long_input(len)
    }

    /// Long and short inputs, which no batch may mix, take turns where there are both.
    fn choose_kind(&mut self) {
        let has = |long: bool| self.running.iter().any(|s| self.is_long(s.tokens.len()) == long);
        if has(!self.long) {
            self.long = !self.long;
        }
    }

    /// Extends the sequence's pages by its rows; false when it has to wait.
    fn make_room(&mut self, turn: Turn, granted: &[Turn]) -> bool {
        loop {
            // It may have lost its own place meanwhile.
            let Some(at) = self.running.iter().position(|s| s.key == turn.key) else { return false };
            let sequence = &mut self.running[at];
            let last = sequence.pages.last().filter(|p| self.pool.is_exclusive(p.index));
            let open = last.map_or(0, |p| PAGE - p.len);
            if tiles_for(turn.rows.saturating_sub(open)) <= self.pool.available() {
                sequence.extend(turn.rows, open, &mut self.pool);
                return true;
            }
            let is_free = |s: &Sequence| s.key != turn.key && granted.iter().all(|g| g.key != s.key);
            let Some(victim) = self.running.iter().rposition(is_free).filter(|v| *v > at) else {
                return false;
            };
            let mut victim = self.running.remove(victim);
            self.restart(&mut victim);
            self.waiting.push_front(victim);
        }
    }

    /// The rows of all turns, and the sequences whose last token is among them.
    fn assemble(&self, turns: &[Turn]) -> (RaggedBatch, Vec<u64>) {
        let mut batch = RaggedBatch { long: self.long, ..RaggedBatch::default() };
        let (mut tiles, mut asked) = (0, Vec::new());
        for turn in turns {
            let Some(sequence) = self.running.iter().find(|s| s.key == turn.key) else { continue };
            let (first_row, end) = (batch.tokens.len(), sequence.computed + turn.rows);
            batch.tokens.extend_from_slice(&sequence.tokens[sequence.computed..end]);
            batch.positions.extend(sequence.computed as u32..end as u32);
            let first_segment = batch.segments.len();
            let (before, stored) = sequence.split(first_row);
            batch.segments.extend(segments(&before));
            let own = Segment { source: Source::Batch, first_tile: tiles, first_row, len: turn.rows };
            batch.segments.push(own);
            batch.sequences.push(BatchSequence {
                rows: first_row..batch.tokens.len(),
                first_position: sequence.computed,
                first_tile: tiles,
                segments: first_segment..batch.segments.len(),
            });
            batch.stored.extend(stored);
            tiles += tiles_for(turn.rows);
            if end == sequence.tokens.len() {
                batch.logit_rows.push(batch.tokens.len() - 1);
                asked.push(sequence.key);
            }
        }
        (batch, asked)
    }

    /// Samples for the sequences `asked`, those of the last pass's logit rows.
    fn sample(&mut self, asked: &[u64]) -> Result<(), CudaError> {
        let (offsets, (rows, logits)) = self.head(asked)?;
        let mut generated = Vec::new();
        for (r, key) in asked.iter().enumerate() {
            let Some(at) = self.running.iter().position(|s| s.key == *key) else { continue };
            let mut sequence = self.running.remove(at);
            let logits = &logits[offsets[r]..offsets[r + 1]];
            let going_on = match self.advance(&mut sequence, &rows[r], logits, &mut generated) {
                Ok(choices) => choices,
                Err(source) => {
                    self.pool.release(&sequence.pages);
                    self.cancel(sequence.id, None);
                    generated.retain(|g| g.request != sequence.id);
                    self.failures.push_back(GenerationFailure { request: sequence.id, source });
                    continue;
                }
            };
            for (place, (token, choice)) in (at..).zip(going_on) {
                let tokens = [sequence.tokens.as_slice(), &[token]].concat();
                let mut branch =
                    self.sequence(sequence.id, Arc::clone(&sequence.request), tokens, vec![choice]);
                // From the first long input on, what is cached is of no use.
                if self.is_long(branch.tokens.len()) == self.long {
                    branch.computed = sequence.computed;
                    branch.pages.clone_from(&sequence.pages);
                    self.pool.share(&branch.pages);
                }
                self.running.insert(place, branch);
            }
            self.pool.release(&sequence.pages);
        }
        self.alone_failed &= generated.is_empty();
        self.ready = generated;
        Ok(())
    }

    /// What the head says of each row; all logits of those rows where a sampler needs them, by `offsets`.
    fn head(&mut self, asked: &[u64]) -> Result<(Vec<usize>, HeadAnswer), CudaError> {
        let vocab = self.engine.vocab_size() as u32;
        let (mut targets, mut offsets, mut top_n) = (Vec::new(), vec![0], 1);
        for sequence in asked.iter().filter_map(|key| self.running.iter().find(|s| s.key == *key)) {
            top_n = top_n.max(sequence.request.top_n);
            if sequence.needs_logits() {
                targets.extend(0..vocab);
            }
            offsets.push(targets.len());
        }
        let query = HeadQuery { targets: &targets, offsets: &offsets, top_n };
        let answer = self.session.log_softmax(0..asked.len(), &query)?;
        Ok((offsets, answer))
    }

    /// The next token of each choice of `sequence`; returns the choices that go on after theirs.
    fn advance(
        &self,
        sequence: &mut Sequence,
        row: &HeadRow,
        logits: &[f32],
        generated: &mut Vec<Generated>,
    ) -> Result<Vec<(u32, Choice)>, EngineError> {
        let request = &sequence.request;
        let best = *row.top.first().ok_or(EngineError::NotFinite { position: sequence.computed - 1 })?;
        let produced = sequence.tokens.len() - request.prompt.len();
        let forbidden: &[u32] = if produced < request.min_tokens { &request.stop_ids } else { &[] };
        let mut going_on = Vec::new();
        for mut choice in sequence.choices.drain(..) {
            let (token, logit) = if logits.is_empty() {
                best
            } else {
                let token = choice.sampler.choose(logits, forbidden);
                (token, logits[token as usize])
            };
            choice.sampler.accept(token);
            let mut entry = row.token(token, logit);
            entry.top.truncate(request.top_n);
            let is_last = request.stop_ids.contains(&token)
                || produced + 1 == request.max_tokens
                || sequence.tokens.len() == self.max_len;
            generated.push(Generated { request: sequence.id, choice: choice.index, token: entry, is_last });
            if !is_last {
                going_on.push((token, choice));
            }
        }
        Ok(going_on)
    }
}

impl Sequence {
    /// Tokens that are not in the cache.
    fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    fn needs_logits(&self) -> bool {
        let produced = self.tokens.len() - self.request.prompt.len();
        produced < self.request.min_tokens || !self.request.sampling.is_greedy()
    }

    /// Adds `rows` slots: first the `open` ones of the last page, then new pages, of which there are enough.
    fn extend(&mut self, rows: usize, open: usize, pool: &mut PagePool) {
        let mut left = rows;
        if let Some(last) = self.pages.last_mut() {
            let more = open.min(left);
            last.len += more;
            left -= more;
        }
        while left > 0 {
            let Some(index) = pool.take() else { return };
            let len = left.min(PAGE);
            self.pages.push(Page { index, len });
            left -= len;
        }
    }

    /// The pages as far as they are computed, and where the rows from `first_row` on are stored in the others.
    fn split(&self, first_row: usize) -> (Vec<Page>, Vec<Stored>) {
        let (mut before, mut stored) = (Vec::new(), Vec::new());
        let (mut position, mut row) = (0, first_row);
        for page in &self.pages {
            let old = page.len.min(self.computed.saturating_sub(position));
            if old > 0 {
                before.push(Page { index: page.index, len: old });
            }
            if page.len > old {
                let rows = row..row + page.len - old;
                row = rows.end;
                stored.push(Stored { rows, first_slot: page.index * PAGE + old });
            }
            position += page.len;
        }
        (before, stored)
    }
}
