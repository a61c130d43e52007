//! Batches of scoring requests as a prefix tree: what requests share is computed once.
//!
//! Requests are visited in lexicographic order of their inputs, so that each shares its longest common prefix with its
//! predecessor. Its new rows branch off the predecessor's path, which thereby becomes the tree's current path; a
//! request whose input is its predecessor's gets its answer from the same row. Where a batch ends inside a shared
//! prefix, the prefix's keys and values stay in the cache for the next batch.

use crate::model::{RaggedBatch, Stored};
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
}

/// Hands out the requests in batches.
pub(super) struct Planner<'a> {
    requests: &'a [PlanRequest<'a>],
    order: Vec<usize>,
    next: usize,
    /// Leading tokens of the next request that the cache holds.
    cached: usize,
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
    tiles: usize,
    /// (row, target, request, which of its scored tokens).
    wanted: Vec<(usize, u32, usize, usize)>,
}

impl<'a> Planner<'a> {
    pub fn new(requests: &'a [PlanRequest<'a>]) -> Self {
        let mut order: Vec<usize> = (0..requests.len()).collect();
        order.sort_by_key(|i| (requests[*i].input(), *i));
        Self { requests, order, next: 0, cached: 0 }
    }

    /// The next batch: as many requests as fit `max_rows` new rows, at least one.
    pub fn next_batch(&mut self, max_rows: usize) -> Option<PlannedBatch> {
        let begin = self.next;
        let mut filling = Filling::default();
        if self.cached > 0 {
            let segment = Segment { source: Source::Cache, first_tile: 0, first_row: 0, len: self.cached };
            filling.path.push(Piece { segment, start: 0 });
        }
        while let Some(index) = self.order.get(self.next).copied() {
            let request = self.requests[index];
            let mut shared = self.cached;
            if self.next > begin {
                shared = common_prefix(self.requests[self.order[self.next - 1]].input(), request.input());
                // The cache has keys and values, but no hidden states to score from.
                if request.first_scored() < shared.min(filling.cached()) {
                    shared = request.first_scored();
                }
            }
            let new = request.input().len() - shared;
            if self.next > begin && filling.batch.tokens.len() + new > max_rows {
                break;
            }
            filling.add(index, request, shared);
            self.next += 1;
        }
        if self.next == begin {
            return None;
        }
        self.cached = 0;
        if let Some(following) = self.order.get(self.next) {
            let (last, following) = (self.requests[self.order[self.next - 1]], self.requests[*following]);
            self.cached = common_prefix(last.input(), following.input()).min(following.first_scored());
        }
        filling.batch.stored = filling.keep(self.cached);
        Some(filling.finish(self.next - begin))
    }
}

impl Filling {
    /// How much of the path lies in the cache.
    fn cached(&self) -> usize {
        self.path.first().filter(|p| p.segment.source == Source::Cache).map_or(0, |p| p.segment.len)
    }

    /// Branches off the current path after `shared` tokens.
    fn add(&mut self, index: usize, request: PlanRequest<'_>, shared: usize) {
        self.truncate(shared);
        let input = request.input();
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
        for piece in &self.path {
            let positions = piece.start.max(request.first_scored())..piece.start + piece.segment.len;
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

    /// Rows of the path's first `len` positions that the cache does not hold yet; slots are positions.
    fn keep(&self, len: usize) -> Vec<Stored> {
        let stored = |p: &Piece| Stored {
            rows: p.segment.first_row..p.segment.first_row + p.segment.len.min(len - p.start),
            first_slot: p.start,
        };
        let new = self.path.iter().filter(|p| p.segment.source == Source::Batch && p.start < len);
        new.map(stored).collect()
    }

    fn finish(mut self, requests: usize) -> PlannedBatch {
        self.wanted.sort_unstable();
        let mut planned = PlannedBatch {
            batch: self.batch,
            targets: Vec::with_capacity(self.wanted.len()),
            offsets: Vec::new(),
            slots: Vec::with_capacity(self.wanted.len()),
            requests,
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

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plan(requests: &[(Vec<u32>, usize)], max_rows: usize) -> Vec<PlannedBatch> {
        let requests: Vec<PlanRequest<'_>> =
            requests.iter().map(|(tokens, c)| PlanRequest { tokens, context_len: *c }).collect();
        let mut planner = Planner::new(&requests);
        std::iter::from_fn(|| planner.next_batch(max_rows)).collect()
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
        assert_eq!(batches[0].batch.stored, [Stored { rows: 0..50, first_slot: 0 }]);
    }

    /// Follows every planned batch by hand and compares each scored row's path with the request's tokens.
    fn check(requests: &[(Vec<u32>, usize)], max_rows: usize) -> Result<(), TestCaseError> {
        let mut cache: Vec<u32> = Vec::new();
        let mut answered = vec![Vec::new(); requests.len()];
        for planned in plan(requests, max_rows) {
            let batch = &planned.batch;
            let mut paths: Vec<Vec<u32>> = vec![Vec::new(); batch.tokens.len()];
            for sequence in &batch.sequences {
                let mut path = Vec::new();
                for segment in &batch.segments[sequence.segments.clone()] {
                    let source = if segment.source == Source::Cache { &cache } else { &batch.tokens };
                    path.extend_from_slice(&source[segment.first_row..][..segment.len]);
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
            for stored in &batch.stored {
                cache.truncate(stored.first_slot);
                cache.extend_from_slice(&batch.tokens[stored.rows.clone()]);
            }
        }
        for (slots, (tokens, context_len)) in answered.iter_mut().zip(requests) {
            slots.sort_unstable();
            prop_assert_eq!(&*slots, &(0..tokens.len() - context_len).collect::<Vec<_>>());
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn every_scored_token_gets_its_own_path(
            requests in proptest::collection::vec(
                (proptest::collection::vec(0u32..3, 2..12), 0usize..100), 1..30),
            max_rows in 1usize..40,
        ) {
            let requests: Vec<_> =
                requests.into_iter().map(|(t, c)| { let n = t.len(); (t, 1 + c % (n - 1)) }).collect();
            check(&requests, max_rows)?;
        }
    }
}
