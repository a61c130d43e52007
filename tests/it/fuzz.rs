//! A bounded share of the fuzzing of `fuzz/`: the same parsers and mutations, always the same inputs.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

#[path = "../../fuzz/mutate.rs"]
mod mutate;
#[path = "../../fuzz/parsers.rs"]
mod parsers;

const INPUTS: usize = 20_000;

/// Seeds are valid, so that mutations get past the first check of their parser.
#[test]
fn seeds_are_accepted_by_their_parsers() {
    for seed in mutate::seeds() {
        parsers::parse(&seed);
        let rest = &seed[1..];
        let accepted = match seed[0] {
            0 => day0::checkpoint::header::parse_file(rest).map(drop).map_err(|e| e.to_string()),
            1 => day0::checkpoint::index::parse("index".as_ref(), rest).map(drop).map_err(|e| e.to_string()),
            2 => day0::base::json::parse_unique(rest).map_err(|e| e.to_string()).and_then(|config| {
                let declared = day0::checkpoint::declaration::declared(&config);
                let parsed = declared.map(day0::checkpoint::declaration::Declaration::parse).transpose();
                parsed.map(drop).map_err(|e| e.to_string())
            }),
            3 => day0::recipe::file::parse("recipe.yaml", std::str::from_utf8(rest).unwrap())
                .map(drop)
                .map_err(|e| e.to_string()),
            _ => day0::checkpoint::gguf::reader::parse(rest).map(drop).map_err(|e| e.to_string()),
        };
        assert_eq!(accepted, Ok(()), "{}", String::from_utf8_lossy(rest));
    }
}

#[test]
fn mutated_inputs_never_panic() {
    let mut rng = ChaCha8Rng::seed_from_u64(20_261_121);
    let seeds = mutate::seeds();
    for _ in 0..INPUTS {
        let input = mutate::mutate(&mut rng, &seeds);
        let outcome = std::panic::catch_unwind(|| parsers::parse(&input));
        assert!(outcome.is_ok(), "a parser panics on {input:02x?}");
    }
}
