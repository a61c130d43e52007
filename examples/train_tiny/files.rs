//! Writes the model directory and the suite.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, create_dir_all};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use candle_core::{DType, Tensor};
use serde::Serialize;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::model::{Config, MAX_POSITIONS};
use super::tasks::{PERPLEXITY, Suite, TASKS};
use super::tokenizer::{END_OF_TEXT, END_OF_TEXT_ID, IM_END, IM_END_ID, IM_START};

/// Name of the model, of its suite and of their directories.
pub const NAME: &str = "day0-tiny";

const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + \
    message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}\
    {{ '<|im_start|>assistant\n' }}{% endif %}";

/// Writes `text`, creating the directory.
pub fn write(path: &Path, text: &[u8]) -> Result<()> {
    if let Some(parent) = path.parent() {
        create_dir_all(parent)?;
    }
    let mut file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file.write_all(text)?)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    write(path, (serde_json::to_string_pretty(value)? + "\n").as_bytes())
}

/// Tokenizer, configuration and chat template.
pub fn write_tokenizer(dir: &Path, config: &Config, tokenizer: &Tokenizer) -> Result<()> {
    let json = tokenizer.to_string(true).map_err(|e| anyhow!(e))? + "\n";
    write(&dir.join("tokenizer.json"), json.as_bytes())?;
    write_json(&dir.join("config.json"), &config.to_json())?;
    let generation = json!({
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": [END_OF_TEXT_ID, IM_END_ID],
        "pad_token_id": END_OF_TEXT_ID,
        "do_sample": false,
    });
    write_json(&dir.join("generation_config.json"), &generation)?;
    let tokenizer_config = json!({
        "add_bos_token": false,
        "add_prefix_space": false,
        "additional_special_tokens": [IM_START, IM_END],
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": false,
        "model_max_length": MAX_POSITIONS,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
    });
    write_json(&dir.join("tokenizer_config.json"), &tokenizer_config)
}

/// The checkpoint in bf16.
pub fn write_weights(dir: &Path, weights: &BTreeMap<String, Tensor>) -> Result<()> {
    let tensors =
        weights.iter().map(|(name, w)| Ok((name, w.to_dtype(DType::BF16)?))).collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let path = dir.join("model.safetensors");
    create_dir_all(dir)?;
    safetensors::serialize_to_file(tensors, Some(metadata), &path)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Reads a checkpoint back as f32.
pub fn read_weights(dir: &Path) -> Result<BTreeMap<String, Tensor>> {
    let path = dir.join("model.safetensors");
    let tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu)
        .with_context(|| format!("cannot read {}", path.display()))?;
    tensors.into_iter().map(|(name, w)| Ok((name, w.to_dtype(DType::F32)?))).collect()
}

/// Task files, the group and the data.
pub fn write_suite(dir: &Path, suite: &Suite) -> Result<()> {
    for (task, items) in TASKS.iter().zip(&suite.tasks) {
        write(&dir.join(format!("{}.yaml", task.name)), choice_yaml(task.name, task.description).as_bytes())?;
        write_lines(dir, task.name, items)?;
    }
    write(&dir.join(format!("{PERPLEXITY}.yaml")), perplexity_yaml().as_bytes())?;
    write_lines(dir, PERPLEXITY, &suite.documents)?;
    let names = TASKS.iter().map(|t| t.name).chain([PERPLEXITY]).map(|name| format!("  - {name}\n"));
    let group = format!("group: {NAME}\ntask:\n{}metadata:\n  version: 1.0\n", names.collect::<String>());
    write(&dir.join(format!("{NAME}.yaml")), group.as_bytes())
}

fn write_lines<T: Serialize>(dir: &Path, stem: &str, lines: &[T]) -> Result<()> {
    let mut text = String::new();
    for line in lines {
        text += &serde_json::to_string(line)?;
        text.push('\n');
    }
    write(&dir.join("data").join(format!("{stem}.test.jsonl")), text.as_bytes())
}

fn choice_yaml(name: &str, description: &str) -> String {
    format!(
        "# {description}\n\
         task: {name}\n\
         dataset_path: {NAME}\n\
         data_stem: {name}\n\
         test_split: test\n\
         output_type: multiple_choice\n\
         doc_to_text: \"{{{{context}}}}\"\n\
         doc_to_choice: \"{{{{choices}}}}\"\n\
         doc_to_target: label\n\
         target_delimiter: \" \"\n\
         metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n\
         primary_metric: acc\n\
         metadata:\n  version: 1.0\n"
    )
}

fn perplexity_yaml() -> String {
    let metrics = [
        ("word_perplexity", "weighted_perplexity"),
        ("byte_perplexity", "weighted_perplexity"),
        ("bits_per_byte", "bits_per_byte"),
    ]
    .map(|(m, a)| format!("  - metric: {m}\n    aggregation: {a}\n    higher_is_better: false\n"));
    format!(
        "# stories that the training text does not contain\n\
         task: {PERPLEXITY}\n\
         dataset_path: {NAME}\n\
         data_stem: {PERPLEXITY}\n\
         test_split: test\n\
         output_type: loglikelihood_rolling\n\
         doc_to_text: \"\"\n\
         doc_to_target: \"{{{{page}}}}\"\n\
         metric_list:\n{}\
         primary_metric: bits_per_byte\n\
         metadata:\n  version: 1.0\n",
        metrics.concat()
    )
}
