//! Items ready to be scored: rendered, tokenized, truncated and digested.

use std::sync::Arc;

use crate::base::digest::Digest;
use crate::engine::common_prefix;
use crate::record::eval::ItemOrder;
use crate::record::score::ScoreRequest;
use crate::suite::{Doc, Task};

/// One request of an item: a choice of a multiple-choice question, or a whole text to roll over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedRequest {
    /// Text that is given; empty for rolling requests.
    pub context: String,
    /// Text that is scored.
    pub continuation: String,
    /// What is sent to the engine: one request, or one per window of a rolling text; their log-likelihoods add up.
    pub windows: Vec<ScoreRequest>,
    /// Tokens of the context that were cut on the left because the model's input is shorter.
    pub cut_tokens: usize,
}

/// One document with its requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedItem {
    /// Index in the split.
    pub doc_id: usize,
    /// Requests in lm-eval's order.
    pub requests: Vec<PreparedRequest>,
    /// Digest of the contexts and continuations.
    pub prompt_digest: Digest,
    /// Digest of the token ids and context lengths of all windows.
    pub token_digest: Digest,
    /// Why the item cannot be scored, e.g. that it is longer than the model's input; nothing is then sent.
    pub problem: Option<String>,
}

impl PreparedItem {
    /// Whether a context was cut.
    pub fn is_truncated(&self) -> bool {
        self.requests.iter().any(|r| r.cut_tokens > 0)
    }

    /// Number of requests to the engine that the item stands for.
    pub fn num_windows(&self) -> usize {
        self.requests.iter().map(|r| r.windows.len()).sum()
    }

    /// Tokens that an engine computes which shares what a request has in common with the one before it.
    pub fn num_computed_tokens(&self) -> u64 {
        let mut last: &[u32] = &[];
        let mut computed = 0;
        for window in self.requests.iter().flat_map(|r| &r.windows) {
            let input = &window.tokens[..window.tokens.len().saturating_sub(1)];
            computed += input.len() - common_prefix(last, input);
            last = input;
        }
        computed as u64
    }
}

/// A task's items in the order in which they are to be visited.
#[derive(Debug, Clone)]
pub struct PreparedTask {
    /// The task.
    pub task: Arc<Task>,
    /// Items in order of visit.
    pub items: Vec<PreparedItem>,
    /// Items of the full split.
    pub full_split: usize,
    /// Why there are fewer items than the split has, e.g. `--limit 40`; empty for the full split.
    pub limited_by: String,
    /// In which order items were chosen.
    pub order: ItemOrder,
    /// Examples before each question.
    pub num_fewshot: usize,
    /// Digest of the task's definition, its rows and the options that shape its prompts.
    pub digest: Digest,
}

impl PreparedTask {
    /// Task name.
    pub fn name(&self) -> &str {
        &self.task.config.task
    }

    /// The document of an item.
    pub fn doc(&self, item: &PreparedItem) -> &Doc {
        &self.task.docs[item.doc_id]
    }

    /// Items that cannot be scored: document and reason.
    pub fn problems(&self) -> impl Iterator<Item = (usize, &str)> {
        self.items.iter().filter_map(|i| Some((i.doc_id, i.problem.as_deref()?)))
    }

    /// Number of requests to the engine that the items stand for.
    pub fn num_requests(&self) -> usize {
        self.items.iter().map(PreparedItem::num_windows).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_choices_share_is_computed_once() {
        let request = |tokens: &[u32]| PreparedRequest {
            context: String::new(),
            continuation: String::new(),
            windows: vec![ScoreRequest { tokens: tokens.to_vec(), context_len: 1 }],
            cut_tokens: 0,
        };
        let item = PreparedItem {
            doc_id: 0,
            requests: vec![request(&[1, 2, 3, 4]), request(&[1, 2, 5, 6, 7]), request(&[1, 2, 5, 9])],
            prompt_digest: Digest::of(b""),
            token_digest: Digest::of(b""),
            problem: None,
        };
        // 1 2 3, then 5 6; 1 2 5 is there. The last token of each is never an input.
        assert_eq!((item.num_computed_tokens(), item.num_windows()), (5, 3));
    }
}
