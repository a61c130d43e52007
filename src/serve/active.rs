//! A request while the engine works on it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::choice_text::ChoiceText;
use super::job::{Event, Finish, Job};
use super::metrics::Metrics;
use super::request::Completion;
use super::text::TextCodec;
use crate::engine::{GenerateRequest, Generated, PromptQuery, TokenLogprobs};

/// Its state.
pub(super) struct Active {
    pub job: Arc<Job>,
    /// Prompts to be scored, those that begin alike one after the other.
    unscored: VecDeque<usize>,
    /// Prompts to be continued by the generation.
    to_generate: VecDeque<usize>,
    /// Choices being generated, by their number over all prompts.
    choices: HashMap<usize, Choice>,
    /// Choices that are not finished.
    open: Arc<AtomicUsize>,
    has_begun: bool,
}

struct Choice {
    text: ChoiceText,
    produced: usize,
    last_token: Instant,
}

/// A prompt handed to the engine for scoring.
pub(super) struct ScoreItem {
    job: Arc<Job>,
    prompt: usize,
    open: Arc<AtomicUsize>,
}

/// What a token ended.
pub(super) struct Ended {
    /// The choice, by a stop string, of which the engine knows nothing.
    pub by_text: bool,
    /// The last choice of its prompt.
    pub prompt: bool,
}

impl Active {
    pub fn new(job: Job) -> Self {
        let request = Arc::clone(&job.request);
        let scored = request.prompt_top_n().is_some();
        let prompts = || (0..request.prompts.len()).collect::<VecDeque<_>>();
        let mut unscored = if scored { prompts() } else { VecDeque::new() };
        unscored.make_contiguous().sort_by_key(|prompt| &request.prompts[*prompt].ids);
        let active = Self {
            unscored,
            to_generate: if generates(&request) { prompts() } else { VecDeque::new() },
            choices: HashMap::new(),
            open: Arc::new(AtomicUsize::new(request.choices())),
            has_begun: false,
            job: Arc::new(job),
        };
        if !scored && request.max_tokens == 0 {
            // An echo without log-probs.
            for prompt in 0..request.prompts.len() {
                finish_empty(&active.job, prompt, &active.open);
            }
        }
        active
    }

    /// Whether the client is gone or the time is over.
    pub fn is_unwanted(&self, now: Instant) -> bool {
        self.job.events.is_closed() || now >= self.job.deadline
    }

    /// Whether every choice is finished.
    pub fn is_done(&self) -> bool {
        self.open.load(Ordering::Acquire) == 0
    }

    /// Whether the engine has been given any of it.
    pub fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// The prompt that is scored next.
    pub fn next_unscored(&self) -> Option<&[u32]> {
        self.unscored.front().map(|prompt| self.job.request.prompts[*prompt].ids.as_slice())
    }

    pub fn take_unscored(&mut self, metrics: &Metrics) -> Option<ScoreItem> {
        let prompt = self.unscored.pop_front()?;
        self.begin(metrics);
        Some(ScoreItem { job: Arc::clone(&self.job), prompt, open: Arc::clone(&self.open) })
    }

    /// The wait for the engine is over.
    fn begin(&mut self, metrics: &Metrics) {
        if !std::mem::replace(&mut self.has_begun, true) {
            metrics.queue_seconds.time(self.job.received.elapsed());
        }
    }

    /// A prompt to continue, once all are scored.
    pub fn next_to_generate(&mut self, metrics: &Metrics) -> Option<(usize, GenerateRequest)> {
        if !self.unscored.is_empty() {
            return None;
        }
        let prompt = self.to_generate.pop_front()?;
        self.begin(metrics);
        let (request, now) = (&self.job.request, Instant::now());
        let params = &request.params;
        let ids = &request.prompts[prompt].ids;
        for choice in prompt * params.n..(prompt + 1) * params.n {
            let text = ChoiceText::new(ids, &params.stop, params.include_stop);
            self.choices.insert(choice, Choice { text, produced: 0, last_token: now });
        }
        let stop_ids = params.eos_ids.iter().chain(&params.stop_token_ids).copied().collect();
        let request = GenerateRequest {
            prompt: ids.clone(),
            n: params.n,
            max_tokens: request.max_tokens,
            min_tokens: params.min_tokens,
            stop_ids,
            sampling: params.sampling.clone(),
            top_n: request.logprobs.unwrap_or(0),
        };
        Some((prompt, request))
    }

    /// Sends a generated token, and the end of its choice if it is that.
    pub fn deliver(
        &mut self,
        prompt: usize,
        generated: Generated,
        codec: &dyn TextCodec,
        metrics: &Metrics,
    ) -> Ended {
        let params = &self.job.request.params;
        let choices = prompt * params.n..(prompt + 1) * params.n;
        let number = choices.start + generated.choice;
        let Some(choice) = self.choices.get_mut(&number) else {
            return Ended { by_text: false, prompt: false };
        };
        if choice.produced == 0 {
            metrics.first_token_seconds.time(self.job.received.elapsed());
        } else {
            metrics.inter_token_seconds.time(choice.last_token.elapsed());
        }
        choice.produced += 1;
        choice.last_token = Instant::now();
        let (text, finish) = choice.advance(&self.job.request, &generated, codec);
        let by_text = matches!(finish, Some(Finish::StopString(_))) && !generated.is_last;
        // A client that is gone is noticed before the next turn.
        let _ = self.job.events.send(Event::Token { choice: number, entry: generated.token, text });
        if let Some(finish) = finish {
            let text = match finish {
                Finish::StopString(_) => String::new(),
                _ => choice.text.finish(codec),
            };
            finish_choice(&self.job, number, text, finish, &self.open, metrics);
            self.choices.remove(&number);
        }
        Ended { by_text, prompt: choices.into_iter().all(|c| !self.choices.contains_key(&c)) }
    }
}

impl Choice {
    /// Text that is certain after the token, and whether it ends the choice.
    fn advance(
        &mut self,
        request: &Completion,
        generated: &Generated,
        codec: &dyn TextCodec,
    ) -> (String, Option<Finish>) {
        let (params, token) = (&request.params, generated.token.token);
        if let Some(finish) = stop_token(request, token, self.produced) {
            return (String::new(), Some(finish));
        }
        let may_stop = self.produced > params.min_tokens;
        let (text, stopped) = self.text.push(token, may_stop, codec);
        let length = generated.is_last.then_some(Finish::Length);
        (text, stopped.map(Finish::StopString).or(length))
    }
}

impl ScoreItem {
    /// Tokens of the prompt.
    pub fn ids(&self) -> &[u32] {
        &self.job.request.prompts[self.prompt].ids
    }

    fn greedy_next(&self) -> bool {
        !generates(&self.job.request) && self.job.request.max_tokens == 1
    }

    /// What the engine is asked. `echo` with one greedy token, the request of every evaluation, takes one pass instead
    /// of two: a dummy token is appended, and the ranking at its place is the ranking of the next token.
    pub fn query(&self) -> PromptQuery {
        let request = &self.job.request;
        let prompt = &request.prompts[self.prompt];
        let mut tokens = prompt.ids.clone();
        let mut top_n = request.prompt_top_n().unwrap_or(0);
        let mut first = prompt.first_scored;
        if self.greedy_next() {
            first = first.min(tokens.len());
            tokens.push(0);
            top_n = top_n.max(request.logprobs.unwrap_or(0)).max(1);
        }
        PromptQuery { tokens, first, top_n, with_ranks: request.params.prompt_logprobs.is_some() }
    }

    /// Sends the prompt's entries; finishes its choice if nothing is generated by steps.
    pub fn answer(&self, mut entries: Vec<TokenLogprobs>, codec: &dyn TextCodec, metrics: &Metrics) {
        let request = &self.job.request;
        let next = if self.greedy_next() { entries.pop() } else { None };
        let top_n = request.prompt_top_n().unwrap_or(0);
        for entry in &mut entries {
            entry.top.truncate(top_n);
        }
        // A client that is gone is noticed before the next turn.
        let _ = self.job.events.send(Event::Prompt { prompt: self.prompt, entries });
        if generates(request) {
            return;
        }
        metrics.first_token_seconds.time(self.job.received.elapsed());
        let Some(mut entry) = next else { return finish_empty(&self.job, self.prompt, &self.open) };
        // Without a number among the logits there is no ranking; the dummy's NaN is shown then.
        if let Some((token, logprob)) = entry.top.first() {
            (entry.token, entry.logprob) = (*token, *logprob);
        }
        entry.top.truncate(request.logprobs.unwrap_or(0));
        metrics.generation_tokens.add(1);
        let mut text = ChoiceText::new(
            &request.prompts[self.prompt].ids,
            &request.params.stop,
            request.params.include_stop,
        );
        let (shown, finish) = match stop_token(request, entry.token, 1) {
            Some(finish) => (String::new(), finish),
            None => match text.push(entry.token, true, codec) {
                (shown, Some(stop)) => (shown, Finish::StopString(stop)),
                (shown, None) => (shown + &text.finish(codec), Finish::Length),
            },
        };
        let _ = self.job.events.send(Event::Token { choice: self.prompt, entry, text: shown });
        finish_choice(&self.job, self.prompt, String::new(), finish, &self.open, metrics);
    }
}

/// Whether tokens are generated step by step: not where none are wanted, nor where scoring gives the only one.
fn generates(request: &Completion) -> bool {
    let params = &request.params;
    let from_scores = request.prompt_top_n().is_some()
        && request.max_tokens == 1
        && params.n == 1
        && params.min_tokens == 0
        && params.sampling.is_greedy();
    request.max_tokens > 0 && !from_scores
}

/// How `token`, number `produced` of its choice, ends it.
fn stop_token(request: &Completion, token: u32, produced: usize) -> Option<Finish> {
    let params = &request.params;
    if produced <= params.min_tokens {
        // The engine generates no stop token this early.
        return None;
    }
    if params.stop_token_ids.contains(&token) {
        return Some(Finish::StopToken(token));
    }
    params.eos_ids.contains(&token).then_some(Finish::Eos)
}

/// Ends the choices of a prompt that is not continued.
fn finish_empty(job: &Job, prompt: usize, open: &AtomicUsize) {
    let n = job.request.params.n;
    for choice in prompt * n..(prompt + 1) * n {
        let _ = job.events.send(Event::Finished { choice, text: String::new(), finish: Finish::Length });
        open.fetch_sub(1, Ordering::AcqRel);
    }
}

fn finish_choice(
    job: &Job,
    choice: usize,
    text: String,
    finish: Finish,
    open: &AtomicUsize,
    metrics: &Metrics,
) {
    let _ = job.events.send(Event::Finished { choice, text, finish });
    if open.fetch_sub(1, Ordering::AcqRel) == 1 {
        metrics.request_seconds.time(job.received.elapsed());
    }
}
