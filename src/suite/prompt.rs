//! From a document to the texts of its requests: description, examples, question, choices.
//!
//! Source: lm-eval 0.4.13, `api/task.py` (`fewshot_context`, `build_qa_turn`, `construct_requests`),
//! `api/samplers.py`, `api/utils.py` (`maybe_delimit`).

use serde_json::Value;

use super::config::Sampler;
use super::error::SuiteError;
use super::metric::{MetricKind, OutputType};
use super::python_random::PythonRandom;
use super::task::{Doc, Task};
use crate::base::python::is_space;
use crate::model::chat_template::{ChatMessage, ChatTemplate, ChatTemplateError};
use crate::record::{Classified, FailureClass};

/// lm-eval's default seed of few-shot sampling.
pub const DEFAULT_FEWSHOT_SEED: u64 = 1234;

/// How prompts are made.
#[derive(Clone, Copy)]
pub struct PromptOptions<'a> {
    /// Number of examples, over the task's own.
    pub num_fewshot: Option<usize>,
    /// Seed of the sampling of examples.
    pub fewshot_seed: u64,
    /// Chat template to put prompts into, examples as turns of their own.
    pub chat_template: Option<&'a ChatTemplate>,
    /// System instruction before the task's description.
    pub system_instruction: Option<&'a str>,
}

impl Default for PromptOptions<'_> {
    fn default() -> Self {
        Self {
            num_fewshot: None,
            fewshot_seed: DEFAULT_FEWSHOT_SEED,
            chat_template: None,
            system_instruction: None,
        }
    }
}

/// Texts of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestText {
    /// Given.
    pub context: String,
    /// Scored; the whole text for rolling requests.
    pub continuation: String,
}

/// A document whose prompt cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// A template of the task fails, or its data does.
    #[error(transparent)]
    Suite(#[from] SuiteError),
    /// The chat template fails on the document.
    #[error("task {task}, document {doc_id}: chat template")]
    ChatTemplate {
        /// Task.
        task: String,
        /// Document.
        doc_id: usize,
        /// Why.
        source: ChatTemplateError,
    },
    /// There are not as many examples as asked for.
    #[error("task {task}: {wanted} examples asked for, but the pool holds {available}")]
    TooFewExamples {
        /// Task.
        task: String,
        /// Examples to draw, including one spare where the evaluated document may be among them.
        wanted: usize,
        /// Rows of the pool.
        available: usize,
    },
    /// An example's question or answer is no text.
    #[error("task {task}: an example's {key} gives {found}, expected a text")]
    ExampleNotText {
        /// Task.
        task: String,
        /// `doc_to_text` or `doc_to_target`.
        key: &'static str,
        /// What it gives.
        found: String,
    },
}

impl Classified for PromptError {
    fn failure_class(&self) -> FailureClass {
        FailureClass::UserConfigError
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Suite(error) => error.hint(),
            Self::TooFewExamples { .. } => {
                Some("lower --num-fewshot or provide the few-shot split".to_owned())
            }
            _ => None,
        }
    }
}

/// Makes the prompts of a task's documents, which must be asked for in the order of the split: the random sampler
/// draws anew for each document, so a document's examples depend on how many came before it.
pub struct Prompts<'a> {
    task: &'a Task,
    options: PromptOptions<'a>,
    num_fewshot: usize,
    random: PythonRandom,
}

/// A piece of a prompt and what follows it in plain text.
struct Message {
    role: &'static str,
    content: String,
    delimiter: String,
}

impl<'a> Prompts<'a> {
    /// Prompts of `task`.
    pub fn new(task: &'a Task, options: PromptOptions<'a>) -> Self {
        let num_fewshot = task.num_fewshot(options.num_fewshot);
        Self { task, num_fewshot, random: PythonRandom::new(options.fewshot_seed), options }
    }

    /// Examples before each question.
    pub fn num_fewshot(&self) -> usize {
        self.num_fewshot
    }

    /// The requests of the next document.
    pub fn requests(&mut self, doc: &Doc) -> Result<Vec<RequestText>, PromptError> {
        let target = || crate::base::python::str(&doc.target);
        match self.task.config.output_type {
            OutputType::LoglikelihoodRolling => {
                Ok(vec![RequestText { context: String::new(), continuation: target() }])
            }
            OutputType::Loglikelihood => {
                let context = self.context(doc, text_of(&doc.text))?;
                Ok(vec![RequestText { context, continuation: target() }])
            }
            OutputType::MultipleChoice => self.choice_requests(doc),
        }
    }

    fn choice_requests(&mut self, doc: &Doc) -> Result<Vec<RequestText>, PromptError> {
        let delimiter = self.target_delimiter();
        let continuation = |text: &str| format!("{delimiter}{text}");
        let mut requests = Vec::new();
        if self.task.multiple_input() {
            let target = continuation(&crate::base::python::str(&doc.target));
            for context in self.contexts(doc, &doc.choices)? {
                requests.push(RequestText { context, continuation: target.clone() });
            }
        } else {
            let context = self.context(doc, text_of(&doc.text))?;
            requests.extend(
                doc.choices.iter().map(|choice| RequestText {
                    context: context.clone(),
                    continuation: continuation(choice),
                }),
            );
        }
        if self.task.config.metrics.contains(&MetricKind::AccMutualInfo) {
            requests.extend(
                doc.choices
                    .iter()
                    .map(|choice| RequestText { context: String::new(), continuation: continuation(choice) }),
            );
        }
        Ok(requests)
    }

    /// With a chat template there is no delimiter, unless an opened answer ends without white space.
    fn target_delimiter(&self) -> String {
        let config = &self.task.config;
        let open = config.gen_prefix.as_deref().is_some_and(|p| !p.is_empty() && !p.ends_with(is_space));
        if self.options.chat_template.is_some() && !open {
            String::new()
        } else {
            config.target_delimiter.clone()
        }
    }

    fn context(&mut self, doc: &Doc, question: String) -> Result<String, PromptError> {
        Ok(self.contexts(doc, &[question])?.remove(0))
    }

    /// One context for each question, all after the same examples.
    fn contexts(&mut self, doc: &Doc, questions: &[String]) -> Result<Vec<String>, PromptError> {
        let before = self.messages_before(doc)?;
        let prefix = self.task.gen_prefix(doc)?.filter(|p| !p.is_empty());
        let delimiter = if self.task.multiple_input() { "" } else { &self.task.config.target_delimiter };
        let context = |question: &String| {
            let turn = question_turn(question, prefix.as_deref(), delimiter);
            let messages: Vec<&Message> = before.iter().chain(&turn).collect();
            self.render(doc, &messages, prefix.is_none())
        };
        questions.iter().map(context).collect()
    }

    /// System text and examples.
    fn messages_before(&mut self, doc: &Doc) -> Result<Vec<Message>, PromptError> {
        let mut messages = Vec::new();
        let description = self.task.description(doc)?;
        let instruction = self.options.system_instruction.unwrap_or_default();
        let system = maybe_delimit(instruction, &description, &self.task.config.fewshot_delimiter);
        if !system.is_empty() {
            messages.push(Message { role: "system", content: system, delimiter: String::new() });
        }
        if self.num_fewshot > 0 {
            for example in self.examples(doc)? {
                messages.extend(self.example_turn(example)?);
            }
        }
        Ok(messages)
    }

    fn examples(&mut self, doc: &Doc) -> Result<Vec<&'a Doc>, PromptError> {
        let task = self.task;
        let (pool, n) = (task.fewshot_pool()?, self.num_fewshot);
        let evaluated = |example: &Doc| example.fields == doc.fields;
        // The evaluated document is kept out where it may be in the pool; also where neither split is stated.
        let exclude = task.fewshot_split() == task.test_split();
        let wanted = n + usize::from(exclude && task.config.fewshot.sampler == Sampler::Random);
        let too_few = |available: usize, wanted: usize| PromptError::TooFewExamples {
            task: task.config.task.clone(),
            wanted,
            available,
        };
        if pool.len() < wanted {
            return Err(too_few(pool.len(), wanted));
        }
        let mut examples: Vec<&Doc> = match task.config.fewshot.sampler {
            Sampler::FirstN => pool.iter().filter(|d| !(exclude && evaluated(d))).take(n).collect(),
            Sampler::Random => {
                let drawn = self.random.sample_indices(pool.len(), wanted);
                drawn.into_iter().map(|i| &pool[i]).filter(|d| !(exclude && evaluated(d))).take(n).collect()
            }
        };
        if examples.len() < n && task.config.fewshot.sampler == Sampler::Random {
            let others: Vec<&Doc> = pool.iter().filter(|d| !evaluated(d)).collect();
            if others.len() >= n {
                examples =
                    self.random.sample_indices(others.len(), n).into_iter().map(|i| others[i]).collect();
            }
        }
        if examples.len() < n { Err(too_few(examples.len(), n)) } else { Ok(examples) }
    }

    fn example_turn(&self, example: &Doc) -> Result<Vec<Message>, PromptError> {
        let not_text = |key, found: &Value| PromptError::ExampleNotText {
            task: self.task.config.task.clone(),
            key,
            found: found.to_string(),
        };
        let fewshot = &self.task.config.fewshot;
        let choice = |value: &Value| {
            let index = value.as_u64().and_then(|i| usize::try_from(i).ok());
            index.and_then(|i| example.choices.get(i)).cloned()
        };
        // Where each choice is a context, the question names one by its index and the answer is a text.
        let question = match &example.text {
            Value::String(text) => text.clone(),
            other if self.task.multiple_input() => {
                choice(other).ok_or_else(|| not_text("doc_to_text", other))?
            }
            other => return Err(not_text("doc_to_text", other)),
        };
        let first = match &example.target {
            Value::Array(list) => list.first().unwrap_or(&Value::Null),
            one => one,
        };
        let answer = match first {
            Value::String(text) => text.clone(),
            other => choice(other).ok_or_else(|| not_text("doc_to_target", other))?,
        };
        let prefix = self.task.fewshot_gen_prefix(example)?.filter(|p| !p.is_empty());
        if answer.is_empty() {
            return Ok(question_turn(&question, prefix.as_deref(), &fewshot.target_delimiter));
        }
        let needed = prefix.as_deref().is_none_or(|p| requires_delimiter(&question, p));
        let delimiter = if needed { fewshot.target_delimiter.clone() } else { String::new() };
        let content = maybe_delimit(prefix.as_deref().unwrap_or_default(), &answer, " ");
        Ok(vec![
            Message { role: "user", content: question, delimiter },
            Message { role: "assistant", content, delimiter: fewshot.fewshot_delimiter.clone() },
        ])
    }

    fn render(&self, doc: &Doc, messages: &[&Message], open_answer: bool) -> Result<String, PromptError> {
        let Some(template) = self.options.chat_template else {
            return Ok(messages.iter().flat_map(|m| [m.content.as_str(), m.delimiter.as_str()]).collect());
        };
        let chat: Vec<ChatMessage> =
            messages.iter().map(|m| ChatMessage::new(m.role, m.content.clone())).collect();
        // lm-eval tries again without the system text, which some templates refuse.
        let rendered = template.render(&chat, open_answer).or_else(|first| {
            let without: Vec<_> = chat.iter().filter(|m| m.role != "system").cloned().collect();
            if without.len() == chat.len() { Err(first) } else { template.render(&without, open_answer) }
        });
        let text = rendered.map_err(|source| PromptError::ChatTemplate {
            task: self.task.config.task.clone(),
            doc_id: doc.id,
            source,
        })?;
        Ok(if open_answer { text } else { continue_final_message(&text, &chat) })
    }
}

/// The question, and the start of its answer if there is one.
fn question_turn(question: &str, prefix: Option<&str>, target_delimiter: &str) -> Vec<Message> {
    let needed = prefix.is_some_and(|p| requires_delimiter(question, p));
    let delimiter = if needed { target_delimiter } else { "" };
    let mut turn =
        vec![Message { role: "user", content: question.to_owned(), delimiter: delimiter.to_owned() }];
    if let Some(prefix) = prefix {
        turn.push(Message { role: "assistant", content: prefix.to_owned(), delimiter: String::new() });
    }
    turn
}

fn text_of(value: &Value) -> String {
    crate::base::python::str(value)
}

/// Whether neither text has white space where they join.
fn requires_delimiter(before: &str, after: &str) -> bool {
    !before.is_empty() && !before.ends_with(is_space) && !after.starts_with(is_space)
}

/// Joins two texts, with the delimiter only where neither has white space at the join.
fn maybe_delimit(before: &str, after: &str, delimiter: &str) -> String {
    let needed = !after.is_empty() && requires_delimiter(before, after);
    format!("{before}{}{after}", if needed { delimiter } else { "" })
}

/// transformers' `continue_final_message`: everything after the last message's text is cut off.
fn continue_final_message(rendered: &str, chat: &[ChatMessage]) -> String {
    let last = chat.last().map_or("", |m| m.content.as_str());
    let Some(start) = rendered.rfind(last.trim_matches(is_space)) else { return rendered.to_owned() };
    let whole = last.trim_start_matches(is_space);
    let end = if rendered[start..].starts_with(whole) { whole } else { last.trim_matches(is_space) };
    rendered[..start + end.len()].to_owned()
}
