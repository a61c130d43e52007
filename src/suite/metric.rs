//! The metrics that lm-eval computes from log-likelihoods: one table.
//!
//! Source: lm-eval 0.4.13, `api/metrics.py` and `api/task.py` (`process_results`).

use serde::{Deserialize, Serialize};

/// What a task asks of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputType {
    /// One request per choice; the likeliest choice is the answer.
    MultipleChoice,
    /// One request: a target given a text.
    Loglikelihood,
    /// A whole text, in windows.
    LoglikelihoodRolling,
}

/// A metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetricKind {
    /// Multiple choice: the likeliest choice is the gold one. Loglikelihood: the target is the greedy continuation.
    Acc,
    /// `acc` with log-likelihoods divided by the choices' length in characters.
    AccNorm,
    /// `acc` with log-likelihoods divided by the choices' length in UTF-8 bytes.
    AccBytes,
    /// `acc` with the log-likelihood of the choice without context subtracted.
    AccMutualInfo,
    /// The gold choice is the greedy continuation.
    ExactMatch,
    /// exp(−mean log-likelihood per document).
    Perplexity,
    /// exp(−Σ log-likelihood / Σ words).
    WordPerplexity,
    /// exp(−Σ log-likelihood / Σ bytes).
    BytePerplexity,
    /// −Σ log-likelihood / Σ bytes / ln 2.
    BitsPerByte,
}

/// How a metric's values become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregation {
    /// Mean, with the standard error of the mean.
    Mean,
    /// exp(−mean), with a bootstrapped standard error.
    Perplexity,
    /// exp(−weighted mean), without standard error.
    WeightedPerplexity,
    /// −weighted mean / ln 2, without standard error.
    BitsPerByte,
}

/// Name, kind, output types, aggregation (with its name), whether more is better. In the order in which lm-eval
/// writes them into samples.
const METRICS: [(&str, MetricKind, &[OutputType], Aggregation, bool); 9] = {
    use Aggregation as A;
    use MetricKind as K;
    use OutputType::{Loglikelihood as L, LoglikelihoodRolling as R, MultipleChoice as M};
    [
        ("perplexity", K::Perplexity, &[L], A::Perplexity, false),
        ("acc", K::Acc, &[M, L], A::Mean, true),
        ("acc_norm", K::AccNorm, &[M], A::Mean, true),
        ("acc_bytes", K::AccBytes, &[M], A::Mean, true),
        ("exact_match", K::ExactMatch, &[M], A::Mean, true),
        ("acc_mutual_info", K::AccMutualInfo, &[M], A::Mean, true),
        ("word_perplexity", K::WordPerplexity, &[R], A::WeightedPerplexity, false),
        ("byte_perplexity", K::BytePerplexity, &[R], A::WeightedPerplexity, false),
        ("bits_per_byte", K::BitsPerByte, &[R], A::BitsPerByte, false),
    ]
};

impl OutputType {
    /// lm-eval's name, if it is one that scores log-likelihoods.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::MultipleChoice, Self::Loglikelihood, Self::LoglikelihoodRolling]
            .into_iter()
            .find(|t| t.name() == name)
    }

    /// lm-eval's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::MultipleChoice => "multiple_choice",
            Self::Loglikelihood => "loglikelihood",
            Self::LoglikelihoodRolling => "loglikelihood_rolling",
        }
    }

    /// Metrics of this output type, in lm-eval's order.
    pub fn metrics(self) -> Vec<MetricKind> {
        METRICS.iter().filter(|m| m.2.contains(&self)).map(|m| m.1).collect()
    }

    /// What lm-eval computes where a task lists no metrics.
    pub fn default_metrics(self) -> &'static [MetricKind] {
        use MetricKind as K;
        match self {
            Self::MultipleChoice => &[K::Acc, K::AccNorm],
            Self::Loglikelihood => &[K::Perplexity, K::Acc],
            Self::LoglikelihoodRolling => &[K::WordPerplexity, K::BytePerplexity, K::BitsPerByte],
        }
    }
}

impl MetricKind {
    fn row(self) -> &'static (&'static str, MetricKind, &'static [OutputType], Aggregation, bool) {
        METRICS.iter().find(|m| m.1 == self).unwrap_or(&METRICS[0])
    }

    /// lm-eval's name.
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// The metric of a name and output type.
    pub fn from_name(name: &str, output_type: OutputType) -> Option<Self> {
        METRICS.iter().find(|m| m.0 == name && m.2.contains(&output_type)).map(|m| m.1)
    }

    /// How it is aggregated.
    pub fn aggregation(self) -> Aggregation {
        self.row().3
    }

    /// Whether more is better.
    pub fn higher_is_better(self) -> bool {
        self.row().4
    }

    /// Full scale: 1 for metrics between 0 and 1, none for the others.
    pub fn scale(self) -> Option<f64> {
        (self.aggregation() == Aggregation::Mean).then_some(1.0)
    }
}

impl Aggregation {
    /// lm-eval's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Perplexity => "perplexity",
            Self::WeightedPerplexity => "weighted_perplexity",
            Self::BitsPerByte => "bits_per_byte",
        }
    }
}
