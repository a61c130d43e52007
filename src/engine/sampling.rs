//! From logits to a token: bias, penalties, temperature, min-p, top-k, top-p, a seeded draw.
//!
//! The order and each formula are vLLM's (v1/sample/sampler.py): bias and forbidden tokens; repetition, frequency and
//! presence penalties; temperature; p ≥ min_p · max p; the k largest, ties included; the smallest set of the largest
//! with Σ p ≥ top_p. Sums are f64 in a fixed order, so a seed gives the same token whatever else is in the batch.

use std::collections::HashMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How tokens are chosen. The default is the most likely token.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the largest.
    pub temperature: f64,
    /// Probability mass kept; `None`: all.
    pub top_p: Option<f64>,
    /// Number of tokens kept; `None`: all.
    pub top_k: Option<usize>,
    /// Least probability relative to the largest; 0: none.
    pub min_p: f64,
    /// Subtracted from the logits of tokens generated before.
    pub presence_penalty: f64,
    /// Subtracted once for each time a token was generated.
    pub frequency_penalty: f64,
    /// Logits of tokens in prompt or output are divided by it where positive, else multiplied; `None`: 1.
    pub repetition_penalty: Option<f64>,
    /// Added to the logits of tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Start of the random numbers.
    pub seed: u64,
}

impl Sampling {
    /// Whether the choice is simply the largest logit.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 && self.logit_bias.is_empty() && !self.has_penalties()
    }

    fn has_penalties(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 || self.repetition_penalty.is_some()
    }
}

/// The state of one choice being generated.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
    /// Times each token was generated; tokens of the prompt are there with 0.
    seen: HashMap<u32, u32>,
    logits: Vec<f64>,
}

impl Sampler {
    /// A sampler for choice number `choice` after `prompt`; choices of one seed draw different numbers.
    pub fn new(sampling: &Sampling, choice: usize, prompt: &[u32]) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(sampling.seed);
        random.set_stream(choice as u64);
        // Only the repetition penalty looks at the prompt.
        let prompt = if sampling.repetition_penalty.is_some() { prompt } else { &[] };
        let seen = prompt.iter().map(|token| (*token, 0)).collect();
        Self { sampling: sampling.clone(), random, seen, logits: Vec::new() }
    }

    /// The next token, none of `forbidden`. `logits`: \[V\], at least one of them a number.
    pub fn choose(&mut self, logits: &[f32], forbidden: &[u32]) -> u32 {
        let mut changed = std::mem::take(&mut self.logits);
        changed.clear();
        changed.extend(logits.iter().map(|l| if l.is_nan() { f64::NEG_INFINITY } else { f64::from(*l) }));
        self.change(&mut changed, forbidden);
        let token = if self.sampling.temperature == 0.0 {
            largest(&changed)
        } else {
            for logit in &mut changed {
                *logit /= self.sampling.temperature;
            }
            self.draw(&changed)
        };
        self.logits = changed;
        token as u32
    }

    /// Remembers a generated token.
    pub fn accept(&mut self, token: u32) {
        if self.sampling.has_penalties() {
            *self.seen.entry(token).or_default() += 1;
        }
    }

    fn change(&self, logits: &mut [f64], forbidden: &[u32]) {
        let s = &self.sampling;
        for (token, bias) in &s.logit_bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += f64::from(*bias);
            }
        }
        for token in forbidden {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit = f64::NEG_INFINITY;
            }
        }
        for (token, count) in &self.seen {
            let Some(logit) = logits.get_mut(*token as usize) else { continue };
            if let Some(penalty) = s.repetition_penalty {
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
            if *count > 0 {
                *logit -= s.frequency_penalty * f64::from(*count) + s.presence_penalty;
            }
        }
    }

    /// A token drawn from softmax(logits) over those that the filters keep.
    fn draw(&mut self, logits: &[f64]) -> usize {
        let max = logits[largest(logits)];
        let s = &self.sampling;
        let is_cut = s.top_k.is_some_and(|k| k < logits.len()) || s.top_p.is_some_and(|p| p < 1.0);
        let likely = logits.iter().enumerate().map(|(token, l)| (token, (l - max).exp()));
        let mut kept: Vec<(usize, f64)> = likely.filter(|(_, p)| *p > 0.0 && *p >= s.min_p).collect();
        if is_cut {
            cut(&mut kept, s.top_k, s.top_p);
        }
        let sum: f64 = kept.iter().map(|(_, p)| p).sum();
        let mut left = self.random.random::<f64>() * sum;
        for (token, p) in &kept {
            left -= p;
            if left < 0.0 {
                return *token;
            }
        }
        // Rounding may leave a sliver beyond the last token; an overflow of a bias leaves none at all.
        kept.last().map_or_else(|| largest(logits), |(token, _)| *token)
    }
}

/// Index of the largest logit, the first of equals.
fn largest(logits: &[f64]) -> usize {
    let better = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
    (0..logits.len()).reduce(better).unwrap_or(0)
}

/// Keeps the `top_k` largest with ties, then the fewest of those that hold `top_p` of their mass; at least one.
fn cut(kept: &mut Vec<(usize, f64)>, top_k: Option<usize>, top_p: Option<f64>) {
    let order = |a: &(usize, f64), b: &(usize, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if let Some(k) = top_k.filter(|k| *k < kept.len()) {
        let (_, last, _) = kept.select_nth_unstable_by(k.max(1) - 1, order);
        let least = last.1;
        kept.retain(|(_, p)| *p >= least);
    }
    kept.sort_unstable_by(order);
    if let Some(top_p) = top_p {
        let wanted = top_p * kept.iter().map(|(_, p)| p).sum::<f64>();
        let mut sum = 0.0;
        let enough = kept.iter().position(|(_, p)| {
            sum += p;
            sum >= wanted
        });
        kept.truncate(enough.map_or(kept.len(), |last| last + 1));
    }
}
