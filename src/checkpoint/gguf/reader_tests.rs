//! Good and malformed headers.

use proptest::prelude::*;

use super::super::test_file::TestGguf;
use super::*;

fn small() -> TestGguf {
    TestGguf::default()
        .text("general.architecture", "llama")
        .u32("n", 7)
        .bool("b", true)
        .texts("list", &["x", "y"])
        .f32_tensor("a", &[2, 3], 0.0)
        .tensor("q", &[1, 32], 2, vec![1; 18])
}

#[test]
fn good_file() {
    let file = small().bytes();
    let gguf = parse(&file).unwrap();
    assert_eq!(gguf.metadata.text("general.architecture").unwrap(), Some("llama"));
    assert_eq!(gguf.metadata.count("n").unwrap(), Some(7));
    assert_eq!(gguf.metadata.bool("b").unwrap(), Some(true));
    assert_eq!(gguf.metadata.texts("list").unwrap(), Some(vec!["x", "y"]));
    assert_eq!(gguf.metadata.count("absent").unwrap(), None);
    assert!(gguf.metadata.count("list").is_err());
    let a = &gguf.tensors["a"];
    assert_eq!(a.shape, [2, 3]);
    assert_eq!(a.block_type.to_f32(&file[a.begin..a.end]).unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(gguf.tensors["q"].block_type.name, "Q4_0");
}

#[test]
fn magic_and_version() {
    assert!(matches!(parse(b""), Err(GgufProblem::NotGguf { .. })));
    assert!(matches!(parse(b"PK\x03\x04rest"), Err(GgufProblem::NotGguf { .. })));
    let mut file = small().bytes();
    file[4] = 1;
    assert!(matches!(parse(&file), Err(GgufProblem::Version { found: 1 })));
    file[4..8].copy_from_slice(&3u32.to_be_bytes());
    assert!(matches!(parse(&file), Err(GgufProblem::Version { .. })));
}

#[test]
fn every_truncation_is_an_error() {
    let file = small().bytes();
    // The last tensor's data ends 14 bytes before the padding does.
    for cut in 0..file.len() - 14 {
        assert!(parse(&file[..cut]).is_err(), "cut at {cut}");
    }
    assert!(parse(&file[..file.len() - 14]).is_ok());
}

#[test]
fn giant_counts_allocate_nothing() {
    let file = small().bytes();
    for at in [8, 16, 24] {
        let mut file = file.clone();
        file[at..at + 8].copy_from_slice(&(1u64 << 60).to_le_bytes());
        assert!(parse(&file).is_err(), "count at {at}");
    }
    let list = [&5u32.to_le_bytes()[..], &(1u64 << 60).to_le_bytes()[..]].concat();
    assert!(parse(&TestGguf::default().raw("list", 9, &list).bytes()).is_err());
}

#[test]
fn values() {
    let key = |kind, bytes: &[u8]| parse(&TestGguf::default().raw("k", kind, bytes).bytes());
    let int = |kind, bytes: &[u8]| key(kind, bytes).unwrap().metadata.get("k").unwrap().clone();
    assert_eq!(int(1, &[0xff]), Value::Int(-1));
    assert_eq!(int(11, &(-5i64).to_le_bytes()), Value::Int(-5));
    assert_eq!(int(10, &u64::MAX.to_le_bytes()), Value::Int(i128::from(u64::MAX)));
    assert!(key(10, &u64::MAX.to_le_bytes()).unwrap().metadata.count("k").is_err());
    assert!(key(7, &[2]).is_err());
    assert!(key(13, &[0; 16]).is_err());
    let text = [&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat();
    assert!(key(8, &text).unwrap_err().to_string().contains("UTF-8"));
    // Arrays of arrays without end.
    let nested: Vec<u8> = [9u32.to_le_bytes().as_slice(), &1u64.to_le_bytes()].concat().repeat(10);
    assert!(key(9, &nested).is_err());
    let eps = key(6, &1e-5f32.to_le_bytes()).unwrap();
    assert_eq!(eps.metadata.float("k").unwrap(), Some(1e-5));
    assert!(key(6, &f32::NAN.to_le_bytes()).unwrap().metadata.float("k").is_err());
}

#[test]
fn tensors() {
    let one = |shape: &[usize], kind, len| parse(&small().tensor("t", shape, kind, vec![0; len]).bytes());
    assert!(
        matches!(one(&[1, 32], 20, 18), Err(GgufProblem::Unsupported { found, .. }) if found == "IQ4_NL")
    );
    assert!(matches!(one(&[33], 2, 18), Err(GgufProblem::Tensor { .. })), "not whole blocks");
    assert!(matches!(one(&[2, 16], 2, 18), Err(GgufProblem::Tensor { .. })), "blocks must not span rows");
    assert!(matches!(one(&[1, 1, 1, 1, 1], 0, 4), Err(GgufProblem::Tensor { .. })));
    assert!(matches!(one(&[usize::MAX, 8], 0, 4), Err(GgufProblem::Tensor { .. })));
    assert!(matches!(one(&[1 << 40], 0, 4), Err(GgufProblem::Truncated { .. })));
    // The second tensor's offset set to 0, where the first lies; then to an odd place.
    let file = small().bytes();
    let name = [&1u64.to_le_bytes()[..], b"q"].concat();
    let offset_at = file.windows(9).position(|w| w == name).unwrap() + 9 + 4 + 16 + 4;
    for (offset, message) in [(0u64, "shared"), (33, "divisible"), (u64::MAX - 31, "truncated")] {
        let mut file = file.clone();
        file[offset_at..offset_at + 8].copy_from_slice(&offset.to_le_bytes());
        let error = parse(&file).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let odd = small().u32("general.alignment", 48).bytes();
    assert!(parse(&odd).unwrap_err().to_string().contains("general.alignment"));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&bytes);
        let _ = parse(&[b"GGUF\x03\0\0\0".as_slice(), &bytes].concat());
    }

    #[test]
    fn changed_bytes_never_panic(changes in proptest::collection::vec((0usize..400, any::<u8>()), 1..6)) {
        let mut file = small().bytes();
        for (at, byte) in changes {
            let at = at % file.len();
            file[at] = byte;
        }
        let _ = parse(&file);
    }
}
