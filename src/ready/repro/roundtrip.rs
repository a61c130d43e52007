//! Family `roundtrip`: the candidate is read, written again in another layout, read again, and asked the same prompts.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::measure::{Runner, empty_run, finite};
use crate::base::digest::{Digest, DigestBuilder};
use crate::base::threads::Threads;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::writer::{ShardWriter, TensorSpec};
use crate::engine::{Engine, EngineOptions, check_supported, kernel_path};
use crate::ops::kernel_path::ComputeDtype;
use crate::record::Failure;
use crate::record::repro::SeedRun;
use crate::record::score::ScoreRequest;

/// Tokens of a prompt: the shortest and the longest.
const PROMPT_LEN: std::ops::RangeInclusive<usize> = 4..=48;

/// Saves and loads a checkpoint.
pub struct RoundtripRunner {
    /// The candidate.
    pub checkpoint: PathBuf,
    /// Where it is written again, for as long as that takes; what a killed run left there is removed.
    pub scratch: PathBuf,
    /// Worker threads.
    pub threads: Threads,
    /// What the engine's linear layers multiply.
    pub dtype: ComputeDtype,
}

impl Runner for RoundtripRunner {
    fn identity(&self) -> Result<String, Failure> {
        let digest = Checkpoint::open(&self.checkpoint)?.digest()?;
        Ok(format!("checkpoint {digest} {}", kernel_path(self.dtype)))
    }

    fn run(&self, seed: u64, steps: u64) -> Result<SeedRun, Failure> {
        let mut run = empty_run(seed);
        let start = Instant::now();
        let before = Checkpoint::open(&self.checkpoint)?;
        let io = |e: std::io::Error| Failure::io(self.scratch.display(), &e);
        let scratch = Scratch::new(&self.scratch).map_err(io)?;
        let digests = save(&before, &self.scratch).map_err(io)?;
        let after = Checkpoint::open(&self.scratch)?;
        let changed = changed(&before, &after, &digests);
        run.finals.insert("tensors_changed".to_owned(), Some(changed.len() as f64));
        if let Some(name) = changed.first() {
            run.notes.push(format!("tensors that changed: {name} and {} more", changed.len() - 1));
        }
        let mut setup = start.elapsed();
        if let Err(gap) = check_supported(&before) {
            run.notes.push(format!("outputs were not compared: {}", Failure::from(gap)));
            (run.setup_s, run.steps_done) = (setup.as_secs_f64(), steps);
            return Ok(run);
        }
        let first = self.answers(&before, seed, steps, &mut run)?;
        let again = self.answers(&after, seed, steps, &mut run)?;
        let mut largest = 0.0_f64;
        for (a, b) in first.iter().zip(&again) {
            for value in [a, b] {
                finite(&mut run, "logprob", f64::from(*value));
            }
            // A difference of what is not a number must stay one.
            let difference = f64::from((a - b).abs());
            largest = if difference.is_nan() || difference > largest { difference } else { largest };
        }
        let largest = finite(&mut run, "max_abs_diff", largest);
        run.finals.insert("max_abs_diff".to_owned(), largest);
        let logprob =
            if run.non_finite.contains_key("logprob") { None } else { first.first().map(|l| f64::from(*l)) };
        run.finals.insert("logprob".to_owned(), logprob);
        (run.digest, run.repeat_digest) = (Some(digest(&first)), Some(digest(&again)));
        run.steps_done = steps;
        let cleaning = Instant::now();
        scratch.remove().map_err(io)?;
        setup += cleaning.elapsed();
        run.setup_s += setup.as_secs_f64();
        Ok(run)
    }
}

impl RoundtripRunner {
    /// Log-probabilities of every token of the prompts.
    fn answers(
        &self,
        checkpoint: &Checkpoint,
        seed: u64,
        steps: u64,
        run: &mut SeedRun,
    ) -> Result<Vec<f32>, Failure> {
        let start = Instant::now();
        let options = EngineOptions { dtype: self.dtype, ..EngineOptions::new(self.threads.clone()) };
        let engine = Engine::load(checkpoint, &options)?;
        let requests = prompts(seed, steps, engine.vocab_size(), engine.max_len());
        run.setup_s += start.elapsed().as_secs_f64();
        let start = Instant::now();
        let scored = engine.score(&requests, &|_| ())?;
        run.steps_s += start.elapsed().as_secs_f64();
        Ok(scored.into_iter().flat_map(|result| result.token_logprobs).collect())
    }
}

/// A directory that is there for one run.
struct Scratch<'a>(&'a Path);

impl<'a> Scratch<'a> {
    fn new(dir: &'a Path) -> std::io::Result<Self> {
        let scratch = Self(dir);
        scratch.clear()?;
        std::fs::create_dir_all(dir)?;
        Ok(scratch)
    }

    fn clear(&self) -> std::io::Result<()> {
        match std::fs::remove_dir_all(self.0) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn remove(self) -> std::io::Result<()> {
        self.clear()
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        // Of a run that failed; its error says more than one of cleaning up would.
        let _ = self.clear();
    }
}

/// Random prompts of this seed.
fn prompts(seed: u64, count: u64, vocab: usize, max_len: usize) -> Vec<ScoreRequest> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let longest = (*PROMPT_LEN.end()).min(max_len).max(2);
    let shortest = (*PROMPT_LEN.start()).min(longest);
    let mut prompt = |_| {
        let len = rng.random_range(shortest..=longest);
        let tokens = (0..len).map(|_| rng.random_range(0..vocab as u32)).collect();
        ScoreRequest { tokens, context_len: 1 }
    };
    (0..count).map(&mut prompt).collect()
}

/// Writes every tensor into one file, in the order of the names, and the other files as they are. Returns the digest of
/// each tensor's data.
fn save(checkpoint: &Checkpoint, dir: &Path) -> std::io::Result<BTreeMap<String, Digest>> {
    let specs: Vec<TensorSpec> = checkpoint
        .names()
        .filter_map(|name| checkpoint.info(name))
        .map(|info| TensorSpec { name: info.name.clone(), dtype: info.dtype, shape: info.shape.clone() })
        .collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let out = BufWriter::new(std::fs::File::create(dir.join("model.safetensors"))?);
    let mut writer = ShardWriter::new(out, &specs, &metadata)?;
    let mut digests = BTreeMap::new();
    for spec in &specs {
        let data = checkpoint.get(&spec.name).map(|t| t.data).unwrap_or_default();
        writer.write_tensor(&spec.name, data)?;
        digests.insert(spec.name.clone(), Digest::of(data));
        checkpoint.release(&spec.name);
    }
    let (mut out, ..) = writer.finish()?;
    out.flush()?;
    for path in checkpoint.metadata_files() {
        let name = path.file_name().unwrap_or_default();
        // The index belongs to the old layout.
        if name != "model.safetensors.index.json" {
            std::fs::copy(&path, dir.join(name))?;
        }
    }
    Ok(digests)
}

/// Tensors that are not what they were: dtype, shape or bytes.
fn changed(before: &Checkpoint, after: &Checkpoint, digests: &BTreeMap<String, Digest>) -> Vec<String> {
    let same = |name: &str| {
        let (Some(old), Some(new)) = (before.info(name), after.get(name)) else { return false };
        let data = digests.get(name).is_some_and(|digest| *digest == Digest::of(new.data));
        old.dtype == new.dtype && old.shape == new.shape && data
    };
    let known = before.names().filter(|name| !same(name)).map(str::to_owned);
    let new = after.names().filter(|name| before.info(name).is_none()).map(str::to_owned);
    known.chain(new).collect()
}

fn digest(values: &[f32]) -> String {
    let mut digest = DigestBuilder::default();
    for value in values {
        digest.update(&value.to_bits().to_le_bytes());
    }
    digest.finish().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::source;

    fn runner(dir: &Path) -> RoundtripRunner {
        let model = source::resolve("day0-tiny", &dir.join("cache")).unwrap();
        let threads = Threads { count: 2, origin: "test".into() };
        RoundtripRunner {
            checkpoint: model.dir,
            scratch: dir.join("scratch"),
            threads,
            dtype: ComputeDtype::default(),
        }
    }

    /// Document 000, "Save/Load parity".
    #[test]
    fn the_embedded_model_survives_saving_and_loading() {
        let dir = tempfile::tempdir().unwrap();
        let run = runner(dir.path()).run(3, 5).unwrap();
        assert_eq!(run.finals["tensors_changed"], Some(0.0));
        assert_eq!(run.finals["max_abs_diff"], Some(0.0));
        assert_eq!(run.digest, run.repeat_digest);
        assert!(!dir.path().join("scratch").exists(), "nothing is left");
    }

    #[test]
    fn a_changed_tensor_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let before = Checkpoint::open(&runner(dir.path()).checkpoint).unwrap();
        let copy = dir.path().join("copy");
        std::fs::create_dir_all(&copy).unwrap();
        let mut digests = save(&before, &copy).unwrap();
        let after = Checkpoint::open(&copy).unwrap();
        assert!(changed(&before, &after, &digests).is_empty());
        digests.insert("model.norm.weight".into(), Digest::of(b"other"));
        assert_eq!(changed(&before, &after, &digests), ["model.norm.weight"]);
    }
}
