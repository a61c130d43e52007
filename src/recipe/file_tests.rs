use proptest::prelude::*;

use super::*;

const VALID: &str = "\
name: mine
version: 3
description: a test
groups:
  - targets: [Linear]
    weights:
      num_bits: 4
      type: int
      strategy: group
      group_size: 64
exclude_modules: ['re:.*down_proj$']
";

fn error(text: &str) -> String {
    parse("mine.yaml", text).unwrap_err().to_string()
}

#[test]
fn valid_recipe() {
    let recipe = parse("mine.yaml", VALID).unwrap();
    assert_eq!((recipe.name.as_str(), recipe.version), ("mine", 3));
    assert_eq!(recipe.groups[0].weights.group_size, Some(64));
    assert_eq!(recipe.exclude_modules[0], "re:.*down_proj$");
    assert_eq!(recipe.exclude_modules.len(), 1 + exclusions::DEFAULT.len());
}

#[test]
fn digest_follows_content_not_comments() {
    let digest = |text: &str| parse("f", text).unwrap().digest;
    assert_eq!(digest(VALID), digest(&format!("# a comment\n{VALID}")));
    assert_eq!(digest(VALID), digest(&VALID.replace("a test", "another text")));
    assert_ne!(digest(VALID), digest(&VALID.replace("group_size: 64", "group_size: 32")));
    assert_ne!(digest(VALID), digest(&VALID.replace("down_proj", "up_proj")));
}

/// File, line and suggestion, for keys and for values.
#[test]
fn mistakes_are_located() {
    for (from, to, expected) in [
        (
            "group_size",
            "group_sise",
            &["mine.yaml:10:", "unknown field `group_sise`", "did you mean 'group_size'?"][..],
        ),
        ("exclude_modules", "exclude_module", &["mine.yaml:11:", "did you mean 'exclude_modules'?"]),
        ("type: int", "type: flaot", &["mine.yaml:8:", "unknown variant `flaot`", "did you mean 'float'?"]),
        ("strategy: group", "strategy: gruop", &["mine.yaml:9:", "did you mean 'group'?"]),
        ("num_bits: 4", "num_bits: four", &["mine.yaml:7:", "invalid type"]),
        ("num_bits: 4", "num_bits: 9", &["mine.yaml:7:", "integer `9`", "num_bits from 2 to 8"]),
        ("group_size: 64", "group_size: 0", &["mine.yaml:10:", "integer `0`"]),
        ("group_size: 64", "group_size: -1", &["mine.yaml:10:", "`-1`"]),
        ("      group_size: 64\n", "", &["mine.yaml:5:", "needs group_size"]),
        ("strategy: group", "strategy: channel", &["mine.yaml:5:", "group_size goes with"]),
        ("strategy: group", "strategy: token", &["mine.yaml:5:", "group_size"]),
        ("type: int", "type: float", &["mine.yaml:5:", "whose group_size is 32"]),
        (
            "num_bits: 4\n      type: int\n      strategy: group\n      group_size: 64",
            "num_bits: 4\n      type: float\n      strategy: channel",
            &["mine.yaml:5:", "no checkpoint format"],
        ),
        ("version: 3\n", "", &["mine.yaml:1:", "missing field `version`"]),
        ("version: 3", "version: -3", &["mine.yaml:2:", "invalid type"]),
        ("[Linear]", "[]", &["mine.yaml:5:", "empty"]),
        ("[Linear]", "['re:(']", &["mine.yaml:5:", "no usable pattern"]),
        ("name: mine", "name: [", &["mine.yaml:"]),
    ] {
        let text = VALID.replacen(from, to, 1);
        assert_ne!(text, VALID);
        let message = error(&text);
        for part in expected {
            assert!(message.contains(part), "{to}: {message:?} lacks {part:?}");
        }
    }
}

#[test]
fn inputs_must_go_with_weights() {
    let with_inputs = |inputs: &str| {
        VALID.replace("    weights:", &format!("    input_activations: {inputs}\n    weights:"))
    };
    let parses = |inputs: &str| parse("f", &with_inputs(inputs));
    assert!(parses("{num_bits: 8, type: int, strategy: token, dynamic: true}").is_ok());
    assert!(parses("{num_bits: 8, type: float, strategy: token, dynamic: true}").is_ok());
    for (inputs, expected) in [
        ("{num_bits: 4, type: int, strategy: token, dynamic: true}", "do not go with"),
        ("{num_bits: 8, type: float, strategy: group, group_size: 128, dynamic: true}", "do not go with"),
        ("{num_bits: 8, type: int, strategy: tensor}", "do not go with"),
        ("{num_bits: 8, type: int, strategy: token}", "dynamic: true"),
        ("{num_bits: 8, type: int, strategy: token, dynamic: local}", "dynamic: true"),
        ("{num_bits: 8, type: int, strategy: token, dynamic: lokal}", "true, false or local"),
        ("{num_bits: 8, type: int, strategy: token, dynamic: true, amax: 3}", "static scales"),
        (
            "{num_bits: 8, type: int, strategy: token, dynamic: true, observer: mse}",
            "observer is for weights",
        ),
        ("{num_bits: 8, type: int, strategy: token, dynamic: true, symmetric: false}", "symmetrically"),
    ] {
        let message = error(&with_inputs(inputs));
        assert!(message.contains(expected), "{inputs}: {message}");
    }
}

/// Constant ranges of static inputs and of the KV cache; observers.
#[test]
fn constants_and_observers() {
    let of = |weights: &str, rest: &str| {
        format!(
            "name: a\nversion: 1\ndescription: b\ngroups:\n  - targets: [Linear]\n    weights: {weights}\n{rest}"
        )
    };
    let fp8 = "{num_bits: 8, type: float, strategy: tensor}";
    let inputs = "    input_activations: {num_bits: 8, type: float, strategy: tensor, amax: 12.5}\n";
    let recipe = parse("f", &of(fp8, inputs)).unwrap();
    let amax = recipe.groups[0].input_activations.as_ref().unwrap().amax;
    assert_eq!(amax.map(super::super::super::checkpoint::quant_args::Amax::get), Some(12.5));
    let kv = "kv_cache: {num_bits: 8, type: float, strategy: tensor, amax: 448}\n";
    assert!(parse("f", &of(fp8, kv)).unwrap().kv_cache.is_some());
    assert!(error(&of(fp8, &kv.replace("num_bits: 8", "num_bits: 4"))).contains("kv_cache must be"));
    assert!(error(&of(fp8, &inputs.replace("12.5", "-1"))).contains("amax is -1"));
    assert!(error(&of(fp8, &inputs.replace("12.5", ".nan"))).contains("amax is NaN"));
    assert!(
        error(&of("{num_bits: 8, type: float, strategy: tensor, observer: mse}", ""))
            .contains("not strategy")
    );
    assert!(
        error(&of("{num_bits: 8, type: float, strategy: tensor, observer: ms}", ""))
            .contains("did you mean 'mse'?")
    );
    assert!(error(&of("{num_bits: 8, type: float, strategy: group, group_size: 64}", "")).contains("is 32"));
    assert!(
        error(&of("{num_bits: 8, type: float, strategy: tensor, amax: 1}", "")).contains("is for inputs")
    );
    let asymmetric = "{num_bits: 8, type: float, strategy: channel, symmetric: false}";
    assert!(error(&of(asymmetric, "")).contains("no layout"));
}

#[test]
fn missing_file() {
    let error = read(Path::new("/no/such/recipe.yaml")).unwrap_err();
    assert!(matches!(error, RecipeError::Read { .. }));
}

proptest! {
    /// Cut, doubled and overwritten bytes give an error or a recipe, never a panic.
    #[test]
    fn malformed_text_never_panics(at in 0usize..VALID.len(), byte in any::<char>(), cut in any::<bool>()) {
        let mut text: String = VALID.chars().take(at).collect();
        if !cut {
            text.push(byte);
            text.extend(VALID.chars().skip(at + 1));
        }
        let _ = parse("f", &text);
    }
}
