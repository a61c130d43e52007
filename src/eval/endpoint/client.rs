//! One endpoint: which model it serves, and calls to it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::answer::{Answer, Choice, Distrust};
use super::http::{CallError, Http};
use super::sglang::{self, Generated};
use super::{EndpointError, EndpointOptions};
use crate::base::digest::Digest;
use crate::record::score::{EngineIdentity, ScoreRequest, ScoreResult, UNKNOWN};

/// Small questions (health, models) are answered at once or not at all.
const SMALL_TIMEOUT: Duration = Duration::from_secs(10);

/// What `/v1/models` and `/version` say about the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServedModel {
    pub id: String,
    /// Where the weights come from, as vLLM names it.
    pub root: Option<String>,
    pub max_model_len: Option<usize>,
    pub engine: String,
    pub device: Option<String>,
    pub kernel_path: Option<String>,
    pub checkpoint_digest: Option<Digest>,
    pub tokenizer_digest: Option<Digest>,
}

impl ServedModel {
    /// The identity as far as the endpoint tells it: declared, never proven.
    pub fn identity(&self) -> EngineIdentity {
        EngineIdentity {
            engine: self.engine.clone(),
            device: self.device.clone().unwrap_or_else(|| UNKNOWN.to_owned()),
            kernel_path: self.kernel_path.clone().unwrap_or_else(|| UNKNOWN.to_owned()),
            checkpoint_digest: self.checkpoint_digest.clone(),
            identity_proven: false,
            tokenizer_digest: self.tokenizer_digest.clone(),
        }
    }
}

/// Calls to one endpoint.
#[derive(Debug)]
pub struct EndpointClient {
    http: Http,
    model: Option<String>,
    device: Option<String>,
    /// Whether the server has SGLang's own interface; found out with the model it serves.
    sglang: AtomicBool,
    /// Whether it is day0's server, which scores a prompt from a given position on.
    day0: AtomicBool,
    /// Whether the server accepts fields that OpenAI does not know (vLLM's `return_token_ids`, `ignore_eos`).
    extras: AtomicBool,
}

impl EndpointClient {
    /// A client; nothing is sent yet.
    pub fn new(options: &EndpointOptions) -> Result<Self, EndpointError> {
        let http = Http::new(&options.url, options.api_key.clone(), options.retry.clone(), options.timeout)?
            .watching(options.gone.clone());
        Ok(Self {
            http,
            model: options.model.clone(),
            device: options.device.clone(),
            sglang: AtomicBool::new(false),
            day0: AtomicBool::new(false),
            extras: AtomicBool::new(true),
        })
    }

    /// The server's address without `/v1`.
    pub fn root(&self) -> &str {
        self.http.root()
    }

    /// Whether the server's process has ended.
    pub(crate) fn is_gone(&self) -> bool {
        self.http.is_gone()
    }

    /// `/health`; servers without it (404, 405) are healthy when they list models. Returns what was seen.
    pub(crate) fn health(&self) -> Result<&'static str, CallError> {
        match self.http.get("/health", SMALL_TIMEOUT) {
            Ok(_) => Ok("/health"),
            Err(e) if matches!(e.status, Some(404 | 405)) => {
                self.http.get("/v1/models", SMALL_TIMEOUT).map(|_| "/v1/models (there is no /health)")
            }
            Err(e) => Err(e),
        }
    }

    /// The model this client asks for, as the endpoint describes it.
    pub(crate) fn served_model(&self) -> Result<ServedModel, EndpointError> {
        let url = self.root().to_owned();
        let unreachable =
            |message: String, status| EndpointError::Unreachable { url: url.clone(), status, message };
        let list =
            self.http.get_json("/v1/models", SMALL_TIMEOUT).map_err(|e| unreachable(e.message, e.status))?;
        let models: &[Value] = list["data"].as_array().map_or(&[], Vec::as_slice);
        let id_of = |m: &Value| m["id"].as_str().map(str::to_owned);
        let model = match &self.model {
            Some(name) => models.iter().find(|m| m["id"] == name.as_str()).ok_or_else(|| {
                let served = models.iter().filter_map(id_of).collect();
                EndpointError::NoSuchModel { url: url.clone(), model: name.clone(), served }
            })?,
            None => models
                .first()
                .ok_or_else(|| unreachable("/v1/models lists no model".to_owned(), Some(200)))?,
        };
        // SGLang owns its models by name; a gateway before it may not let its own interface through.
        let native = model["owned_by"] == "sglang" && self.http.get("/get_model_info", SMALL_TIMEOUT).is_ok();
        self.sglang.store(native, Ordering::Relaxed);
        self.day0.store(model["owned_by"] == "day0", Ordering::Relaxed);
        let text = |field: &str| model[field].as_str().map(str::to_owned);
        let digest = |field: &str| serde_json::from_value(model[field].clone()).ok();
        Ok(ServedModel {
            id: id_of(model)
                .ok_or_else(|| unreachable("/v1/models: a model without id".to_owned(), Some(200)))?,
            root: text("root"),
            max_model_len: model["max_model_len"].as_u64().map(|n| n as usize),
            engine: match text("engine") {
                Some(engine) => engine,
                None => self.engine_version(model).map_err(|e| unreachable(e.message, e.status))?,
            },
            device: text("device").or_else(|| self.device.clone()),
            kernel_path: text("kernel_path"),
            checkpoint_digest: digest("checkpoint_digest"),
            tokenizer_digest: digest("tokenizer_digest"),
        })
    }

    /// `vllm 0.33.0`: who owns the model, and `/version` where there is one. A server that fails to answer is asked
    /// again later: an engine without its version would look like another one.
    fn engine_version(&self, model: &Value) -> Result<String, CallError> {
        let owner = model["owned_by"].as_str().unwrap_or("unknown");
        let version = match self.http.get_json("/version", SMALL_TIMEOUT) {
            Ok(version) => version,
            Err(e) if e.retryable => return Err(e),
            Err(_) => Value::Null,
        };
        Ok(match version["version"].as_str() {
            Some(version) => format!("{owner} {version}"),
            None => owner.to_owned(),
        })
    }

    /// Scores of `requests`, in their order. An answer that cannot be believed fails its request alone.
    pub(crate) fn score(
        &self,
        model: &str,
        requests: &[ScoreRequest],
    ) -> Result<Vec<Result<ScoreResult, Distrust>>, CallError> {
        let prompts: Vec<&[u32]> = requests.iter().map(|r| r.tokens.as_slice()).collect();
        if self.sglang.load(Ordering::Relaxed) {
            let starts: Vec<usize> = requests.iter().map(|r| r.context_len.saturating_sub(1)).collect();
            let answers = self.sglang_generate(&prompts, &starts, 1)?;
            return Ok(answers.iter().zip(requests).map(|(a, r)| a.score(r)).collect());
        }
        // day0's server computes just what is asked: nothing after a prompt, and nothing of its context.
        let is_day0 = self.day0.load(Ordering::Relaxed);
        let starts = is_day0.then(|| requests.iter().map(|r| r.context_len).collect());
        let generated = usize::from(!is_day0);
        let choices = self.echo_from(model, &prompts, starts, generated)?;
        Ok(choices.iter().zip(requests).map(|(choice, request)| choice.score(request, generated)).collect())
    }

    /// SGLang's answers, one for each prompt.
    fn sglang_generate(
        &self,
        prompts: &[&[u32]],
        starts: &[usize],
        max_new_tokens: usize,
    ) -> Result<Vec<Generated>, CallError> {
        let bytes = self.http.post("/generate", &sglang::body(prompts, starts, max_new_tokens))?;
        let answers: Vec<Generated> = serde_json::from_slice(&bytes)
            .map_err(|e| CallError::malformed(format!("unexpected answer of /generate: {e}")))?;
        if answers.len() == prompts.len() {
            return Ok(answers);
        }
        let (found, expected) = (answers.len(), prompts.len());
        Err(CallError::malformed(format!("{found} answers of /generate for {expected} prompts")))
    }

    /// Echoed log-probs of `prompts` and one generated token each, in the order of the prompts.
    pub(crate) fn echo(&self, model: &str, prompts: &[&[u32]]) -> Result<Vec<Choice>, CallError> {
        if self.sglang.load(Ordering::Relaxed) {
            let answers = self.sglang_generate(prompts, &vec![0; prompts.len()], 1)?;
            return Ok(answers.into_iter().enumerate().map(|(i, a)| a.into_choice(i, true)).collect());
        }
        self.echo_from(model, prompts, None, 1)
    }

    /// The same of `/v1/completions`, with so many tokens generated; with `starts`, only from these positions on.
    fn echo_from(
        &self,
        model: &str,
        prompts: &[&[u32]],
        starts: Option<Vec<usize>>,
        max_tokens: usize,
    ) -> Result<Vec<Choice>, CallError> {
        // The fields and values of lm-eval's `local-completions`, seed included.
        let body = json!({"model": model, "prompt": prompts, "max_tokens": max_tokens, "temperature": 0,
                          "logprobs": 1, "echo": true, "seed": 1234});
        let mut extras = vec![("return_token_ids", json!(true))];
        extras.extend(starts.map(|starts| ("logprob_start_len", json!(starts))));
        self.completions(&body, &extras, prompts.len())
    }

    /// `max_tokens` greedy tokens after `prompt`.
    pub(crate) fn generate(
        &self,
        model: &str,
        prompt: &[u32],
        max_tokens: usize,
    ) -> Result<Choice, CallError> {
        if self.sglang.load(Ordering::Relaxed) {
            // From the last token on: log-probs of the prompt are not wanted.
            let start = prompt.len().saturating_sub(1);
            let answer = self.sglang_generate(&[prompt], &[start], max_tokens)?.pop();
            let answer = answer.ok_or_else(|| CallError::malformed("no answer of /generate"))?;
            return Ok(answer.into_choice(0, false));
        }
        let body = json!({"model": model, "prompt": [prompt], "max_tokens": max_tokens, "temperature": 0,
                          "logprobs": 1, "seed": 1234});
        let extras = [("return_token_ids", json!(true)), ("ignore_eos", json!(true))];
        let choices = self.completions(&body, &extras, 1)?;
        choices.into_iter().next().ok_or_else(|| CallError::malformed("no choice in the answer"))
    }

    /// One streamed completion; `each` gets the chunks.
    pub(crate) fn stream(
        &self,
        body: &Value,
        extras: &[(&str, Value)],
        each: &mut dyn FnMut(&str),
    ) -> Result<(), CallError> {
        self.with_extras(body, extras, &mut |body| self.http.post_stream("/v1/completions", body, each))
    }

    /// Sends with `extras`; a server that refuses them is asked without from then on.
    fn with_extras<T>(
        &self,
        plain: &Value,
        extras: &[(&str, Value)],
        send: &mut dyn FnMut(&Value) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        if !self.extras.load(Ordering::Relaxed) {
            return send(plain);
        }
        let mut body = plain.clone();
        for (name, value) in extras {
            body[*name] = value.clone();
        }
        match send(&body) {
            Err(refused) if matches!(refused.status, Some(400 | 422)) => {
                let answer = send(plain)?;
                self.extras.store(false, Ordering::Relaxed);
                Ok(answer)
            }
            other => other,
        }
    }

    /// The choices of `n` prompts.
    fn completions(
        &self,
        body: &Value,
        extras: &[(&str, Value)],
        n: usize,
    ) -> Result<Vec<Choice>, CallError> {
        let bytes = self.with_extras(body, extras, &mut |body| self.http.post("/v1/completions", body))?;
        let answer: Answer = serde_json::from_slice(&bytes)
            .map_err(|e| CallError::malformed(format!("unexpected answer of /v1/completions: {e}")))?;
        answer.in_order(n).map_err(|e| CallError::malformed(e.to_string()))
    }
}
