//! From a task to items ready to be scored.

use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::encode::{EncodeError, Encoder};
use super::error::{EvalError, RequestProblem};
use super::prepared::{PreparedItem, PreparedRequest, PreparedTask};
use super::rolling;
use crate::base::digest::{Digest, DigestBuilder};
use crate::model::tokenizer::Tokenizer;
use crate::record::eval::ItemOrder;
use crate::suite::python_random::PythonRandom;
use crate::suite::{DEFAULT_FEWSHOT_SEED, OutputType, PromptOptions, Prompts, RequestText, Task};

/// How items are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvalOptions {
    /// At most this many items of each task.
    pub limit: Option<usize>,
    /// Which ones.
    pub order: ItemOrder,
    /// The longest input in tokens ([`super::Scorer::max_len`]); the smallest of all arms that are to be compared.
    pub max_len: usize,
    /// Number of examples, over the task's own.
    pub num_fewshot: Option<usize>,
    /// Seed of the sampling of examples.
    pub fewshot_seed: u64,
    /// Whether prompts are put into the checkpoint's chat template.
    pub apply_chat_template: bool,
    /// System instruction before a task's description.
    pub system_instruction: Option<String>,
}

impl EvalOptions {
    /// All items in the order of the data set, with the task's own examples and no chat template.
    pub fn new(max_len: usize) -> Self {
        Self {
            limit: None,
            order: ItemOrder::Dataset,
            max_len,
            num_fewshot: None,
            fewshot_seed: DEFAULT_FEWSHOT_SEED,
            apply_chat_template: false,
            system_instruction: None,
        }
    }
}

/// Makes a task's items. An item whose requests cannot be made is kept with the reason: it counts as failed.
pub fn prepare(
    task: &Arc<Task>,
    tokenizer: &Tokenizer,
    options: &EvalOptions,
) -> Result<PreparedTask, EvalError> {
    let order = visit_order(task.docs.len(), options);
    let (texts, num_fewshot) = request_texts(task, tokenizer, options, &order)?;
    let items = order
        .par_iter()
        .zip(texts)
        .map(|(doc_id, texts)| prepare_item(task, tokenizer, options.max_len, *doc_id, texts))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(PreparedTask {
        task: Arc::clone(task),
        full_split: task.docs.len(),
        limited_by: limited_by(options.order, items.len(), task.docs.len()),
        order: options.order,
        num_fewshot,
        digest: prepared_digest(task, tokenizer, options, num_fewshot),
        items,
    })
}

/// Why there are fewer items than documents; empty where there are as many.
fn limited_by(order: ItemOrder, items: usize, docs: usize) -> String {
    match order {
        _ if items >= docs => String::new(),
        ItemOrder::Dataset => format!("--limit {items}, first items"),
        ItemOrder::Permuted { .. } => format!("--limit {items}"),
    }
}

/// Documents to visit, in order.
fn visit_order(docs: usize, options: &EvalOptions) -> Vec<usize> {
    let mut order: Vec<usize> = match options.order {
        ItemOrder::Dataset => (0..docs).collect(),
        ItemOrder::Permuted { seed } => PythonRandom::new(seed).permutation(docs),
    };
    order.truncate(options.limit.unwrap_or(docs));
    order
}

/// Texts of the documents in `order`, and the number of examples. Prompts are made in the order of the split, because
/// the examples of a document depend on the documents before it.
fn request_texts(
    task: &Task,
    tokenizer: &Tokenizer,
    options: &EvalOptions,
    order: &[usize],
) -> Result<(Vec<Vec<RequestText>>, usize), EvalError> {
    let chat_template = match (options.apply_chat_template, tokenizer.chat_template()) {
        (false, _) => None,
        (true, Some(template)) => Some(template),
        (true, None) => return Err(EvalError::NoChatTemplate),
    };
    let mut prompts = Prompts::new(
        task,
        PromptOptions {
            num_fewshot: options.num_fewshot,
            fewshot_seed: options.fewshot_seed,
            chat_template,
            system_instruction: options.system_instruction.as_deref(),
        },
    );
    let num_fewshot = prompts.num_fewshot();
    let mut places = vec![None; task.docs.len()];
    for (place, doc_id) in order.iter().enumerate() {
        places[*doc_id] = Some(place);
    }
    let last = order.iter().copied().max().map_or(0, |last| last + 1);
    let mut texts = vec![Vec::new(); order.len()];
    for (doc, place) in task.docs[..last].iter().zip(&places) {
        match place {
            Some(place) => texts[*place] = prompts.requests(doc)?,
            None if num_fewshot > 0 => drop(prompts.requests(doc)?),
            None => {}
        }
    }
    Ok((texts, num_fewshot))
}

fn prepare_item(
    task: &Task,
    tokenizer: &Tokenizer,
    max_len: usize,
    doc_id: usize,
    texts: Vec<RequestText>,
) -> Result<PreparedItem, EvalError> {
    let mut requests = Vec::with_capacity(texts.len());
    let mut problem = None;
    let mut encoder = Encoder::new(tokenizer, max_len);
    for (index, RequestText { context, continuation }) in texts.into_iter().enumerate() {
        let encoded = match task.config.output_type {
            OutputType::LoglikelihoodRolling => {
                roll(tokenizer, &continuation, max_len).map(|windows| (windows, 0))
            }
            _ => encoder.encode(&context, &continuation).map(|(request, cut)| (vec![request], cut)),
        };
        let (windows, cut_tokens) = match encoded {
            Ok(encoded) => encoded,
            Err(EncodeError::Tokenizer(source)) => {
                let task = task.config.task.clone();
                return Err(EvalError::Tokenizer { task, doc_id, source });
            }
            Err(EncodeError::Problem(found)) => {
                problem.get_or_insert_with(|| format!("request {index}: {found}"));
                (Vec::new(), 0)
            }
        };
        requests.push(PreparedRequest { context, continuation, windows, cut_tokens });
    }
    if problem.is_some() {
        // A part of an item's requests is worth nothing.
        for request in &mut requests {
            request.windows.clear();
        }
    }
    Ok(PreparedItem {
        doc_id,
        prompt_digest: prompt_digest(&requests),
        token_digest: token_digest(&requests),
        requests,
        problem,
    })
}

fn roll(
    tokenizer: &Tokenizer,
    text: &str,
    max_len: usize,
) -> Result<Vec<crate::record::score::ScoreRequest>, EncodeError> {
    let prefix = tokenizer.prefix_token_id().ok_or(RequestProblem::NoPrefixToken)?;
    let windows = rolling::windows(&tokenizer.encode_prompt(text)?, prefix, max_len);
    if windows.is_empty() { Err(RequestProblem::EmptyContinuation.into()) } else { Ok(windows) }
}

fn prompt_digest(requests: &[PreparedRequest]) -> Digest {
    let mut digest = DigestBuilder::default();
    for request in requests {
        digest.field(request.context.as_bytes()).field(request.continuation.as_bytes());
    }
    digest.finish()
}

fn token_digest(requests: &[PreparedRequest]) -> Digest {
    let mut digest = DigestBuilder::default();
    for window in requests.iter().flat_map(|r| &r.windows) {
        let ids: Vec<u8> = window.tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
        digest.field(&(window.context_len as u64).to_le_bytes()).field(&ids);
    }
    digest.finish()
}

fn prepared_digest(task: &Task, tokenizer: &Tokenizer, options: &EvalOptions, num_fewshot: usize) -> Digest {
    let mut digest = DigestBuilder::default();
    digest.field(task.digest.as_str().as_bytes());
    digest.field(&(num_fewshot as u64).to_le_bytes());
    let seed = if num_fewshot > 0 { options.fewshot_seed } else { 0 };
    digest.field(&seed.to_le_bytes());
    digest.field(options.system_instruction.as_deref().unwrap_or_default().as_bytes());
    let template = tokenizer.chat_template().filter(|_| options.apply_chat_template);
    digest.field(template.map_or("", |t| t.source()).as_bytes());
    digest.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_says_which_items_it_leaves() {
        assert_eq!(limited_by(ItemOrder::Dataset, 9, 9), "");
        assert_eq!(limited_by(ItemOrder::Dataset, 5, 9), "--limit 5, first items");
        assert_eq!(limited_by(ItemOrder::Permuted { seed: 7 }, 5, 9), "--limit 5");
    }
}
