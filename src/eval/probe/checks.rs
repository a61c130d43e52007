//! The single checks of a probe.

use std::path::Path;

use super::ProbeTarget;
use super::fixed::fingerprint_prompts;
use crate::eval::endpoint::answer::{Choice, check_entry_count, check_first_is_null, check_rest, is_logprob};
use crate::eval::endpoint::{CallError, EndpointClient, ServedModel, read_fingerprint};
use crate::record::score::{EngineIdentity, ScoreRequest};
use crate::record::serve::{Canary, FingerprintReading, SelfTest};
use crate::serve::TextCodec;

/// Generated tokens of the canary.
const CANARY_TOKENS: usize = 16;
/// Prefill and decode of one engine may round differently; bf16 logits between 16 and 32 lie 0.125 apart.
const DECODE_TOLERANCE_NATS: f64 = 0.25;
/// Ids tried for the canary's first token when the server does not name it.
const MAX_CANDIDATES: usize = 8;

/// What the endpoint says, completed by what day0 knows: an engine that day0 launched serves the checkpoint it was
/// given; one that names none is believed to serve what the user declared, and the record says so.
pub(super) fn identity(target: &ProbeTarget<'_>, model: &ServedModel) -> EngineIdentity {
    let said = model.identity();
    EngineIdentity {
        identity_proven: target.launched,
        checkpoint_digest: said.checkpoint_digest.or_else(|| target.expected_digest.cloned()),
        tokenizer_digest: said.tokenizer_digest.or_else(|| target.tokenizer_digest.cloned()),
        ..said
    }
}

/// Whether an engine says that it serves another directory than the one it was given (vLLM's `root`).
pub(super) fn contradiction(target: &ProbeTarget<'_>, model: &ServedModel) -> Option<String> {
    let given = std::path::absolute(target.directory?).ok()?;
    let said = Path::new(model.root.as_deref()?);
    (said.is_absolute() && said != given)
        .then(|| format!("it says that it serves {}, it was given {}", said.display(), given.display()))
}

/// The canary's record, and its first token for the self-test.
pub(super) struct CanaryRun {
    pub record: Canary,
    pub first: Option<FirstToken>,
}

/// The first generated token as the server describes it.
pub(super) struct FirstToken {
    id: Option<u32>,
    text: String,
    logprob: Option<f64>,
}

/// Generates greedily, twice.
pub(super) fn canary(
    client: &EndpointClient,
    model: &ServedModel,
    prompt: &[u32],
) -> Result<CanaryRun, CallError> {
    let first = client.generate(&model.id, prompt, CANARY_TOKENS)?;
    let second = client.generate(&model.id, prompt, CANARY_TOKENS)?;
    let logprobs = first.logprobs.as_ref();
    let values: &[Option<f64>] = logprobs.map_or(&[], |l| &l.token_logprobs);
    let names: &[String] = logprobs.map_or(&[], |l| &l.tokens);
    let ids = first.token_ids.as_deref().unwrap_or_default();
    let first_token = names.first().map(|text| FirstToken {
        id: ids.first().copied(),
        text: text.clone(),
        logprob: values.first().copied().flatten(),
    });
    let record = Canary {
        text: first.text.clone(),
        tokens: names.len().max(ids.len()),
        finite: !values.is_empty() && values.iter().all(|v| v.is_some_and(is_logprob)),
        repeatable: same_generation(&first, &second),
    };
    Ok(CanaryRun { record, first: first_token })
}

fn same_generation(a: &Choice, b: &Choice) -> bool {
    let names = |c: &Choice| c.logprobs.as_ref().map(|l| l.tokens.clone());
    a.text == b.text && a.token_ids == b.token_ids && names(a) == names(b)
}

/// Echoes the canary's prompt with its first greedy token: every check of the answer, and that the token is the best
/// one at its place with the log-prob it had when it was generated.
pub(super) fn self_test(
    client: &EndpointClient,
    model: &ServedModel,
    text: &dyn TextCodec,
    prompt: &[u32],
    first: Option<&FirstToken>,
) -> Result<SelfTest, CallError> {
    let mut test = None;
    for id in first_token_ids(first, text) {
        let mut tokens = prompt.to_vec();
        tokens.push(id);
        let request = ScoreRequest { context_len: prompt.len(), tokens };
        let answer = echo_one(client, model, &request)?;
        let found = judge(&answer, &request, check_greedy(&answer, &request, first));
        if found.pass() {
            return Ok(found);
        }
        test = Some(found);
    }
    if let Some(failed) = test {
        return Ok(failed);
    }
    // The rest of the answer still tells what is wrong with the server.
    let request = ScoreRequest { tokens: prompt.to_vec(), context_len: 1 };
    let unknown = "the server does not tell which token it generated".to_owned();
    Ok(judge(&echo_one(client, model, &request)?, &request, Err(unknown)))
}

/// The id the server named, else the ids whose text it is.
fn first_token_ids(first: Option<&FirstToken>, text: &dyn TextCodec) -> Vec<u32> {
    let Some(first) = first else { return Vec::new() };
    match first.id {
        Some(id) => vec![id],
        None => (0..text.vocab_size() as u32)
            .filter(|id| text.token_text(*id) == first.text)
            .take(MAX_CANDIDATES)
            .collect(),
    }
}

fn echo_one(
    client: &EndpointClient,
    model: &ServedModel,
    request: &ScoreRequest,
) -> Result<Choice, CallError> {
    let choices = client.echo(&model.id, &[&request.tokens])?;
    choices.into_iter().next().ok_or_else(|| CallError::malformed("no choice in the answer"))
}

fn judge(choice: &Choice, request: &ScoreRequest, greedy: Result<(), String>) -> SelfTest {
    let logprobs = choice.logprobs.clone().unwrap_or_default();
    let n = request.tokens.len();
    let mut problems = Vec::new();
    let mut ok = |check: Result<(), String>| check.map_err(|problem| problems.push(problem)).is_ok();
    let entry_count_ok = ok(check_entry_count(&logprobs, n, 1).map_err(|e| e.to_string()));
    let first_is_null = ok(check_first_is_null(&logprobs).map_err(|e| e.to_string()));
    let rest_finite = ok(check_rest(&logprobs, 1..n).map_err(|e| e.to_string()));
    let greedy_consistent = ok(greedy);
    SelfTest {
        entry_count_ok,
        first_is_null,
        rest_finite,
        greedy_consistent,
        refused_status: None,
        detail: problems.join("; "),
    }
}

/// The generated token is the best one where the echo repeats it, up to the rounding between prefill and decode.
fn check_greedy(choice: &Choice, request: &ScoreRequest, first: Option<&FirstToken>) -> Result<(), String> {
    let at = request.context_len;
    choice.score(request, 1).map_err(|e| e.to_string())?;
    let logprobs = choice.logprobs.as_ref().ok_or("no log-probs")?;
    let value = |v: Option<Option<f64>>| v.flatten().unwrap_or(f64::NEG_INFINITY);
    let echoed = value(logprobs.token_logprobs.get(at).copied());
    let best = logprobs.top_logprobs.as_ref().and_then(|t| t.get(at).copied().flatten());
    let best = value(best.map(|b| b.0));
    if best - echoed > DECODE_TOLERANCE_NATS {
        return Err(format!(
            "the greedy token has log-prob {echoed:.3} in the echo, where another has {best:.3}"
        ));
    }
    match first.and_then(|f| f.logprob) {
        Some(generated) if (generated - echoed).abs() > DECODE_TOLERANCE_NATS => Err(format!(
            "the greedy token has log-prob {generated:.3} when generated and {echoed:.3} in the echo"
        )),
        _ => Ok(()),
    }
}

/// Log-likelihoods of the fixed prompts, asked one by one so that nothing else shares their batch, and whether the
/// server repeated their token ids.
pub(super) fn fingerprint(
    target: &ProbeTarget<'_>,
    client: &EndpointClient,
    model: &ServedModel,
) -> Result<(FingerprintReading, Option<bool>), CallError> {
    read_fingerprint(client, &model.id, &fingerprint_prompts(target.text))
}
