use super::super::unit::KeyBuilder;
use super::*;

fn key(name: &str) -> UnitKey {
    KeyBuilder::new("test/1").part("name", name).finish()
}

fn done(value: i64) -> Done {
    Done {
        output: serde_json::json!({ "value": value, "x": 0.1 }),
        flow: Flow::Continue,
        elapsed_s: 0.5,
        peak_memory_bytes: Some(1 << 20),
        reused: false,
        inputs: None,
    }
}

#[test]
fn done_survives_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.jsonl");
    let ledger = Ledger::open(&path).unwrap();
    assert_eq!(ledger.claim(&key("a"), "a").unwrap(), Claim::Granted);
    ledger.finish(&key("a"), "a", &done(7)).unwrap();
    drop(ledger);
    let again = Ledger::open(&path).unwrap();
    assert_eq!(again.claim(&key("a"), "a").unwrap(), Claim::Done(done(7)));
    assert_eq!(again.done(&key("b")).unwrap(), None);
}

#[test]
fn torn_and_damaged_lines_are_work_to_do_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.jsonl");
    let ledger = Ledger::open(&path).unwrap();
    ledger.finish(&key("a"), "a", &done(7)).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    // A changed result, then a line cut off in the middle.
    let damaged = text.replace(":7", ":8") + &text[..text.len() / 2];
    std::fs::write(&path, damaged).unwrap();
    let again = Ledger::open(&path).unwrap();
    assert_eq!(again.done(&key("a")).unwrap(), None);
    again.finish(&key("b"), "b", &done(1)).unwrap();
    let third = Ledger::open(&path).unwrap();
    assert_eq!(third.done(&key("b")).unwrap(), Some(done(1)));
    assert_eq!(third.damaged_lines(), 2);
}

#[test]
fn a_living_owner_keeps_its_unit_and_a_dead_one_loses_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.jsonl");
    let entry = |owner: Owner, expires: u64| {
        let e = Entry::Claim { key: key("a"), unit: "a".to_owned(), owner, expires };
        serde_json::to_string(&e).unwrap() + "\n"
    };
    let later = clock::unix_seconds() + 60;
    let elsewhere = Owner { host: "elsewhere".to_owned(), pid: 1, started: 1, ..Owner::current() };
    let dead = Owner { started: 1, ..Owner::current() };
    let cases = [(elsewhere.clone(), later, true), (elsewhere, 1, false), (dead, later, false)];
    for (owner, expires, busy) in cases {
        std::fs::write(&path, entry(owner.clone(), expires)).unwrap();
        let claim = Ledger::open(&path).unwrap().claim(&key("a"), "a").unwrap();
        assert_eq!(claim, if busy { Claim::Busy(owner) } else { Claim::Granted });
    }
}

#[test]
fn two_handles_see_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.jsonl");
    let (one, two) = (Ledger::open(&path).unwrap(), Ledger::open(&path).unwrap());
    one.finish(&key("a"), "a", &done(1)).unwrap();
    assert_eq!(two.done(&key("a")).unwrap(), Some(done(1)));
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.jsonl");
        std::fs::write(&path, bytes).unwrap();
        let ledger = Ledger::open(&path).unwrap();
        ledger.finish(&key("a"), "a", &done(3)).unwrap();
        proptest::prop_assert_eq!(Ledger::open(&path).unwrap().done(&key("a")).unwrap(), Some(done(3)));
    }
}

#[test]
fn compaction_keeps_results_leases_and_history_while_another_has_it_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.jsonl");
    let (one, two) = (Ledger::open(&path).unwrap(), Ledger::open(&path).unwrap());
    let failure = Failure::new(FailureClass::InfraTransient, "lost");
    one.claim(&key("a"), "a").unwrap();
    one.fail(&key("a"), "a", &failure).unwrap();
    one.claim(&key("a"), "a").unwrap();
    one.finish(&key("a"), "a", &done(7)).unwrap();
    one.claim(&key("b"), "b").unwrap();
    while one.guard().1.obsolete_bytes < COMPACT_BYTES {
        one.renew(&key("b"), "b").unwrap();
    }
    let running = || Ledger::snapshot(&path).unwrap().unwrap().running;
    let before = (one.history().unwrap(), running(), std::fs::metadata(&path).unwrap().len());
    one.compact().unwrap();
    assert!(std::fs::metadata(&path).unwrap().len() < before.2 / 10);
    // Both handles go on in the new file.
    assert_eq!((two.history().unwrap(), running()), (before.0, before.1));
    two.finish(&key("c"), "c", &done(3)).unwrap();
    assert_eq!(one.done(&key("c")).unwrap(), Some(done(3)));
    let again = Ledger::open(&path).unwrap();
    assert_eq!(again.done(&key("a")).unwrap(), Some(done(7)));
    assert_eq!(again.history().unwrap()[&key("a")].lost().count(), 1);
    assert_eq!(again.damaged_lines(), 0);
}

#[test]
fn a_result_does_not_count_once_another_process_has_taken_the_unit_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.jsonl");
    let ledger = Ledger::open(&path).unwrap();
    ledger.claim(&key("a"), "a").unwrap();
    let other = Owner { host: "elsewhere".to_owned(), ..Owner::current() };
    let expires = clock::unix_seconds() + 60;
    let taken = Entry::Claim { key: key("a"), unit: "a".to_owned(), owner: other.clone(), expires };
    let mut text = std::fs::read_to_string(&path).unwrap();
    text += &(serde_json::to_string(&taken).unwrap() + "\n");
    std::fs::write(&path, text).unwrap();
    ledger.renew(&key("a"), "a").unwrap();
    assert!(!ledger.finish(&key("a"), "a", &done(1)).unwrap());
    assert_eq!(ledger.claim(&key("a"), "a").unwrap(), Claim::Busy(other));
    // Nor once the other has finished it.
    let theirs = Entry::done(&key("a"), "a", &done(2)).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text + &(serde_json::to_string(&theirs).unwrap() + "\n")).unwrap();
    assert!(!ledger.finish(&key("a"), "a", &done(1)).unwrap());
    assert_eq!(ledger.done(&key("a")).unwrap(), Some(done(2)));
    // What is offered to other runs replaces what was there.
    ledger.publish(&key("a"), "a", &done(3)).unwrap();
    assert_eq!(ledger.done(&key("a")).unwrap(), Some(done(3)));
}
