//! Log-likelihoods of continuations and of prompts.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::batch_limits::FullBatch;
use super::error::{EngineError, RequestError};
use super::pages::PAGE;
use super::plan::{PlanRequest, PlannedBatch, Planner, shares};
use super::run::{Engine, Replica, SessionCache};
use crate::device::cuda::CudaError;
use crate::model::{Session, Slots as _};
use crate::ops::log_softmax::{HeadQuery, HeadRow};
use crate::record::score::{ScoreRequest, ScoreResult};

/// A token with its log-probability, and what else was likely in its place.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token.
    pub token: u32,
    /// ln p of the token given everything before it.
    pub logprob: f32,
    /// The most likely tokens with their ln p, by probability, then by token.
    pub top: Vec<(u32, f32)>,
    /// Tokens at least as likely as this one, itself included, where it was asked for.
    pub rank: Option<usize>,
}

/// A prompt whose tokens are to be scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptQuery {
    /// Token ids, at least one.
    pub tokens: Vec<u32>,
    /// First position scored; position 0 never is.
    pub first: usize,
    /// Most likely tokens reported with each.
    pub top_n: usize,
    /// Whether the rank of each is wanted; it takes the head a second time.
    pub with_ranks: bool,
}

/// How much of the inputs prompts shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScoreStats {
    /// Input tokens of all prompts.
    pub inputs: usize,
    /// Rows that were computed for them.
    pub computed: usize,
}

/// What is asked of every scored row.
#[derive(Clone, Copy)]
struct RowQuery {
    top_n: usize,
    with_ranks: bool,
}

/// A scored token as it becomes known.
struct Scored<'a> {
    request: usize,
    /// Which of the request's scored tokens.
    slot: usize,
    row: &'a HeadRow,
    token: u32,
    logit: f32,
    rank: Option<usize>,
}

/// Rows whose ranks are taken at once: the logits of all their tokens are held.
const RANKED_ROWS: usize = 32;

/// A prompt's answer as it fills.
struct Answer {
    entries: Vec<Option<TokenLogprobs>>,
    missing: usize,
}

impl Engine {
    /// Scores requests; results are in the order of the requests and do not depend on it. `progress` is called with the
    /// number of requests done so far.
    pub fn score(
        &self,
        requests: &[ScoreRequest],
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<Vec<ScoreResult>, EngineError> {
        for (index, request) in requests.iter().enumerate() {
            self.check(request).map_err(|source| EngineError::Request { index, source })?;
        }
        let planned: Vec<PlanRequest<'_>> =
            requests.iter().map(|r| PlanRequest { tokens: &r.tokens, context_len: r.context_len }).collect();
        let mut results: Vec<ScoreResult> = requests
            .iter()
            .map(|r| {
                let scored = r.tokens.len() - r.context_len;
                ScoreResult { token_logprobs: vec![0.0; scored], token_is_greedy: vec![false; scored] }
            })
            .collect();
        let query = RowQuery { top_n: 0, with_ranks: false };
        self.run(&planned, query, progress, &mut |scored| {
            let result = &mut results[scored.request];
            result.token_logprobs[scored.slot] = scored.row.logprob(scored.logit);
            result.token_is_greedy[scored.slot] = scored.logit >= scored.row.max;
        })?;
        Ok(results)
    }

    /// The log-probability of each token of a prompt given those before it, with the `top_n` most likely tokens in its
    /// place. The first token has none.
    pub fn prompt_logprobs(
        &self,
        tokens: &[u32],
        top_n: usize,
    ) -> Result<Vec<Option<TokenLogprobs>>, EngineError> {
        let query = PromptQuery { tokens: tokens.to_vec(), first: 1, top_n, with_ranks: false };
        let mut entries = vec![None];
        self.score_prompts(&[query], &mut |_, scored| entries.extend(scored.into_iter().map(Some)))?;
        Ok(entries)
    }

    /// Log-probabilities of the tokens of prompts from each one's `first` on. `done(prompt, entries)` is called as soon
    /// as a prompt's last token is known; prompts share what they have in common.
    pub fn score_prompts(
        &self,
        prompts: &[PromptQuery],
        done: &mut (dyn FnMut(usize, Vec<TokenLogprobs>) + Send),
    ) -> Result<ScoreStats, EngineError> {
        let mut answers: Vec<Answer> = Vec::with_capacity(prompts.len());
        let (mut planned, mut indices) = (Vec::new(), Vec::new());
        for (index, prompt) in prompts.iter().enumerate() {
            let invalid = |source| EngineError::Request { index, source };
            let len = prompt.tokens.len();
            if len == 0 {
                return Err(invalid(RequestError::Empty));
            }
            self.check_tokens(&prompt.tokens, len - 1).map_err(invalid)?;
            let first = prompt.first.max(1);
            let missing = len.saturating_sub(first);
            answers.push(Answer { entries: vec![None; missing], missing });
            if missing == 0 {
                done(index, Vec::new());
            } else {
                planned.push(PlanRequest { tokens: &prompt.tokens, context_len: first });
                indices.push(index);
            }
        }
        let query = RowQuery {
            top_n: prompts.iter().map(|p| p.top_n).max().unwrap_or(0),
            with_ranks: prompts.iter().any(|p| p.with_ranks),
        };
        let computed = self.run(&planned, query, &|_| (), &mut |scored| {
            let index = indices[scored.request];
            let answer = &mut answers[index];
            let mut entry = scored.row.token(scored.token, scored.logit);
            entry.top.truncate(prompts[index].top_n);
            entry.rank = scored.rank.filter(|_| prompts[index].with_ranks);
            answer.entries[scored.slot] = Some(entry);
            answer.missing -= 1;
            if answer.missing == 0 {
                done(index, std::mem::take(&mut answer.entries).into_iter().flatten().collect());
            }
        })?;
        Ok(ScoreStats { inputs: planned.iter().map(|p| p.tokens.len() - 1).sum(), computed })
    }

    /// Answers every scored token of checked requests, each replica a share of them. Returns the number of rows computed.
    fn run(
        &self,
        requests: &[PlanRequest<'_>],
        query: RowQuery,
        progress: &(dyn Fn(usize) + Sync),
        each: &mut (dyn FnMut(Scored<'_>) + Send),
    ) -> Result<usize, EngineError> {
        if let [only] = self.replicas.as_slice() {
            return self.run_on(only, requests, query, progress, each);
        }
        let (each, done) = (Mutex::new(each), AtomicUsize::new(0));
        let run_share = |replica: &Replica, share: &[usize]| {
            let of_share: Vec<PlanRequest<'_>> = share.iter().map(|i| requests[*i]).collect();
            let before = Cell::new(0);
            let count = |now: usize| {
                let more = now - before.replace(now);
                progress(done.fetch_add(more, Ordering::Relaxed) + more);
            };
            self.run_on(replica, &of_share, query, &count, &mut |scored| {
                let mut each = each.lock().unwrap_or_else(PoisonError::into_inner);
                (*each)(Scored { request: share[scored.request], ..scored });
            })
        };
        let shares = shares(requests, self.replicas.len());
        std::thread::scope(|scope| {
            let run_share = &run_share;
            let start = |(replica, share)| scope.spawn(move || run_share(replica, share));
            let running: Vec<_> =
                self.replicas.iter().zip(shares.iter().map(Vec::as_slice)).map(start).collect();
            let computed = running.into_iter().map(|thread| match thread.join() {
                Ok(computed) => computed,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            // All are waited for before an error is returned.
            computed.collect::<Vec<_>>().into_iter().sum()
        })
    }

    /// As above, on one replica.
    fn run_on(
        &self,
        replica: &Replica,
        requests: &[PlanRequest<'_>],
        query: RowQuery,
        progress: &dyn Fn(usize),
        each: &mut dyn FnMut(Scored<'_>),
    ) -> Result<usize, EngineError> {
        // One call at a time has the cache of former calls; another that runs meanwhile starts with its own.
        let mut own;
        let mut kept = replica.prefixes.try_lock().ok();
        let cache = if let Some(cache) = kept.as_deref_mut() {
            cache
        } else {
            own = Self::new_prefix_cache(replica);
            &mut own
        };
        let computed = self.run_with((replica, &mut *cache), requests, query, progress, each);
        match &computed {
            Ok(_) => cache.kv.rest(),
            // Nobody knows what a pass that failed left in the cache.
            Err(_) => *cache = Self::new_prefix_cache(replica),
        }
        computed
    }

    /// As above, with what is in the cache. A batch for which the device has no memory is tried again without what was held,
    /// then in smaller ones.
    fn run_with(
        &self,
        (replica, cache): (&Replica, &mut SessionCache),
        requests: &[PlanRequest<'_>],
        query: RowQuery,
        progress: &dyn Fn(usize),
        each: &mut dyn FnMut(Scored<'_>),
    ) -> Result<usize, EngineError> {
        // Long inputs of some models rotate all positions differently and share nothing with short ones.
        let is_long = |i: &usize| self.config().is_long_input(requests[*i].input().len());
        let (long, short): (Vec<usize>, Vec<usize>) = (0..requests.len()).partition(is_long);
        let longest = requests.iter().map(|request| request.input().len()).max().unwrap_or(0);
        let (mut done, mut computed) = (0, 0);
        for (indices, long) in [(short, false), (long, true)] {
            let planned: Vec<PlanRequest<'_>> = indices.iter().map(|i| requests[*i]).collect();
            let mut planner = Planner::new(&planned, long);
            let mut failed_at = None;
            loop {
                let (mark, held_bytes) = (planner.mark(), cache.held_bytes());
                let Some(planned) = planner.next_batch(replica.limits.rows(), cache) else { break };
                let answered = self.answer(&planned, cache.kv.as_mut(), query, &mut |scored| {
                    each(Scored { request: indices[scored.request], ..scored });
                });
                match answered {
                    Ok(()) => {}
                    Err(EngineError::Device(full @ CudaError::OutOfMemory { .. })) => {
                        let prompt_bytes = (longest + PAGE) * cache.kv.slot_bytes();
                        let rows = planned.batch.tokens.len();
                        // What failed here before was tried with an empty cache, which holds this prompt's own beginning.
                        let held_bytes = held_bytes.filter(|_| failed_at < Some(mark));
                        failed_at = Some(mark);
                        replica.limits.shrink(FullBatch { rows, held_bytes, prompt_bytes }, full)?;
                        // Nobody knows what the pass left in the cache; nothing of its batch was answered.
                        *cache = Self::new_prefix_cache(replica);
                        planner.back_to(mark);
                        continue;
                    }
                    Err(error) => return Err(error),
                }
                Planner::done(&planned, cache);
                computed += planned.batch.tokens.len();
                done += planned.requests;
                progress(done);
            }
        }
        Ok(computed)
    }

    /// Computes one batch and hands out its answers.
    fn answer(
        &self,
        planned: &PlannedBatch,
        session: &mut dyn Session,
        query: RowQuery,
        each: &mut dyn FnMut(Scored<'_>),
    ) -> Result<(), EngineError> {
        session.forward(&planned.batch)?;
        let count = planned.batch.logit_rows.len();
        if count == 0 {
            // The first part of a long request, for its keys and values.
            return Ok(());
        }
        let head = HeadQuery { targets: &planned.targets, offsets: &planned.offsets, top_n: query.top_n };
        let (rows, logits) = session.log_softmax(0..count, &head)?;
        let ranks = if query.with_ranks { self.ranks(session, planned)? } else { vec![None; logits.len()] };
        for (row, bounds) in rows.iter().zip(planned.offsets.windows(2)) {
            let of_row = bounds[0]..bounds[1];
            let scored = planned.slots[of_row.clone()].iter().zip(&planned.targets[of_row.clone()]);
            let values = logits[of_row.clone()].iter().zip(&ranks[of_row]);
            for ((&(request, slot), &token), (&logit, &rank)) in scored.zip(values) {
                each(Scored { request, slot, row, token, logit, rank });
            }
        }
        Ok(())
    }

    /// For each target of the session's last batch, how many tokens have at least its logit: vLLM's rank.
    fn ranks(
        &self,
        session: &mut dyn Session,
        planned: &PlannedBatch,
    ) -> Result<Vec<Option<usize>>, EngineError> {
        let vocab: Vec<u32> = (0..self.vocab_size() as u32).collect();
        let mut ranks = Vec::with_capacity(planned.targets.len());
        let count = planned.batch.logit_rows.len();
        for first in (0..count).step_by(RANKED_ROWS) {
            let block = first..(first + RANKED_ROWS).min(count);
            let offsets: Vec<usize> = (0..=block.len()).map(|r| r * vocab.len()).collect();
            let head = HeadQuery { targets: &vocab.repeat(block.len()), offsets: &offsets, top_n: 0 };
            let (_, all) = session.log_softmax(block.clone(), &head)?;
            for (row, all) in block.zip(all.chunks(vocab.len())) {
                let of_row = planned.offsets[row]..planned.offsets[row + 1];
                // The target's logit of the same product: another number of rows may sum in another order. One that is
                // not a number is no more than itself.
                let rank = |target: &u32| {
                    let logit = all[*target as usize];
                    Some(all.iter().filter(|other| **other >= logit).count().max(1))
                };
                ranks.extend(planned.targets[of_row].iter().map(rank));
            }
        }
        Ok(ranks)
    }
}

impl HeadRow {
    /// The answer for one token of this row.
    pub(super) fn token(&self, token: u32, logit: f32) -> TokenLogprobs {
        let top = self.top.iter().map(|(t, l)| (*t, self.logprob(*l))).collect();
        TokenLogprobs { token, logprob: self.logprob(logit), top, rank: None }
    }
}
