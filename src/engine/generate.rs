//! Greedy generation with a cache of keys and values. Its log-probabilities have the bits that scoring gives.

use super::error::{EngineError, RequestError};
use super::run::Engine;
use super::score::TokenLogprobs;
use crate::model::decoder::Workspace;
use crate::model::{KvCache, RaggedBatch};
use crate::ops::attention::{Segment, Sequence, Source};
use crate::ops::log_softmax::HeadQuery;

impl Engine {
    /// Continues `prompt` by the most likely token (the first of equals) up to `max_tokens` times, until one of
    /// `stop_ids`, which is then the last token returned, or until the model's positions are used up.
    pub fn generate_greedy(
        &self,
        prompt: &[u32],
        max_tokens: usize,
        stop_ids: &[u32],
        top_n: usize,
    ) -> Result<Vec<TokenLogprobs>, EngineError> {
        let invalid = |source| EngineError::Request { index: 0, source };
        if prompt.is_empty() {
            return Err(invalid(RequestError::Empty));
        }
        self.check_tokens(prompt, prompt.len()).map_err(invalid)?;
        let mut cache = self.decoder.new_cache();
        let mut work = Workspace::default();
        let mut out: Vec<TokenLogprobs> = Vec::new();
        let mut tokens = prompt.to_vec();
        let longest_short = self.config().longest_short_input();
        self.pool.install(|| {
            while out.len() < max_tokens && cache.len() + tokens.len() <= self.max_len() {
                // From here on the model rotates all positions differently: what is cached is of no use.
                if longest_short.is_some_and(|short| cache.len() == short) {
                    cache = self.decoder.new_cache();
                    tokens = prompt.iter().copied().chain(out.iter().map(|t| t.token)).collect();
                }
                let next = self.next_token(&tokens, &mut cache, &mut work, top_n)?;
                tokens = vec![next.token];
                let stop = stop_ids.contains(&next.token);
                out.push(next);
                if stop {
                    break;
                }
            }
            Ok(out)
        })
    }

    /// Appends `tokens` to the cache and returns the most likely next one.
    fn next_token(
        &self,
        tokens: &[u32],
        cache: &mut KvCache,
        work: &mut Workspace,
        top_n: usize,
    ) -> Result<TokenLogprobs, EngineError> {
        let mut batch = continuation(tokens, cache.len());
        let longest_short = self.config().longest_short_input();
        batch.long = longest_short.is_some_and(|short| cache.len() + tokens.len() > short);
        let hidden = self.decoder.forward(&batch, cache, work);
        let query = HeadQuery { targets: &[], offsets: &[0, 0], top_n: top_n.max(1) };
        let (rows, _) = self.decoder.log_softmax(&hidden, &query);
        let (token, logit) =
            *rows[0].top.first().ok_or(EngineError::NotFinite { position: cache.len() - 1 })?;
        let mut next = rows[0].token(token, logit);
        next.top.truncate(top_n);
        Ok(next)
    }
}

/// A batch of one sequence that continues the cache and is appended to it; only its last row is asked.
fn continuation(tokens: &[u32], cached: usize) -> RaggedBatch {
    let len = tokens.len();
    let mut segments = vec![Segment { source: Source::Batch, first_tile: 0, first_row: 0, len }];
    if cached > 0 {
        segments.insert(0, Segment { source: Source::Cache, first_tile: 0, first_row: 0, len: cached });
    }
    let sequence =
        Sequence { rows: 0..len, first_position: cached, first_tile: 0, segments: 0..segments.len() };
    RaggedBatch {
        tokens: tokens.to_vec(),
        positions: (cached as u32..(cached + len) as u32).collect(),
        sequences: vec![sequence],
        segments,
        logit_rows: vec![len - 1],
        kept: (cached, std::iter::once(0..len).collect()),
        long: false,
    }
}
