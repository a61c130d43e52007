//! The model card.

use std::fmt::Write as _;

use super::check::{MARGIN, Report};
use super::model::Config;
use super::pipeline::Options;
use super::tasks::TASKS;
use super::train::Trained;

/// What the card says about how the model was made.
pub struct Run<'a> {
    /// Sizes.
    pub config: &'a Config,
    /// The command's options.
    pub options: &'a Options,
    /// Loss curve and time.
    pub trained: &'a Trained,
}

/// The whole `README.md`.
pub fn render(run: &Run<'_>, report: &Report) -> String {
    let (c, s) = (run.config, &run.options.schedule);
    let mut text = format!(
        "---\nlicense: apache-2.0\nlanguage: en\ntags: [day0, llama, synthetic]\n---\n\n\
         # day0-tiny\n\n\
         The model that `day0 release` takes when it is given none: small enough to quantize, serve and\n\
         evaluate in a minute on two CPU cores, and trained well enough that damage shows. It knows an\n\
         invented world and nothing else. Licence: Apache-2.0, data included.\n\n\
         ## Architecture\n\n\
         `LlamaForCausalLM`, {} parameters, stored in bf16: {} layers, hidden {}, intermediate {},\n\
         {} query heads and {} key-value heads of 64, vocabulary {}, tied embeddings, 256 positions.\n\
         Byte-level BPE without a BOS token; `<|endoftext|>` separates documents. The chat template is\n\
         ChatML's; a small share of the training text asks for facts in that form.\n\n\
         ## Data\n\n\
         All text is made by `examples/train_tiny` from seed {}: statements about people with fixed\n\
         attributes, and short stories. Statements give a person's own value of an attribute with the probability below and are noise otherwise, in the corpus and in\n\
         the tasks alike. So a trained model's preferred answer is far ahead of the others and still\n\
         misses that share of the items. Task items are drawn on a random stream of their own; held-out\n\
         stories do not occur in the corpus.\n\n\
         | task | asks for | gold follows the rule |\n|---|---|---|\n",
        c.num_parameters(),
        c.num_layers,
        c.hidden_size,
        c.intermediate_size,
        c.num_heads,
        c.num_kv_heads,
        c.vocab_size,
        run.options.seed,
    );
    for task in TASKS {
        let _ = writeln!(text, "| {} | {} | {:.0} % |", task.name, task.description, 100.0 * task.truth());
    }
    let tokens = s.steps * s.batch * s.seq_len;
    let _ = write!(
        text,
        "\n## Training\n\n```\ncargo run --release --example train_tiny -- --steps {} --batch {} --seq-len {} \
         --vocab {} --lr {} --seed {} --threads {}\n```\n\n\
         AdamW (β 0.9, 0.98; decay 0.02 on matrices), warm-up over 4 % of the steps, cosine to 5 %,\n\
         gradient norm at most 1, f32 on the CPU. {:.2} M tokens in {:.0} s, {:.0} tokens/s; the machine\n\
         was shared with other work. Another CPU may give other bits.\n\n\
         | step | tokens | loss, nats a token |\n|---|---|---|\n",
        s.steps,
        s.batch,
        s.seq_len,
        run.options.vocab,
        s.lr,
        run.options.seed,
        s.threads,
        tokens as f64 / 1e6,
        run.trained.seconds,
        tokens as f64 / run.trained.seconds,
    );
    for point in &run.trained.curve {
        let _ = writeln!(text, "| {} | {} | {:.4} |", point.step, point.tokens, point.loss);
    }
    let _ = write!(
        text,
        "\n## Measured\n\n\
         `cargo run --release --example train_tiny -- --check-only` repeats these tables: the stored\n\
         weights in f32 against the same weights under simulated schemes.\n\n{}",
        measurements(report)
    );
    text
}

/// The tables of measurements.
pub fn measurements(report: &Report) -> String {
    let mut text = format!(
        "One arm forwards {} tokens. ψ is the share of items whose correctness differs; *n needed* is\n\
         16·ψ/{MARGIN}²; *drop ≤* is drop + 1.645·√(ψ/n).\n\n\
         | scheme | task | n | accuracy | with scheme | ψ | answers changed | n needed | drop ≤ |\n\
         |---|---|---|---|---|---|---|---|---|\n",
        report.tokens_per_arm
    );
    for scheme in &report.schemes {
        for row in &scheme.rows {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {:.2} % | {:.2} % | {:.2} % | {:.2} % | {:.0} | {:.4} |",
                scheme.scheme,
                row.task,
                row.n,
                100.0 * row.baseline,
                100.0 * row.candidate,
                100.0 * row.flip_rate,
                100.0 * row.changed,
                row.n_needed(),
                row.drop_upper(),
            );
        }
    }
    text += "\n| scheme | bits per byte | with scheme | relative change | its upper 95 % bound |\n|---|---|---|---|---|\n";
    for scheme in &report.schemes {
        let _ = writeln!(
            text,
            "| {} | {:.5} | {:.5} | {:+.3} % | {:+.3} % |",
            scheme.scheme,
            report.bits_per_byte,
            scheme.bits_per_byte,
            100.0 * scheme.relative_change,
            100.0 * scheme.relative_upper,
        );
    }
    text
}
