//! The forms of MODEL.

use super::*;
use crate::record::Failure;

fn env(cache: &Path) -> HubEnv {
    HubEnv {
        endpoint: "http://127.0.0.1:1".to_owned(),
        cache: cache.to_path_buf(),
        token: None,
        offline: true,
    }
}

fn failure(model: &str, cache: &Path) -> Failure {
    resolve_with(model, cache, &env(cache)).unwrap_err().into()
}

#[test]
fn directory_and_hub_id() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("my-model");
    std::fs::create_dir(&model).unwrap();
    let resolved = resolve_with(model.to_str().unwrap(), dir.path(), &env(dir.path())).unwrap();
    assert_eq!((resolved.kind, resolved.name.as_str(), &resolved.dir), (ModelKind::Dir, "my-model", &model));
    assert!(failure("org/name", dir.path()).message.contains("HF_HUB_OFFLINE"));
}

#[test]
fn other_things_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for model in ["nothing", "./nothing/here", "org/model.gguf", ""] {
        let failure = failure(model, dir.path());
        assert_eq!(failure.class, FailureClass::UserConfigError);
        assert!(failure.hint.unwrap().contains("day0-tiny"));
    }
    for (name, message) in [
        ("m.pt", "pickle"),
        ("m.safetensors", "expected a directory"),
        ("m.gguf", "expected it to begin with 'GGUF'"),
    ] {
        let path = dir.path().join(name);
        atomic::write(&path, b"not it").unwrap();
        let failure = failure(path.to_str().unwrap(), dir.path());
        assert!(failure.message.contains(message), "{failure}");
    }
}

#[test]
fn layout_is_atomic_and_done_once() {
    let cache = tempfile::tempdir().unwrap();
    let files: &[(&str, &[u8])] = &[("config.json", b"{}"), ("model.safetensors", b"abc")];
    let calls = std::cell::Cell::new(0);
    let lay = || {
        once(cache.path(), "m-1", |target| {
            calls.set(calls.get() + 1);
            lay_out(files, target)
        })
        .unwrap()
    };
    assert_eq!(std::fs::read(lay().join("model.safetensors")).unwrap(), b"abc");
    assert_eq!(lay(), cache.path().join("models/m-1"));
    assert_eq!(calls.get(), 1);
    // A killed run leaves a staging directory; the next one finishes it.
    std::fs::create_dir(cache.path().join("models/m-2.partial")).unwrap();
    let again = once(cache.path(), "m-2", |target| lay_out(files, target)).unwrap();
    assert_eq!(std::fs::read_dir(again).unwrap().count(), 2);
}

#[test]
fn unwritable_cache_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let blocked = dir.path().join("file");
    atomic::write(&blocked, b"").unwrap();
    let error = once(&blocked, "m", |_| Ok(())).unwrap_err();
    assert!(error.hint().unwrap().contains("DAY0_CACHE"));
}

#[test]
fn embedded_model_opens() {
    let cache = tempfile::tempdir().unwrap();
    let resolved = resolve_with("day0-tiny", cache.path(), &env(cache.path())).unwrap();
    assert_eq!(resolved.kind, ModelKind::Embedded);
    let checkpoint = super::super::Checkpoint::open(&resolved.dir).unwrap();
    assert_eq!(checkpoint.config()["model_type"], "llama");
    let again = resolve_with("day0-tiny", cache.path(), &env(cache.path())).unwrap();
    assert_eq!(again, resolved);
}
