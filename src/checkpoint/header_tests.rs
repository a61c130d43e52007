//! Malformed headers, agreement with the safetensors crate, and very many tensors.

use proptest::prelude::*;
use safetensors::SafeTensors;

use super::*;

/// A file with this header text and `data_len` zero bytes of data.
fn file(json: &str, data_len: usize) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.resize(bytes.len() + data_len, 0);
    bytes
}

fn entry(name: &str, dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

/// The message with its sources.
fn message(json: &str, data_len: usize) -> String {
    crate::record::failure::chain(&parse_file(&file(json, data_len)).unwrap_err())
}

fn problem(json: &str, data_len: usize) -> (String, TensorProblem) {
    match parse_file(&file(json, data_len)).unwrap_err() {
        HeaderError::Tensor { tensor, problem } => (tensor, problem),
        other => panic!("{other}"),
    }
}

#[test]
fn good_header() {
    let json = format!(
        r#"{{"__metadata__":{{"format":"pt"}},{},{},{}}}  "#,
        entry("b", "BF16", "[2,3]", 4, 16),
        entry("a", "F32", "[]", 0, 4),
        entry("empty", "I64", "[0,7]", 4, 4)
    );
    let header = parse_file(&file(&json, 12 + 4)).unwrap();
    let order: Vec<_> = header.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(order, ["a", "empty", "b"]);
    assert_eq!(header.sorted().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["a", "b", "empty"]);
    assert_eq!(header.get("b").unwrap().shape, [2, 3]);
    assert_eq!(header.get("b").unwrap().num_bytes(), 12);
    assert!(header.get("c").is_none());
    assert_eq!(header.metadata["format"], "pt");
    assert_eq!(header.data_start, 8 + json.len() as u64);
}

#[test]
fn lengths() {
    assert!(matches!(parse_file(b""), Err(HeaderError::TooShort { file_len: 0 })));
    assert!(matches!(parse_file(b"1234567"), Err(HeaderError::TooShort { file_len: 7 })));
    let huge = (1u64 << 60).to_le_bytes();
    assert!(matches!(parse_file(&huge), Err(HeaderError::TooLarge { found }) if found == 1 << 60));
    let mut cut = file(&format!("{{{}}}", entry("a", "U8", "[4]", 0, 4)), 4);
    cut.truncate(30);
    assert!(matches!(parse_file(&cut), Err(HeaderError::Truncated { available: 22, .. })));
}

#[test]
fn bad_text() {
    let mut bytes = file("{\"a\"}", 0);
    bytes[10] = 0xff;
    assert!(matches!(parse_file(&bytes), Err(HeaderError::NotUtf8 { at: 2 })));
    assert!(matches!(parse_file(&file("", 0)), Err(HeaderError::Json(_))));
    assert!(matches!(parse_file(&file("[]", 0)), Err(HeaderError::Json(_))));
    assert!(message(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4).contains("tensor a"));
    assert!(message(r#"{"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}}"#, 4).contains("tensor a"));
    assert!(message(r#"{"a":{"dtype":"F32","shape":[1]}}"#, 4).contains("data_offsets"));
    assert!(message(r#"{"__metadata__":{"a":1}}"#, 0).contains("__metadata__"));
    let deep = format!(r#"{{"a":{}"#, "[".repeat(100_000));
    assert!(matches!(parse_file(&file(&deep, 0)), Err(HeaderError::Json(_))));
}

#[test]
fn bad_tensors_are_named() {
    let one = |e: String| format!("{{{e}}}");
    assert_eq!(
        problem(&one(entry("w", "F33", "[1]", 0, 4)), 4),
        ("w".into(), TensorProblem::Dtype("F33".into()))
    );
    let huge = "[4294967296,4294967296,2]";
    assert!(matches!(problem(&one(entry("w", "F32", huge, 0, 4)), 4).1, TensorProblem::Overflow { .. }));
    assert_eq!(problem(&one(entry("w", "F4", "[3]", 0, 2)), 2).1, TensorProblem::PartialByte { bits: 12 });
    assert_eq!(
        problem(&one(entry("w", "U8", "[4]", 4, 0)), 4).1,
        TensorProblem::Backwards { begin: 4, end: 0 }
    );
    assert_eq!(
        problem(&one(entry("w", "BF16", "[4]", 0, 4)), 4).1,
        TensorProblem::Size { expected: 8, found: 4 }
    );
    assert_eq!(
        problem(&one(entry("w", "U8", "[8]", 0, 8)), 4).1,
        TensorProblem::OutOfFile { end: 8, available: 4 }
    );
}

#[test]
fn cover_is_exact() {
    let two = |a: (u64, u64), b: (u64, u64)| {
        let length = |(begin, end)| format!("[{}]", end - begin);
        let first = entry("a", "U8", &length(a), a.0, a.1);
        format!("{{{first},{}}}", entry("b", "U8", &length(b), b.0, b.1))
    };
    assert_eq!(
        problem(&two((0, 8), (4, 12)), 12),
        ("b".into(), TensorProblem::Overlap { other: "a".into(), previous_end: 8, begin: 4 })
    );
    assert_eq!(
        problem(&two((0, 4), (8, 12)), 12),
        ("b".into(), TensorProblem::Hole { begin: 8, expected: 4 })
    );
    assert!(matches!(
        parse_file(&file(&two((0, 4), (4, 8)), 9)),
        Err(HeaderError::TrailingBytes { expected: 8, found: 9 })
    ));
    let twice = format!("{{{},{}}}", entry("a", "U8", "[4]", 0, 4), entry("a", "U8", "[4]", 4, 8));
    assert_eq!(problem(&twice, 8), ("a".into(), TensorProblem::Duplicate));
}

#[test]
fn hundred_thousand_tensors_are_listed() {
    let entries: Vec<String> = (0..100_000u64)
        .map(|i| {
            entry(&format!("model.layers.{i}.mlp.down_proj.weight"), "BF16", "[2,4]", i * 16, i * 16 + 16)
        })
        .collect();
    let json = format!("{{{}}}", entries.join(","));
    let header = parse(json.as_bytes(), LENGTH_BYTES + json.len() as u64 + 1_600_000).unwrap();
    assert_eq!(header.tensors.len(), 100_000);
    assert!(header.tensors.iter().all(|tensor| tensor.shape == [2, 4] && tensor.num_bytes() == 16));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_file(&bytes);
        let _ = parse(&bytes, bytes.len() as u64);
    }

    /// Whatever two tensors claim, we accept exactly what the safetensors crate accepts (it tolerates repeated names).
    #[test]
    fn agrees_with_safetensors(
        a in (0u64..6, 0u64..6, 0u64..6), b in (0u64..6, 0u64..6, 0u64..6), data_len in 0usize..8,
    ) {
        let json = format!(
            "{{{},{}}}",
            entry("a", "U8", &format!("[{}]", a.0), a.1, a.2),
            entry("b", "U8", &format!("[{}]", b.0), b.1, b.2)
        );
        let bytes = file(&json, data_len);
        prop_assert_eq!(parse_file(&bytes).is_ok(), SafeTensors::deserialize(&bytes).is_ok());
    }
}

#[test]
fn keys_that_occur_twice() {
    let tensor = r#"{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
    for (json, word) in [
        (format!(r#"{{"a":{tensor},"a":{tensor}}}"#), "tensor a"),
        (format!(r#"{{"a":{tensor},"__metadata__":{{}},"__metadata__":{{}}}}"#), "__metadata__"),
        (format!(r#"{{"a":{tensor},"__metadata__":{{"x":"1","x":"2"}}}}"#), "x occurs twice"),
        (r#"{"a":{"dtype":"U8","dtype":"I8","shape":[4],"data_offsets":[0,4]}}"#.to_owned(), "dtype"),
    ] {
        let text = message(&json, 4);
        assert!(text.contains(word) && (text.contains("twice") || text.contains("duplicate")), "{text}");
    }
}
