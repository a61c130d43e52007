//! Where context ends and continuation begins, in tokens.
//!
//! Source: lm-eval 0.4.13, `api/model.py` (`TemplateLM.loglikelihood`, `_encode_pair`) and `models/huggingface.py`
//! (`tok_encode`; `_loglikelihood_tokens` for the truncation).

use super::error::RequestProblem;
use crate::base::python;
use crate::model::tokenizer::{Tokenizer, TokenizerError};
use crate::record::score::ScoreRequest;

/// A request that cannot be encoded.
#[derive(Debug)]
pub(super) enum EncodeError {
    /// The tokenizer fails.
    Tokenizer(TokenizerError),
    /// The tokens make no request.
    Problem(RequestProblem),
}

impl From<TokenizerError> for EncodeError {
    fn from(error: TokenizerError) -> Self {
        Self::Tokenizer(error)
    }
}

impl From<RequestProblem> for EncodeError {
    fn from(problem: RequestProblem) -> Self {
        Self::Problem(problem)
    }
}

/// A request, and the number of tokens that were cut off the left of its context.
pub(super) type Cut = (ScoreRequest, usize);

/// Encodes the requests of one item. Its choices mostly have one context, whose own tokens are taken once.
pub(super) struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    max_len: usize,
    /// The last context, without white space at its end, and its tokens.
    context: Option<(String, Vec<u32>)>,
}

impl<'a> Encoder<'a> {
    /// For requests of at most `max_len + 1` tokens.
    pub fn new(tokenizer: &'a Tokenizer, max_len: usize) -> Self {
        Self { tokenizer, max_len, context: None }
    }

    /// Tokens of a context and a continuation, cut to what a request may hold.
    pub fn encode(&mut self, context: &str, continuation: &str) -> Result<Cut, EncodeError> {
        let (context, continuation) =
            if context.is_empty() { self.alone(continuation)? } else { self.pair(context, continuation)? };
        Ok(join(context, &continuation, self.max_len)?)
    }

    /// Without context: the prefix token, or the continuation's own first token if it is that one.
    fn alone(&self, text: &str) -> Result<(Vec<u32>, Vec<u32>), EncodeError> {
        let prefix = self.tokenizer.prefix_token_id().ok_or(RequestProblem::NoPrefixToken)?;
        let mut continuation = self.tokenizer.encode(text, false)?;
        if continuation.first() == Some(&prefix) {
            continuation.remove(0);
        }
        Ok((vec![prefix], continuation))
    }

    /// White space at the context's end belongs to the continuation; both are tokenized together and cut by the number
    /// of tokens of the context alone, even where a token spans the boundary.
    fn pair(&mut self, context: &str, continuation: &str) -> Result<(Vec<u32>, Vec<u32>), EncodeError> {
        let stripped = python::rstrip(context);
        let whole = self.tokenizer.encode_prompt(&[context, continuation].concat())?;
        let alone = match self.context.take() {
            Some(last) if last.0 == stripped => last,
            _ => (stripped.to_owned(), self.tokenizer.encode_prompt(stripped)?),
        };
        let (_, tokens) = self.context.insert(alone);
        let continuation = whole.get(tokens.len()..).unwrap_or_default().to_vec();
        Ok((tokens.clone(), continuation))
    }
}

/// Joins both parts and drops tokens from the left; the last token is predicted and never an input, so one more than
/// `max_len` fits.
fn join(mut context: Vec<u32>, continuation: &[u32], max_len: usize) -> Result<Cut, RequestProblem> {
    if context.is_empty() {
        return Err(RequestProblem::EmptyContext);
    }
    if continuation.is_empty() {
        return Err(RequestProblem::EmptyContinuation);
    }
    if continuation.len() > max_len {
        return Err(RequestProblem::TooLong { tokens: continuation.len(), max_len });
    }
    context.extend_from_slice(continuation);
    let excess = context.len().saturating_sub(max_len + 1);
    context.drain(..excess);
    let context_len = context.len() - continuation.len();
    Ok((ScoreRequest { tokens: context, context_len }, excess))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn left_truncation_keeps_one_token_more_than_fits() {
        let cut = join(vec![1, 2, 3, 4], &[5, 6], 4).unwrap();
        assert_eq!(cut, (ScoreRequest { tokens: vec![2, 3, 4, 5, 6], context_len: 3 }, 1));
        let cut = join(vec![1, 2], &[5, 6, 7], 3).unwrap();
        assert_eq!(cut, (ScoreRequest { tokens: vec![2, 5, 6, 7], context_len: 1 }, 1));
        let whole = join(vec![1, 2], &[5, 6], 3).unwrap();
        assert_eq!(whole, (ScoreRequest { tokens: vec![1, 2, 5, 6], context_len: 2 }, 0));
        assert_eq!(join(vec![1], &[1, 2, 3], 2), Err(RequestProblem::TooLong { tokens: 3, max_len: 2 }));
        assert_eq!(join(vec![], &[1], 2), Err(RequestProblem::EmptyContext));
        assert_eq!(join(vec![1], &[], 2), Err(RequestProblem::EmptyContinuation));
    }
}
