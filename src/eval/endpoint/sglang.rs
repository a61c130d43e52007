//! SGLang's own `/generate`: log-probs of prompts from a position on, so that a context shared with earlier requests
//! stays in the server's cache (`/v1/completions` with echo recomputes all of it).
//!
//! With `logprob_start_len` s, `input_token_logprobs` has one entry `[log-prob, token id, text]` for each prompt token
//! from s on, the first without log-prob (sglang `test/test_utils.py`, `run_logprob_check`). Entries name their token
//! ids, so an answer for other tokens is noticed.

use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{BestOf, Choice, Distrust, Logprobs, is_logprob};
use crate::record::score::{ScoreRequest, ScoreResult};

/// `[log-prob or null, token id, text or null]`.
type Entry = (Option<f64>, u32, Option<String>);

/// The answer for one prompt.
#[derive(Debug, Deserialize)]
pub(super) struct Generated {
    #[serde(default)]
    text: String,
    meta_info: MetaInfo,
}

#[derive(Debug, Deserialize)]
#[expect(clippy::struct_field_names, reason = "SGLang's names")]
struct MetaInfo {
    input_token_logprobs: Option<Vec<Entry>>,
    input_top_logprobs: Option<Vec<Option<Vec<Entry>>>>,
    #[serde(default)]
    output_token_logprobs: Vec<Entry>,
    output_top_logprobs: Option<Vec<Option<Vec<Entry>>>>,
}

/// The body of a request; `starts` are the positions from which log-probs are asked for.
pub(super) fn body(prompts: &[&[u32]], starts: &[usize], max_new_tokens: usize) -> Value {
    json!({
        "input_ids": prompts,
        "sampling_params": {"temperature": 0, "max_new_tokens": max_new_tokens, "ignore_eos": true},
        "return_logprob": true,
        "logprob_start_len": starts,
        "top_logprobs_num": 1,
        "return_text_in_logprobs": true,
    })
}

impl Generated {
    /// The score of a request, of which log-probs were asked for from the last context token on.
    pub fn score(&self, request: &ScoreRequest) -> Result<ScoreResult, Distrust> {
        let (tokens, start) = (&request.tokens, request.context_len - 1);
        let entries = self.meta_info.input_token_logprobs.as_ref().ok_or(Distrust::NoLogprobs)?;
        let expected = tokens.len() - start;
        if entries.len() != expected {
            return Err(Distrust::EntryCount {
                entries: entries.len() + 1,
                prompt_tokens: expected,
                generated: 1,
            });
        }
        if let Some(at) = entries.iter().zip(&tokens[start..]).position(|(entry, token)| entry.1 != *token) {
            return Err(Distrust::OtherTokens { position: start + at });
        }
        let top = self.meta_info.input_top_logprobs.as_ref().ok_or(Distrust::NoRanking)?;
        let mut result = ScoreResult { token_logprobs: Vec::new(), token_is_greedy: Vec::new() };
        for (at, (value, ..)) in entries.iter().enumerate().skip(1) {
            let logprob = value.filter(|v| is_logprob(*v)).ok_or_else(|| Distrust::Value {
                position: start + at,
                value: value.map_or_else(|| "null".to_owned(), |v| v.to_string()),
            })?;
            let best = best_of(top.get(at)).and_then(|b| b.0).ok_or(Distrust::NoRanking)?;
            result.token_logprobs.push(logprob as f32);
            result.token_is_greedy.push(logprob as f32 >= best as f32);
        }
        Ok(result)
    }

    /// The answer to a prompt whose log-probs were asked for from its first token on, as `/v1/completions` with echo
    /// would give it; without echo only what was generated.
    pub fn into_choice(self, index: usize, echo: bool) -> Choice {
        let meta = self.meta_info;
        let input = meta.input_token_logprobs.filter(|_| echo);
        let prompt_token_ids = input.as_ref().map(|entries| entries.iter().map(|e| e.1).collect());
        let best = |top: Option<Vec<Option<Vec<Entry>>>>| -> Vec<Option<BestOf>> {
            top.unwrap_or_default().iter().map(|entry| best_of(Some(entry))).collect()
        };
        let input_top = if echo { best(meta.input_top_logprobs) } else { Vec::new() };
        let token_ids = meta.output_token_logprobs.iter().map(|e| e.1).collect();
        let entries: Vec<Entry> =
            input.unwrap_or_default().into_iter().chain(meta.output_token_logprobs).collect();
        let logprobs = Logprobs {
            token_logprobs: entries.iter().map(|e| e.0).collect(),
            tokens: entries.into_iter().map(|e| e.2.unwrap_or_default()).collect(),
            top_logprobs: Some([input_top, best(meta.output_top_logprobs)].concat()),
        };
        Choice {
            index,
            text: self.text,
            logprobs: Some(logprobs),
            prompt_token_ids,
            token_ids: Some(token_ids),
        }
    }
}

fn best_of(entry: Option<&Option<Vec<Entry>>>) -> Option<BestOf> {
    let best = entry?.as_ref()?.iter().filter_map(|e| e.0).reduce(f64::max);
    Some(BestOf(best))
}
