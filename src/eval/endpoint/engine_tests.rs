//! The built-in engine behind its own server, on random models and on a real one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{EndpointOptions, EndpointScorer};
use crate::base::threads;
use crate::checkpoint::Checkpoint;
use crate::engine::tests::fixture::{
    Model, bits, checkpoint, options as engine_options, shuffled, two_hundred,
};
use crate::engine::{Engine, EngineOptions};
use crate::eval::Scorer;
use crate::eval::probe::{ProbeTarget, probe, require_usable};
use crate::model::tokenizer::Tokenizer;
use crate::ops::kernel_path::{ComputeDtype, KernelPath};
use crate::record::Provenance;
use crate::record::score::ScoreRequest;
use crate::serve::fake::ByteCodec;
use crate::serve::{Server, ServerOptions};

fn stories() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/models/stories260k");
    if dir.exists() {
        return Some(dir);
    }
    println!("skipped: ../shared is not there");
    None
}

#[test]
fn scores_over_http_are_the_engines_bit_for_bit() {
    let Some(dir) = stories() else { return };
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let tokenizer = Arc::new(Tokenizer::load(&dir).unwrap());
    let engine = Engine::load(&checkpoint, &EngineOptions::new(threads::detect(Some(2)))).unwrap();
    let engine = Arc::new(engine.with_tokenizer_digest(tokenizer.digest().clone()));
    let server =
        Server::start(engine.clone(), tokenizer.clone(), ServerOptions::local("stories260k")).unwrap();
    let options = EndpointOptions { batch_size: 5, ..EndpointOptions::new(&server.url()) };

    let digest = checkpoint.digest().unwrap();
    let record = probe(&ProbeTarget {
        arm: "baseline",
        options: &options,
        launched: false,
        directory: None,
        attempts: 1,
        command: String::new(),
        startup_timeout: std::time::Duration::ZERO,
        expected_digest: Some(&digest),
        text: &*tokenizer,
        tokenizer_digest: Some(tokenizer.digest()),
        provenance: &Provenance::new(threads::detect(Some(2))),
    });
    require_usable(&record).unwrap();
    let identity = record.identity.clone().unwrap();
    assert_eq!(identity.checkpoint_digest, Some(digest));
    assert_eq!(record.fingerprint.unwrap().token_ids_echoed, Some(true));

    let mut requests = Vec::new();
    for (context, endings) in [
        ("Once upon a time, there was a little girl named", [" Lily.", " Tom.", " zebra!"]),
        ("The dog ran to the", [" park.", " moon.", " tree and sat down."]),
        ("One day, it was very cold. Mom said", [", \"Put on your coat.\"", " nothing.", ": go"]),
    ] {
        let given = tokenizer.encode(context, true).unwrap();
        for ending in endings {
            let tokens = tokenizer.encode(&format!("{context}{ending}"), true).unwrap();
            requests.push(ScoreRequest { context_len: given.len().min(tokens.len() - 1), tokens });
        }
    }
    // As long as an endpoint takes.
    let scorer = EndpointScorer::connect(&options, Some(identity)).unwrap();
    assert_eq!(scorer.max_len(), 510);
    requests.push(ScoreRequest { tokens: (0..511).map(|i| 3 + i % 500).collect(), context_len: 1 });

    let expected = engine.score(&requests, &|_| ()).unwrap();
    for (result, expected) in scorer.score(&requests, &|_| ()).iter().zip(&expected) {
        assert_eq!(bits(result.as_ref().unwrap()), bits(expected));
    }
    assert!(expected.iter().any(|r| r.token_is_greedy.contains(&true)));
}

/// Alone, 7 and 64 at a time, several calls at once, shuffled.
#[test]
fn two_hundred_requests_over_http_are_the_engines_bit_for_bit() {
    let requests = two_hundred();
    let order = shuffled(requests.len());
    let mixed: Vec<ScoreRequest> = order.iter().map(|i| requests[*i].clone()).collect();
    let (_dir, checkpoint) = checkpoint(Model { tied: true, quantized: None, wide: true }, 7);
    for dtype in [ComputeDtype::F32, ComputeDtype::Bf16] {
        let path = KernelPath::best(dtype);
        let load = |threads| Engine::load_with(&checkpoint, &engine_options(threads, 128), path).unwrap();
        let expected = load(1).score(&requests, &|_| ()).unwrap();
        let server =
            Server::start(Arc::new(load(2)), Arc::new(ByteCodec), ServerOptions::local("m")).unwrap();
        for batch_size in [1, 7, 64] {
            let options = EndpointOptions { batch_size, ..EndpointOptions::new(&server.url()) };
            let scorer = EndpointScorer::connect(&options, None).unwrap();
            let results = scorer.score(&mixed, &|_| ());
            assert_eq!(results.len(), mixed.len());
            for (i, result) in order.iter().zip(&results) {
                let result = result.as_ref().unwrap();
                assert_eq!(bits(result), bits(&expected[*i]), "{path:?} {batch_size} at a time, request {i}");
            }
        }
    }
}
