//! Batches of scoring requests as a prefix tree: what requests share is computed once.
//!
//! Requests are visited in lexicographic order of their inputs, so that each shares its longest common prefix with its
//! predecessor. Its new rows branch off the predecessor's path, which thereby becomes the tree's current path; a
//! request whose input is its predecessor's gets its answer from the same row. Where a batch ends inside a shared
//! prefix, the prefix's keys and values stay in the cache ([`super::prefix_cache`]) for the next batch, and so does the
//! context of the last request of a call for the next call.
//!
//! A request that is longer than a batch goes through several: each computes the next rows, answers those that are
//! scored, and leaves keys and values to the cache for the next.

use std::ops::Range;

use super::pages::{PAGE, Page, segments};
use super::prefix_cache::PrefixCache;
use crate::model::{RaggedBatch, Slots, Stored};
use crate::ops::attention::{Segment, Sequence, Source, tiles_for};

/// A request as planned: input and targets of its scored positions.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlanRequest<'a> {
    /// All tokens; the last one is a target only.
    pub tokens: &'a [u32],
    /// Leading tokens that are not scored, at least 1.
    pub context_len: usize,
}

impl<'a> PlanRequest<'a> {
    pub(super) fn input(&self) -> &'a [u32] {
        &self.tokens[..self.tokens.len() - 1]
    }

    /// First position whose next token is scored.
    fn first_scored(&self) -> usize {
        self.context_len - 1
    }
}

/// One forward pass.
pub(super) struct PlannedBatch {
    /// Its rows.
    pub batch: RaggedBatch,
    /// Tokens asked for, those of the first logit row first.
    pub targets: Vec<u32>,
    /// Where the targets of each logit row begin, and the end.
    pub offsets: Vec<usize>,
    /// For each target: the request, and which of its scored tokens it is.
    pub slots: Vec<(usize, usize)>,
    /// Requests answered by this batch.
    pub requests: usize,
    /// Pages of the cache that it reads.
    held: Vec<Page>,
}

/// Hands out the requests in batches.
pub(super) struct Planner<'a> {
    requests: &'a [PlanRequest<'a>],
    order: Vec<usize>,
    next: usize,
    /// Leading positions of the next request that were computed, and answered where they are scored.
    answered: usize,
    /// Whether these are inputs of the long kind.
    long: bool,
    /// Pages of the cache that hold the beginning of the next request.
    held: Vec<Page>,
}

/// How far a planner was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    next: usize,
    answered: usize,
}

/// A piece of the current path.
#[derive(Debug, Clone, Copy)]
struct Piece {
    segment: Segment,
    start: usize,
}

/// A batch being filled.
#[derive(Default)]
struct Filling {
    batch: RaggedBatch,
    path: Vec<Piece>,
    /// Pages that the path began with.
    pages: Vec<Page>,
    /// Pages that the batch reads.
    held: Vec<Page>,
    tiles: usize,
    /// (row, target, request, which of its scored tokens).
    wanted: Vec<(usize, u32, usize, usize)>,
}

impl<'a> Planner<'a> {
    pub fn new(requests: &'a [PlanRequest<'a>], long: bool) -> Self {
        let order = order(requests);
        Self { requests, order, next: 0, answered: 0, long, held: Vec::new() }
    }

    /// The next batch of at most `max_rows` new rows: as many requests as fit, or a part of one that is longer. Where the
    /// cache has no room for such a part, the request's rest is one batch all the same. Pages that a batch reads stay in
    /// the cache until [`Self::done`].
    pub fn next_batch<S: Slots>(
        &mut self,
        max_rows: usize,
        cache: &mut PrefixCache<S>,
    ) -> Option<PlannedBatch> {
        let begin = self.next;
        let mut filling = Filling::default();
        filling.hold(std::mem::take(&mut self.held));
        while let Some(index) = self.order.get(self.next).copied() {
            let request = self.requests[index];
            let mut shared = filling.cached();
            if self.next > begin {
                shared = common_prefix(self.requests[self.order[self.next - 1]].input(), request.input());
                // The cache has keys and values, but no hidden states to score from.
                if request.first_scored() < shared.min(filling.cached()) {
                    shared = request.first_scored();
                }
            }
            let found = cache.find(self.long, &request.input()[..request.first_scored()]);
            let is_better = found.len() * PAGE > shared;
            let new = request.input().len() - shared.max(found.len() * PAGE);
            if self.next > begin && filling.batch.tokens.len() + new > max_rows {
                cache.release(&found);
                break;
            }
            if is_better {
                shared = found.len() * PAGE;
                filling.hold(found);
            } else {
                cache.release(&found);
            }
            if new > max_rows {
                let end = (shared + max_rows).min((shared / PAGE + cache.room()) * PAGE);
                if end > shared {
                    filling.add(index, request, shared..end, self.answered);
                    self.answered = self.answered.max(end);
                    return Some(self.finish(filling, &request.input()[..end], 0, cache));
                }
            }
            filling.add(index, request, shared..request.input().len(), std::mem::take(&mut self.answered));
            self.next += 1;
        }
        if self.next == begin {
            cache.release(&filling.held);
            return None;
        }
        let last = self.requests[self.order[self.next - 1]];
        let following = self.order.get(self.next).map(|i| self.requests[*i]);
        // Without a next request there may be one in a later call.
        let kept = following.map_or(last.first_scored(), |following| {
            common_prefix(last.input(), following.input()).min(following.first_scored())
        });
        Some(self.finish(filling, &last.input()[..kept], self.next - begin, cache))
    }

    /// The batch, which leaves `kept`, the beginning of its path, to the cache.
    fn finish<S: Slots>(
        &mut self,
        mut filling: Filling,
        kept: &[u32],
        requests: usize,
        cache: &mut PrefixCache<S>,
    ) -> PlannedBatch {
        let (held, stored) = filling.keep(kept, self.long, cache);
        self.held = held;
        filling.batch.stored = stored;
        filling.batch.long = self.long;
        filling.finish(requests)
    }

    /// How far it is.
    pub fn mark(&self) -> Mark {
        Mark { next: self.next, answered: self.answered }
    }

    /// Goes back to where it was, for a cache that is empty: what was answered before is computed again where it is needed,
    /// and not answered again.
    pub fn back_to(&mut self, mark: Mark) {
        (self.next, self.answered) = (mark.next, mark.answered);
        self.held.clear();
    }

    /// The batch was computed: pages that only it read may go.
    pub fn done<S: Slots>(planned: &PlannedBatch, cache: &mut PrefixCache<S>) {
        cache.release(&planned.held);
    }
}

impl Filling {
    /// The path begins with these pages of the cache.
    fn hold(&mut self, pages: Vec<Page>) {
        self.path.clear();
        let mut start = 0;
        for segment in segments(&pages) {
            self.path.push(Piece { segment, start });
            start += segment.len;
        }
        self.held.extend_from_slice(&pages);
        self.pages = pages;
    }

    /// How much of the path lies in the cache.
    fn cached(&self) -> usize {
        let cached = self.path.iter().take_while(|p| p.segment.source == Source::Cache);
        cached.map(|p| p.segment.len).sum()
    }

    /// Branches off the current path before the positions `new` of a request, whose first `answered` were answered
    /// before.
    fn add(&mut self, index: usize, request: PlanRequest<'_>, new: Range<usize>, answered: usize) {
        let shared = new.start;
        self.truncate(shared);
        let input = &request.input()[..new.end];
        let first_row = self.batch.tokens.len();
        if input.len() > shared {
            self.batch.tokens.extend_from_slice(&input[shared..]);
            self.batch.positions.extend(shared as u32..input.len() as u32);
            let own = Segment {
                source: Source::Batch,
                first_tile: self.tiles,
                first_row,
                len: input.len() - shared,
            };
            self.path.push(Piece { segment: own, start: shared });
            let first_segment = self.batch.segments.len();
            self.batch.segments.extend(self.path.iter().map(|p| p.segment));
            self.batch.sequences.push(Sequence {
                rows: first_row..self.batch.tokens.len(),
                first_position: shared,
                first_tile: self.tiles,
                segments: first_segment..self.batch.segments.len(),
            });
            self.tiles += tiles_for(own.len);
        }
        let first = request.first_scored().max(answered);
        for piece in &self.path {
            let positions = piece.start.max(first)..piece.start + piece.segment.len;
            for position in positions {
                let row = piece.segment.first_row + position - piece.start;
                let slot = position - request.first_scored();
                self.wanted.push((row, request.tokens[position + 1], index, slot));
            }
        }
    }

    fn truncate(&mut self, len: usize) {
        self.path.retain(|piece| piece.start < len);
        if let Some(last) = self.path.last_mut() {
            last.segment.len = last.segment.len.min(len - last.start);
        }
    }

    /// Pages for the path's first tokens, and the rows that they are to store.
    fn keep<S: Slots>(
        &self,
        tokens: &[u32],
        long: bool,
        cache: &mut PrefixCache<S>,
    ) -> (Vec<Page>, Vec<Stored>) {
        let cached = self.cached().min(tokens.len());
        let (pages, wanted) = cache.keep(long, tokens, &self.pages, cached);
        // Offsets from `cached` on, as rows of the pieces that hold them.
        let rows = self.path.iter().filter(|p| p.segment.source == Source::Batch);
        let stored = rows.flat_map(|piece| {
            let of_piece = piece.start..piece.start + piece.segment.len;
            wanted.iter().filter_map(move |stored| {
                let positions = stored.rows.start + cached..stored.rows.end + cached;
                let both = of_piece.start.max(positions.start)..of_piece.end.min(positions.end);
                (both.start < both.end).then(|| Stored {
                    rows: piece.segment.first_row + both.start - piece.start
                        ..piece.segment.first_row + both.end - piece.start,
                    first_slot: stored.first_slot + both.start - positions.start,
                })
            })
        });
        (pages, stored.collect())
    }

    fn finish(mut self, requests: usize) -> PlannedBatch {
        self.wanted.sort_unstable();
        let mut planned = PlannedBatch {
            batch: self.batch,
            targets: Vec::with_capacity(self.wanted.len()),
            offsets: Vec::new(),
            slots: Vec::with_capacity(self.wanted.len()),
            requests,
            held: self.held,
        };
        for (row, target, request, slot) in self.wanted {
            if planned.batch.logit_rows.last() != Some(&row) {
                planned.batch.logit_rows.push(row);
                planned.offsets.push(planned.targets.len());
            }
            planned.targets.push(target);
            planned.slots.push((request, slot));
        }
        planned.offsets.push(planned.targets.len());
        planned
    }
}

/// The order in which requests are visited.
fn order(requests: &[PlanRequest<'_>]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_key(|i| (requests[*i].input(), *i));
    order
}

/// Cuts requests into at most `count` shares of about as many tokens, each of neighbours in the order in which they are
/// visited.
pub(super) fn shares(requests: &[PlanRequest<'_>], count: usize) -> Vec<Vec<usize>> {
    let total: usize = requests.iter().map(|r| r.tokens.len()).sum();
    let mut shares = vec![Vec::new(); count.max(1)];
    let mut before = 0;
    for index in order(requests) {
        let share = before * shares.len() / total.max(1);
        shares[share].push(index);
        before += requests[index].tokens.len();
    }
    shares.retain(|share| !share.is_empty());
    shares
}

/// Length of the common prefix.
pub(crate) fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::KvCache;
    use crate::ops::attention::HeadShape;
    use crate::ops::buffer::Buffer;

    /// Room for a few pages only, so that some are taken back.
    fn cache(pages: usize) -> PrefixCache {
        let kv = KvCache::new(HeadShape { heads: 1, kv_heads: 1, head_dim: 1 }, 1);
        let bytes = pages * PAGE * kv.slot_bytes();
        PrefixCache::new(kv, bytes)
    }

    fn plan_with(
        requests: &[(Vec<u32>, usize)],
        max_rows: usize,
        cache: &mut PrefixCache,
        each: &mut dyn FnMut(PlannedBatch, &mut PrefixCache) -> Result<(), TestCaseError>,
    ) -> Result<(), TestCaseError> {
        let requests: Vec<PlanRequest<'_>> =
            requests.iter().map(|(tokens, c)| PlanRequest { tokens, context_len: *c }).collect();
        let mut planner = Planner::new(&requests, false);
        while let Some(planned) = planner.next_batch(max_rows, cache) {
            Planner::done(&planned, cache);
            each(planned, cache)?;
        }
        Ok(())
    }

    /// What a pass over the batch leaves in the cache: keys and values of a token are the token.
    fn remember(batch: &RaggedBatch, cache: &mut PrefixCache) {
        let mut qkv = Buffer::zeros(batch.tokens.len() * 3);
        for (row, token) in qkv.chunks_exact_mut(3).zip(&batch.tokens) {
            row.fill(*token as f32);
        }
        cache.kv.update(0, &qkv, &batch.stored);
    }

    fn plan(requests: &[(Vec<u32>, usize)], max_rows: usize) -> Vec<PlannedBatch> {
        let mut batches = Vec::new();
        let mut each = |planned: PlannedBatch, cache: &mut PrefixCache| {
            remember(&planned.batch, cache);
            batches.push(planned);
            Ok(())
        };
        plan_with(requests, max_rows, &mut cache(100), &mut each).unwrap();
        batches
    }

    #[test]
    fn choices_share_their_context_and_single_tokens_their_row() {
        let batches = plan(
            &[(vec![1, 2, 3, 4], 3), (vec![1, 2, 3, 5], 3), (vec![1, 2, 3, 6, 7], 3), (vec![1, 2, 9], 2)],
            100,
        );
        assert_eq!(batches.len(), 1);
        let batch = &batches[0].batch;
        assert_eq!(batch.tokens, [1, 2, 3, 6]);
        assert_eq!(batch.positions, [0, 1, 2, 3]);
        assert_eq!(batch.logit_rows, [1, 2, 3]);
        assert_eq!(batches[0].targets, [9, 4, 5, 6, 7]);
        assert_eq!(batches[0].slots, [(3, 0), (0, 0), (1, 0), (2, 0), (2, 1)]);
    }

    #[test]
    fn a_shared_header_crosses_batches_in_the_cache() {
        let header: Vec<u32> = (0..50).collect();
        let requests: Vec<_> =
            (0..10u32).map(|i| ([header.clone(), vec![100 + i, 7, 8, 9]].concat(), 52)).collect();
        let batches = plan(&requests, 60);
        let rows: usize = batches.iter().map(|b| b.batch.tokens.len()).sum();
        assert!(batches.len() > 1);
        assert_eq!(rows, 50 + 10 * 3);
        assert_eq!(batches[1].batch.segments[0].source, Source::Cache);
        let stored = [Stored { rows: 0..32, first_slot: 0 }, Stored { rows: 32..50, first_slot: 32 }];
        assert_eq!(batches[0].batch.stored, stored);
    }

    #[test]
    fn a_long_request_goes_through_several_batches() {
        let tokens: Vec<u32> = (0..100).collect();
        let batches = plan(&[(tokens.clone(), 70), ([&tokens[..99], &[7]].concat(), 70)], 40);
        let rows: Vec<_> = batches.iter().map(|b| b.batch.tokens.len()).collect();
        // The second request has the first one's input, but hidden states are not kept.
        assert_eq!(rows, [40, 40, 19, 30]);
        let scored: Vec<_> = batches.iter().map(|b| b.batch.logit_rows.len()).collect();
        assert_eq!(scored, [0, 11, 19, 30]);
        assert_eq!(batches.iter().map(|b| b.requests).collect::<Vec<_>>(), [0, 0, 1, 1]);
    }

    #[test]
    fn shares_are_neighbours_of_equal_size() {
        let tokens: Vec<Vec<u32>> = (0..20u32).map(|i| vec![i * 7 % 20, 1, 2]).collect();
        let requests: Vec<PlanRequest<'_>> =
            tokens.iter().map(|tokens| PlanRequest { tokens, context_len: 1 }).collect();
        let cut = shares(&requests, 3);
        assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [7, 7, 6]);
        assert_eq!(cut.concat(), order(&requests));
        assert_eq!(shares(&requests[..2], 3).len(), 2);
        assert!(shares(&[], 2).is_empty());
    }

    #[test]
    fn a_context_is_known_to_the_next_call() {
        let context: Vec<u32> = (0..70).collect();
        let request = |last: u32| vec![([context.clone(), vec![last, 7]].concat(), 70)];
        let mut cache = cache(10);
        let mut rows = Vec::new();
        for last in [100, 101, 102] {
            let mut each = |planned: PlannedBatch, _: &mut PrefixCache| {
                rows.push(planned.batch.tokens.len());
                Ok(())
            };
            plan_with(&request(last), 100, &mut cache, &mut each).unwrap();
        }
        // Two full pages.
        assert_eq!(rows, [71, 71 - 64, 71 - 64]);
    }

    /// Follows every planned batch by hand and compares each scored row's path with the request's tokens, and the number
    /// of rows with `longest`. The key of a token is the token, so what lies in the cache is what pages hold.
    fn check(
        requests: &[(Vec<u32>, usize)],
        max_rows: usize,
        longest: usize,
        cache: &mut PrefixCache,
    ) -> Result<(), TestCaseError> {
        let mut answered = vec![Vec::new(); requests.len()];
        let mut each = |planned: PlannedBatch, cache: &mut PrefixCache| {
            let batch = &planned.batch;
            prop_assert!(batch.tokens.len() <= longest);
            let mut paths: Vec<Vec<u32>> = vec![Vec::new(); batch.tokens.len()];
            for sequence in &batch.sequences {
                let mut path = Vec::new();
                for segment in &batch.segments[sequence.segments.clone()] {
                    let rows = segment.first_row..segment.first_row + segment.len;
                    match segment.source {
                        Source::Cache => {
                            path.extend(cache.kv.layer(0).values[rows].iter().map(|x| *x as u32));
                        }
                        Source::Batch => path.extend_from_slice(&batch.tokens[rows]),
                    }
                }
                prop_assert_eq!(path.len(), sequence.first_position + sequence.rows.len());
                for (i, row) in sequence.rows.clone().enumerate() {
                    prop_assert_eq!(batch.positions[row] as usize, sequence.first_position + i);
                    paths[row] = path[..=sequence.first_position + i].to_vec();
                }
            }
            for (r, row) in batch.logit_rows.iter().enumerate() {
                for i in planned.offsets[r]..planned.offsets[r + 1] {
                    let (request, slot) = planned.slots[i];
                    let (tokens, context_len) = &requests[request];
                    prop_assert_eq!(&paths[*row], &tokens[..context_len + slot]);
                    prop_assert_eq!(planned.targets[i], tokens[context_len + slot]);
                    answered[request].push(slot);
                }
            }
            remember(batch, cache);
            Ok(())
        };
        plan_with(requests, max_rows, cache, &mut each)?;
        for (slots, (tokens, context_len)) in answered.iter_mut().zip(requests) {
            slots.sort_unstable();
            prop_assert_eq!(&*slots, &(0..tokens.len() - context_len).collect::<Vec<_>>());
        }
        Ok(())
    }

    /// A planner that goes back with an empty cache, in smaller batches, answers every token once.
    #[test]
    fn nothing_is_answered_twice_after_going_back() {
        let tokens: Vec<u32> = (0..200).collect();
        let all =
            [(tokens.clone(), 30), (tokens[..60].to_vec(), 20), ([&tokens[..50], &[7, 8]].concat(), 49)];
        let requests: Vec<PlanRequest<'_>> =
            all.iter().map(|(tokens, c)| PlanRequest { tokens, context_len: *c }).collect();
        for failing in 0..5 {
            let (mut planner, mut cache, mut rows) = (Planner::new(&requests, false), cache(100), 64);
            let mut answered = vec![Vec::new(); requests.len()];
            for batch in 0.. {
                let mark = planner.mark();
                let Some(planned) = planner.next_batch(rows, &mut cache) else { break };
                assert!(planned.batch.tokens.len() <= rows);
                if batch == failing {
                    cache = self::cache(100);
                    planner.back_to(mark);
                    rows /= 2;
                    continue;
                }
                remember(&planned.batch, &mut cache);
                Planner::done(&planned, &mut cache);
                planned.slots.iter().for_each(|(request, slot)| answered[*request].push(*slot));
            }
            for (slots, (tokens, context_len)) in answered.iter_mut().zip(&all) {
                slots.sort_unstable();
                assert_eq!(*slots, (0..tokens.len() - context_len).collect::<Vec<_>>(), "{failing}");
            }
        }
    }

    /// Tokens that often agree for longer than a page.
    fn requests() -> impl Strategy<Value = Vec<(Vec<u32>, usize)>> {
        let run = (0u32..2, 1usize..40).prop_map(|(token, len)| vec![token; len]);
        let tokens = proptest::collection::vec(run, 2..6).prop_map(|runs| runs.concat());
        let request = (tokens, 0usize..200).prop_map(|(t, c)| {
            let n = t.len();
            (t, 1 + c % (n - 1))
        });
        proptest::collection::vec(request, 1..20)
    }

    proptest! {
        /// In two calls with one cache, of which the second finds what the first left.
        #[test]
        fn every_scored_token_gets_its_own_path(
            first in requests(), second in requests(), max_rows in 1usize..80, pages in 1usize..12,
        ) {
            let mut cache = cache(pages);
            check(&first, max_rows, usize::MAX, &mut cache)?;
            check(&second, max_rows, usize::MAX, &mut cache)?;
        }

        #[test]
        fn no_batch_is_longer_than_allowed_where_the_cache_has_room(
            first in requests(), second in requests(), max_rows in 1usize..80,
        ) {
            let mut cache = cache(100);
            check(&first, max_rows, max_rows, &mut cache)?;
            check(&second, max_rows, max_rows, &mut cache)?;
        }
    }
}
