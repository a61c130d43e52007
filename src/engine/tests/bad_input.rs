//! Bad requests and bad checkpoints are typed errors that name what is wrong.

use serde_json::json;

use super::fixture::{MAX_LEN, Model, VOCAB, engine, options, write};
use crate::checkpoint::Checkpoint;
use crate::engine::{Engine, EngineError, RequestError};
use crate::record::score::ScoreRequest;
use crate::record::{Classified, FailureClass};

const PLAIN: Model = Model { tied: false, quantized: None, wide: false };

#[test]
fn requests() {
    let engine = engine(PLAIN);
    let bad = |tokens: &[u32], context_len| {
        let good = ScoreRequest { tokens: vec![1, 2], context_len: 1 };
        let request = ScoreRequest { tokens: tokens.to_vec(), context_len };
        match engine.score(&[good, request], &|_| ()).unwrap_err() {
            EngineError::Request { index: 1, source } => source,
            other => panic!("{other}"),
        }
    };
    assert_eq!(bad(&[], 1), RequestError::Empty);
    for context_len in [0, 2, 9] {
        assert_eq!(bad(&[1, 2], context_len), RequestError::Context { context_len, len: 2 });
    }
    let token = VOCAB as u32;
    assert_eq!(bad(&[1, 2, token], 1), RequestError::Token { token, position: 2, vocab_size: VOCAB });
    let too_long = RequestError::TooLong { inputs: MAX_LEN + 1, max_len: MAX_LEN };
    assert_eq!(bad(&[1; MAX_LEN + 2], 1), too_long);
    // One more token than positions: the last is not fed.
    let longest = ScoreRequest { tokens: vec![1; MAX_LEN + 1], context_len: MAX_LEN };
    assert_eq!(engine.score(&[longest], &|_| ()).unwrap()[0].token_logprobs.len(), 1);
    assert!(engine.prompt_logprobs(&[], 1).is_err());
    assert_eq!(engine.prompt_logprobs(&[3], 1).unwrap(), [None]);
    assert!(engine.prompt_logprobs(&[3, token], 1).is_err());
    assert!(engine.generate_greedy(&[], 1, &[], 0).is_err());
    assert!(engine.generate_greedy(&[token], 1, &[], 0).is_err());
    assert!(engine.generate_greedy(&[1; MAX_LEN + 1], 1, &[], 0).is_err());
}

/// Loads a checkpoint after a change.
fn load_with(
    model: Model,
    change: impl FnOnce(&mut serde_json::Value, &mut Vec<super::fixture::Tensor>),
) -> Result<Engine, EngineError> {
    let dir = tempfile::tempdir().unwrap();
    let (mut config, mut tensors) = (model.config(), model.tensors(1));
    change(&mut config, &mut tensors);
    write(dir.path(), &config, &tensors);
    Engine::load(&Checkpoint::open(dir.path()).unwrap(), &options(1, 64))
}

/// Loads a checkpoint after a change that it does not survive; returns class and message.
fn load(
    model: Model,
    change: impl FnOnce(&mut serde_json::Value, &mut Vec<super::fixture::Tensor>),
) -> (FailureClass, String) {
    let Err(error) = load_with(model, change) else { panic!("it loaded") };
    (error.failure_class(), crate::record::failure::chain(&error))
}

#[test]
fn missing_and_extra_tensors_are_named() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let (_, message) = load(PLAIN, |_, tensors| tensors.retain(|t| t.0 != name));
    assert!(message.contains(name), "{message}");
    let (class, message) = load(PLAIN, |_, tensors| {
        let mut extra = tensors[1].clone();
        extra.0 = "model.layers.0.self_attn.q_norm.weight".into();
        tensors.push(extra);
    });
    assert_eq!(class, FailureClass::ModelUnsupported);
    assert!(message.contains("q_norm"), "{message}");
    // A head of its own, although the config says there is none: only a copy of the embedding is accepted.
    let head = |change: f32| {
        load_with(Model { tied: true, quantized: None, wide: false }, |_, tensors| {
            let mut head = tensors[0].clone();
            head.0 = "lm_head.weight".into();
            head.3[..4].copy_from_slice(&change.to_le_bytes());
            tensors[0].3[..4].copy_from_slice(&1.0f32.to_le_bytes());
            tensors.push(head);
        })
    };
    assert!(head(1.0).is_ok());
    assert!(head(2.0).is_err_and(|e| e.failure_class() == FailureClass::ModelUnsupported));
    // Untied by the config, but the head is not there.
    let tied = Model { tied: true, quantized: None, wide: false };
    let (_, message) = load(tied, |config, _| config["tie_word_embeddings"] = json!(false));
    assert!(message.contains("lm_head.weight"), "{message}");
}

#[test]
fn shapes_that_contradict_the_config_are_named() {
    for (field, value) in [
        ("vocab_size", VOCAB + 1),
        ("hidden_size", 48),
        ("intermediate_size", 41),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 1),
        ("head_dim", 4),
    ] {
        for quantized in [None, Some("float")] {
            let model = Model { tied: false, quantized, wide: false };
            let (class, message) = load(model, |config, _| config[field] = json!(value));
            assert_eq!(class, FailureClass::UserConfigError, "{message}");
            assert!(message.contains("shape") && message.contains("expected"), "{field}: {message}");
        }
    }
    let (_, message) = load(PLAIN, |config, _| config["num_hidden_layers"] = json!(3));
    assert!(message.contains("model.layers.2"), "{message}");
    let (class, _) = load(PLAIN, |config, _| config["num_hidden_layers"] = json!(1));
    assert_eq!(class, FailureClass::ModelUnsupported);
}

#[test]
fn unimplemented_activation_schemes_are_refused() {
    let model = Model { tied: true, quantized: Some("float"), wide: false };
    for (field, value) in [
        ("dynamic", json!(false)),
        ("strategy", json!("tensor")),
        ("symmetric", json!(false)),
        ("num_bits", json!(4)),
    ] {
        let (class, message) = load(model, |config, _| {
            config["quantization_config"]["config_groups"]["group_0"]["input_activations"][field] = value;
        });
        assert_eq!(class, FailureClass::ModelUnsupported, "{message}");
        assert!(message.contains("input activations"), "{message}");
    }
}

#[test]
fn weights_that_are_not_numbers_give_results_that_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = PLAIN.tensors(1);
    tensors[1].3 = f32::NAN.to_le_bytes().repeat(tensors[1].2[0]);
    write(dir.path(), &PLAIN.config(), &tensors);
    let engine = Engine::load(&Checkpoint::open(dir.path()).unwrap(), &options(1, 64)).unwrap();
    let result = &engine.score(&[ScoreRequest { tokens: vec![1, 2], context_len: 1 }], &|_| ()).unwrap()[0];
    assert!(result.token_logprobs[0].is_nan() && !result.is_greedy());
    assert!(matches!(engine.generate_greedy(&[1], 2, &[], 0), Err(EngineError::NotFinite { position: 0 })));
}
