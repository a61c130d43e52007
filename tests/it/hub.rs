//! A local server plays the hub, and the command line finds it, its token and its cache by the environment alone.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::bad_input::model;
use super::common::{Ran, command, ran, turn};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_of_this_test";

/// Serves the files of `dir` as the model `org/name` to whoever has the token, until the test ends; returns the address.
fn play_hub(dir: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // A client may hang up whenever it likes.
            let _ = answer(&stream, &dir);
        }
    });
    format!("http://{address}")
}

fn answer(stream: &TcpStream, dir: &Path) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let headers: Vec<String> =
        lines.map_while(Result::ok).take_while(|line| !line.is_empty()).map(|l| l.to_lowercase()).collect();
    let header = |name: &str| headers.iter().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let mut out = stream;
    let mut send = |status: u16, body: &[u8], more: &str| {
        let length = body.len();
        write!(out, "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n{more}\r\n")?;
        out.write_all(body)
    };
    if header("authorization:") != Some(&format!("bearer {TOKEN}")) {
        return send(401, b"{}", "");
    }
    let path = request.split(' ').nth(1).unwrap_or("/");
    if path == "/api/models/org/name/revision/main" {
        let names = std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().into_string().unwrap()));
        let names = names.collect::<std::io::Result<Vec<_>>>()?;
        let siblings: Vec<_> = names.iter().map(|name| json!({ "rfilename": name })).collect();
        return send(200, json!({"sha": COMMIT, "siblings": siblings}).to_string().as_bytes(), "");
    }
    let name = path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/"));
    let Some((name, file)) = name.and_then(|name| Some((name, std::fs::read(dir.join(name)).ok()?))) else {
        return send(404, b"{}", "");
    };
    let more = format!("ETag: \"etag-of-{name}\"\r\nx-repo-commit: {COMMIT}\r\n");
    let range = header("range: bytes=").and_then(|range| {
        let (first, last) = range.split_once('-')?;
        let last = last.parse().unwrap_or(usize::MAX).min(file.len() - 1);
        Some((first.parse::<usize>().ok()?, last))
    });
    match range {
        None => send(200, &file, &more),
        Some((first, last)) => {
            let more = format!("{more}Content-Range: bytes {first}-{last}/{}\r\n", file.len());
            send(206, &file[first..=last], &more)
        }
    }
}

/// Runs `day0 args` in `dir` with these variables.
fn with(dir: &Path, args: &[&str], variables: &[(&str, &str)]) -> Ran {
    ran(command(dir, args).envs(variables.iter().copied()).output().unwrap())
}

#[test]
fn the_environment_says_where_the_hub_and_its_cache_are() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let hub = play_hub(model(dir.path()));
    let quantize = |out: &str, variables: &[(&str, &str)]| {
        with(dir.path(), &["quantize", "org/name", "--recipe", "w8a8", "--out", out], variables)
    };
    let there = [("HF_ENDPOINT", hub.as_str()), ("HF_HOME", "home")];
    quantize("none", &there).expect(2).says("no token was sent").says("set HF_TOKEN");
    quantize("none", &[&there[..], &[("HF_TOKEN", "hf_wrong")]].concat()).expect(2).says("a token was sent");
    quantize("fetched", &[&there[..], &[("HF_TOKEN", TOKEN)]].concat()).expect(0);
    let snapshot = dir.path().join("home/hub/models--org--name/snapshots").join(COMMIT);
    assert!(snapshot.join("model.safetensors").is_file());
    // The server is gone; what was fetched is enough.
    let gone = ("HF_ENDPOINT", "http://127.0.0.1:1");
    quantize("none", &[gone, ("HF_HOME", "home")]).expect(75).says("127.0.0.1:1");
    let offline = [gone, ("HF_HUB_OFFLINE", "1")];
    quantize("offline", &[&offline[..], &[("HF_HOME", "home")]].concat()).expect(0);
    let weights = |out: &str| std::fs::read(dir.path().join(out).join("model.safetensors")).unwrap();
    assert_eq!(weights("offline"), weights("fetched"));
    with(dir.path(), &["scan", "org/name"], &[&offline[..], &[("HF_HOME", "home")]].concat()).expect(0);
    // Without a cache there is nothing, and nobody is asked.
    quantize("none", &[&offline[..], &[("HF_HOME", "empty")]].concat())
        .expect(2)
        .says("org/name: revision main is not in the cache empty/hub, and HF_HUB_OFFLINE forbids fetching it")
        .says("hint: unset HF_HUB_OFFLINE");
    assert!(!dir.path().join("none").exists());
}

/// The token that `huggingface-cli login` stores is used, and the doctor says so.
#[test]
fn a_stored_token_is_found() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let hub = play_hub(model(dir.path()));
    let there = [("HF_ENDPOINT", hub.as_str()), ("HF_HOME", "home")];
    with(dir.path(), &["doctor"], &there).expect(0).says("online, no token");
    std::fs::create_dir(dir.path().join("home")).unwrap();
    std::fs::write(dir.path().join("home/token"), format!("{TOKEN}\n")).unwrap();
    with(dir.path(), &["doctor"], &there).expect(0).says("online, token set").says("home/hub");
    with(dir.path(), &["quantize", "org/name", "--recipe", "w8a8", "--out", "q"], &there).expect(0);
}
