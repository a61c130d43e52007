//! Answers of `/v1/completions`, checked before a number of them is believed.
//!
//! The traps are real: llama-server ignores `echo` and every choice then scores 0.0, which looks like a result at
//! chance level (llama.cpp issue 27174).

use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::record::eval::ItemError;
use crate::record::score::{ScoreRequest, ScoreResult};

/// vLLM and OpenAI write this for −∞.
const LOGPROB_FLOOR: f64 = -9999.0;
/// Rounding may put ln 1 slightly above 0.
const LOGPROB_CEILING: f64 = 1e-2;
/// Fewer tokens may all have probability 1 by right.
const ALL_ZERO_MIN_ENTRIES: usize = 4;

#[derive(Debug, Deserialize)]
pub(crate) struct Answer {
    pub choices: Vec<Choice>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Choice {
    pub index: usize,
    #[serde(default)]
    pub text: String,
    pub logprobs: Option<Logprobs>,
    pub prompt_token_ids: Option<Vec<u32>>,
    pub token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[expect(clippy::struct_field_names, reason = "OpenAI's names")]
pub(crate) struct Logprobs {
    #[serde(default)]
    pub tokens: Vec<String>,
    #[serde(default)]
    pub token_logprobs: Vec<Option<f64>>,
    pub top_logprobs: Option<Vec<Option<BestOf>>>,
}

/// The largest value of a `top_logprobs` entry; `None` when the entry is empty.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct BestOf(pub Option<f64>);

impl<'de> Deserialize<'de> for BestOf {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BestVisitor;
        impl<'de> Visitor<'de> for BestVisitor {
            type Value = BestOf;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of token texts and log-probs")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<BestOf, A::Error> {
                let mut best: Option<f64> = None;
                while let Some((_, value)) = map.next_entry::<serde::de::IgnoredAny, f64>()? {
                    best = Some(best.map_or(value, |b| b.max(value)));
                }
                Ok(BestOf(best))
            }
        }
        deserializer.deserialize_map(BestVisitor)
    }
}

/// An answer that cannot be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Distrust {
    #[error("no log-probs in the answer")]
    NoLogprobs,
    #[error(
        "{entries} log-prob entries for {prompt_tokens} prompt tokens and {generated} generated{}",
        if *entries <= 1 { " (the server seems to ignore echo)" } else { "" }
    )]
    EntryCount { entries: usize, prompt_tokens: usize, generated: usize },
    #[error("the first log-prob is not null")]
    FirstNotNull,
    #[error("the log-prob at position {position} is {value}")]
    Value { position: usize, value: String },
    #[error("all {entries} log-probs are exactly 0")]
    AllZero { entries: usize },
    #[error("no ranked log-probs, so nothing shows whether a token is greedy")]
    NoRanking,
    #[error("the server answered for other token ids than it was sent, first at position {position}")]
    OtherTokens { position: usize },
    #[error("a request of {tokens} tokens cannot have {context_len} of them given")]
    ContextLen { context_len: usize, tokens: usize },
    #[error("choices {found:?} in the answer, one for each of {expected} prompts expected")]
    Choices { found: Vec<usize>, expected: usize },
}

impl From<Distrust> for ItemError {
    fn from(distrust: Distrust) -> Self {
        Self { status: Some(200), transient: false, message: distrust.to_string() }
    }
}

impl Answer {
    /// The choices by index, exactly one for each of `n` prompts.
    pub fn in_order(mut self, n: usize) -> Result<Vec<Choice>, Distrust> {
        self.choices.sort_by_key(|c| c.index);
        if self.choices.iter().map(|c| c.index).eq(0..n) {
            return Ok(self.choices);
        }
        Err(Distrust::Choices { found: self.choices.iter().map(|c| c.index).collect(), expected: n })
    }
}

impl Choice {
    /// The score of `request`, which was sent with echo, one ranked log-prob and `generated` tokens to generate.
    pub fn score(&self, request: &ScoreRequest, generated: usize) -> Result<ScoreResult, Distrust> {
        let (tokens, context_len) = (&request.tokens, request.context_len);
        if let Some(echoed) = &self.prompt_token_ids
            && echoed != tokens
        {
            let position = tokens.iter().zip(echoed).take_while(|(a, b)| a == b).count();
            return Err(Distrust::OtherTokens { position });
        }
        if context_len == 0 || context_len > tokens.len() {
            return Err(Distrust::ContextLen { context_len, tokens: tokens.len() });
        }
        let logprobs = self.logprobs.as_ref().ok_or(Distrust::NoLogprobs)?;
        check_entry_count(logprobs, tokens.len(), generated)?;
        check_first_is_null(logprobs)?;
        // A server that was asked to score from the continuation on says nothing about the context.
        let is_unscored = |entry: &Option<f64>| entry.is_none();
        let context = logprobs.token_logprobs.get(1..context_len).unwrap_or_default();
        let first = if context.iter().all(is_unscored) { context_len } else { 1 };
        check_rest(logprobs, first..tokens.len())?;
        let top = logprobs.top_logprobs.as_ref().ok_or(Distrust::NoRanking)?;
        let mut result = ScoreResult {
            token_logprobs: Vec::with_capacity(tokens.len() - context_len),
            token_is_greedy: Vec::with_capacity(tokens.len() - context_len),
        };
        for position in context_len..tokens.len() {
            // The f32 that the engine computed: both values were checked to be there.
            let logprob = logprobs.token_logprobs[position].ok_or(Distrust::NoLogprobs)? as f32;
            let best = top.get(position).copied().flatten().and_then(|b| b.0).ok_or(Distrust::NoRanking)?;
            result.token_logprobs.push(logprob);
            result.token_is_greedy.push(logprob >= best as f32);
        }
        Ok(result)
    }
}

/// Entries = prompt tokens + those generated.
pub(crate) fn check_entry_count(
    logprobs: &Logprobs,
    prompt_tokens: usize,
    generated: usize,
) -> Result<(), Distrust> {
    let entries = logprobs.token_logprobs.len();
    if entries == prompt_tokens + generated {
        return Ok(());
    }
    Err(Distrust::EntryCount { entries, prompt_tokens, generated })
}

/// Nothing comes before the first token.
pub(crate) fn check_first_is_null(logprobs: &Logprobs) -> Result<(), Distrust> {
    match logprobs.token_logprobs.first() {
        Some(None) => Ok(()),
        _ => Err(Distrust::FirstNotNull),
    }
}

/// The prompt's entries at `positions` are log-probs: finite, not clamped, not positive, not all zero.
pub(crate) fn check_rest(logprobs: &Logprobs, positions: Range<usize>) -> Result<(), Distrust> {
    let rest = logprobs.token_logprobs.get(positions.clone()).unwrap_or_default();
    for (at, value) in rest.iter().enumerate() {
        if !value.is_some_and(is_logprob) {
            let value = value.map_or_else(|| "null".to_owned(), |v| v.to_string());
            return Err(Distrust::Value { position: positions.start + at, value });
        }
    }
    if rest.len() >= ALL_ZERO_MIN_ENTRIES && rest.iter().all(|v| *v == Some(0.0)) {
        return Err(Distrust::AllZero { entries: rest.len() });
    }
    Ok(())
}

/// Finite, not clamped, not positive.
pub(crate) fn is_logprob(value: f64) -> bool {
    value > LOGPROB_FLOOR && value <= LOGPROB_CEILING
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn request() -> ScoreRequest {
        ScoreRequest { tokens: vec![5, 6, 7, 8, 9], context_len: 3 }
    }

    fn good() -> Value {
        json!({
            "index": 0, "text": "abcdef", "finish_reason": "length",
            "logprobs": {
                "tokens": ["a", "b", "c", "d", "e", "f"],
                "token_logprobs": [null, -1.5, -2.5, -0.5, -3.5, -0.1],
                "top_logprobs": [null, {"b": -1.5}, {"c": -2.5, "x": -1.0}, {"d": -0.5}, {"e": -3.5, "x": -0.2}, {"f": -0.1}],
                "text_offset": [0, 1, 2, 3, 4, 5],
            },
        })
    }

    fn score(choice: Value) -> Result<ScoreResult, Distrust> {
        serde_json::from_value::<Choice>(choice).unwrap().score(&request(), 1)
    }

    #[test]
    fn continuation_only_and_without_the_generated_token() {
        let result = score(good()).unwrap();
        assert_eq!(result.token_logprobs, [-0.5, -3.5]);
        assert_eq!(result.token_is_greedy, [true, false]);
    }

    #[test]
    fn what_is_distrusted() {
        let with = |path: &str, value: Value| {
            let mut choice = good();
            *choice.pointer_mut(path).unwrap() = value;
            choice
        };
        let lp = "/logprobs/token_logprobs";
        let entries = |entries| Distrust::EntryCount { entries, prompt_tokens: 5, generated: 1 };
        let value = |position, value: &str| Distrust::Value { position, value: value.to_owned() };
        let mut other_ids = good();
        other_ids["prompt_token_ids"] = json!([5, 6, 1, 8, 9]);
        let table = [
            (with("/logprobs", Value::Null), Distrust::NoLogprobs),
            (with(lp, json!([])), entries(0)),
            (with(lp, json!([-0.1])), entries(1)),
            (with(lp, json!([null, -1, -1, -1, -1])), entries(5)),
            (with(lp, json!([null, -1, -1, -1, -1, -1, -1])), entries(7)),
            (with(lp, json!([-1, -1, -1, -1, -1, -1])), Distrust::FirstNotNull),
            (with(lp, json!([0.0, 0.0, 0.0, 0.0, 0.0, 0.0])), Distrust::FirstNotNull),
            (with(lp, json!([null, 0.0, 0.0, 0.0, 0.0, 0.0])), Distrust::AllZero { entries: 4 }),
            (with(lp, json!([null, -1, -1, -9999.0, -1, -1])), value(3, "-9999")),
            (with(lp, json!([null, -1, null, -1, -1, -1])), value(2, "null")),
            (with(lp, json!([null, -1, 5.0, -1, -1, -1])), value(2, "5")),
            (with("/logprobs/top_logprobs", Value::Null), Distrust::NoRanking),
            (with("/logprobs/top_logprobs", json!([null, {"b": -1.5}])), Distrust::NoRanking),
            (with("/logprobs/top_logprobs/4", json!({})), Distrust::NoRanking),
            (other_ids, Distrust::OtherTokens { position: 2 }),
        ];
        for (choice, expected) in table {
            assert_eq!(score(choice.clone()), Err(expected), "{choice}");
        }
    }

    #[test]
    fn choices_must_be_complete_and_unique() {
        let order = |indices: &[usize]| {
            let choices: Vec<Value> = indices.iter().map(|i| json!({"index": i, "text": ""})).collect();
            let answer: Answer = serde_json::from_value(json!({"choices": choices})).unwrap();
            answer.in_order(2).map(|c| c.iter().map(|c| c.index).collect::<Vec<_>>())
        };
        assert_eq!(order(&[1, 0]).unwrap(), [0, 1]);
        for wrong in [&[0][..], &[0, 0], &[0, 1, 2], &[1, 2], &[]] {
            assert!(order(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn malformed_json_is_an_error_and_no_panic() {
        for text in [
            "",
            "{}",
            "[]",
            "{\"choices\":5}",
            "{\"choices\":[{}]}",
            "{\"choices\":[{\"index\":-1}]}",
            "{\"choices\":[{\"index\":0,\"logprobs\":{\"token_logprobs\":[NaN]}}]}",
            "{\"choices\":[{\"index\":0,\"logprobs\":{\"top_logprobs\":[[1]]}}]}",
        ] {
            assert!(serde_json::from_str::<Answer>(text).is_err(), "{text}");
        }
    }
}
