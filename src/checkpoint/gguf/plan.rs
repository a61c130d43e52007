//! Which tensor of a GGUF file becomes which of the checkpoint, and how its rows and values change on the way.

use super::architecture::QkNorm;
use super::error::GgufProblem;
use super::hparams::{ExpertCounts, Hparams, tensor};
use super::reader::Gguf;
use super::rope;

/// How the rows of a tensor are brought from GGUF's order to Hugging Face's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// The same.
    Same,
    /// Rotary pairs of each head lie side by side in GGUF, and half a head apart in Hugging Face's layout.
    Rotary {
        /// Rows of a head (D).
        head_dim: usize,
    },
}

/// One tensor to be imported.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedTensor {
    /// Name in the GGUF file.
    pub source: String,
    /// Name in the checkpoint.
    pub name: String,
    /// Shape in the checkpoint.
    pub shape: Vec<usize>,
    /// Row order.
    pub rows: RowOrder,
    /// Which of how many equal parts of the source's rows it is: an expert of a stack.
    pub part: (usize, usize),
    /// Subtracted from every value.
    pub offset: f32,
}

/// Every tensor of the checkpoint, sorted by name. Each must be in the file with its shape, and nothing else.
pub fn plan(hparams: &Hparams, gguf: &Gguf) -> Result<Vec<PlannedTensor>, GgufProblem> {
    let mut plan = Plan { hparams, tensors: Vec::new() };
    let h = hparams.hidden_size;
    plan.add("token_embd.weight", "model.embed_tokens.weight", &[hparams.vocab_size, h]);
    plan.norm("output_norm.weight", "model.norm.weight", h);
    if !hparams.tie_word_embeddings {
        plan.add("output.weight", "lm_head.weight", &[hparams.vocab_size, h]);
    }
    for layer in 0..hparams.num_hidden_layers {
        plan.layer(layer)?;
    }
    let mut tensors = plan.tensors;
    check(&tensors, gguf)?;
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

struct Plan<'a> {
    hparams: &'a Hparams,
    tensors: Vec<PlannedTensor>,
}

impl Plan<'_> {
    fn add(&mut self, source: &str, name: &str, shape: &[usize]) -> &mut PlannedTensor {
        let (source, name, shape) = (source.to_owned(), name.to_owned(), shape.to_vec());
        let at = self.tensors.len();
        self.tensors.push(PlannedTensor {
            source,
            name,
            shape,
            rows: RowOrder::Same,
            part: (0, 1),
            offset: 0.0,
        });
        &mut self.tensors[at]
    }

    fn norm(&mut self, source: &str, name: &str, width: usize) {
        let offset = self.hparams.architecture.norm_offset;
        self.add(source, name, &[width]).offset = offset;
    }

    /// A linear module with its bias, if it has one.
    fn linear(&mut self, source: &str, name: &str, shape: [usize; 2], rows: RowOrder, bias: bool) {
        self.add(&format!("{source}.weight"), &format!("{name}.weight"), &shape).rows = rows;
        if bias {
            self.add(&format!("{source}.bias"), &format!("{name}.bias"), &shape[..1]).rows = rows;
        }
    }

    fn layer(&mut self, layer: usize) -> Result<(), GgufProblem> {
        let hparams = self.hparams;
        let architecture = hparams.architecture;
        let (from, to) = (format!("blk.{layer}"), format!("model.layers.{layer}"));
        let (h, d) = (hparams.hidden_size, hparams.head_dim);
        let q = hparams.num_attention_heads.checked_mul(d);
        let q = q.ok_or_else(|| GgufProblem::field("attention.key_length", "a head width", d))?;
        let kv = hparams.num_key_value_heads * d;
        for (source, name) in architecture.norms {
            self.norm(&format!("{from}.{source}.weight"), &format!("{to}.{name}.weight"), h);
        }
        let widths = match architecture.qk_norm {
            QkNorm::Never => None,
            QkNorm::Head => Some([d, d]),
            QkNorm::Token => Some([q, kv]),
        };
        for (part, width) in ["q", "k"].into_iter().zip(widths.into_iter().flatten()) {
            let name = format!("{to}.self_attn.{part}_norm.weight");
            self.norm(&format!("{from}.attn_{part}_norm.weight"), &name, width);
        }
        let [qkv_bias, output_bias, _] = hparams.biases;
        let rotary = if architecture.permuted { RowOrder::Rotary { head_dim: d } } else { RowOrder::Same };
        if architecture.fused {
            let n = q + 2 * kv;
            let (source, name) = (format!("{from}.attn_qkv"), format!("{to}.self_attn.qkv_proj"));
            self.linear(&source, &name, [n, h], RowOrder::Same, false);
        } else {
            for (part, n, rows) in [("q", q, rotary), ("k", kv, rotary), ("v", kv, RowOrder::Same)] {
                let (source, name) = (format!("{from}.attn_{part}"), format!("{to}.self_attn.{part}_proj"));
                self.linear(&source, &name, [n, h], rows, qkv_bias);
            }
        }
        let (source, name) = (format!("{from}.attn_output"), format!("{to}.self_attn.o_proj"));
        self.linear(&source, &name, [h, q], RowOrder::Same, output_bias);
        match hparams.experts {
            Some(counts) => self.experts(&from, &to, counts),
            None => self.mlp(&from, "", &format!("{to}.mlp"), hparams.intermediate_size),
        }
        Ok(())
    }

    /// Gate, up and down projection; names in the file end with `suffix`.
    fn mlp(&mut self, from: &str, suffix: &str, to: &str, inner: usize) {
        let (h, [.., bias]) = (self.hparams.hidden_size, self.hparams.biases);
        let gate_up: &[(&str, &str, usize)] = if self.hparams.architecture.fused {
            &[("up", "gate_up_proj", 2)]
        } else {
            &[("gate", "gate_proj", 1), ("up", "up_proj", 1)]
        };
        for (source, name, count) in gate_up {
            let (source, name) = (format!("{from}.ffn_{source}{suffix}"), format!("{to}.{name}"));
            self.linear(&source, &name, [count * inner, h], RowOrder::Same, bias);
        }
        let (source, name) = (format!("{from}.ffn_down{suffix}"), format!("{to}.down_proj"));
        self.linear(&source, &name, [h, inner], RowOrder::Same, bias);
    }

    /// Router, stacks of experts, shared expert.
    fn experts(&mut self, from: &str, to: &str, counts: ExpertCounts) {
        let Some(names) = &self.hparams.architecture.experts else { return };
        let (h, block) = (self.hparams.hidden_size, format!("{to}.{}", names.block));
        let router = format!("{from}.ffn_gate_inp");
        self.linear(&router, &format!("{block}.gate"), [counts.count, h], RowOrder::Same, false);
        let shapes = [[counts.width, h], [counts.width, h], [h, counts.width]];
        for ((source, name), shape) in ["gate", "up", "down"].into_iter().zip(names.parts).zip(shapes) {
            let source = format!("{from}.ffn_{source}_exps.weight");
            for i in 0..counts.count {
                let name = format!("{block}.experts.{i}.{name}.weight");
                self.add(&source, &name, &shape).part = (i, counts.count);
            }
        }
        if let Some(width) = counts.shared_width {
            self.mlp(from, "_shexp", &format!("{block}.shared_expert"), width);
            let gate = format!("{from}.ffn_gate_inp_shexp");
            self.linear(&gate, &format!("{block}.shared_expert_gate"), [1, h], RowOrder::Same, false);
        }
    }
}

impl PlannedTensor {
    /// Its shape in the GGUF file; a dimension of 1 in front may be missing there.
    fn source_shape(&self) -> Vec<usize> {
        let (_, parts) = self.part;
        let stack = (parts > 1 || self.source.ends_with("_exps.weight")).then_some(parts);
        stack.into_iter().chain(self.shape.iter().copied()).collect()
    }
}

fn check(plan: &[PlannedTensor], gguf: &Gguf) -> Result<(), GgufProblem> {
    for planned in plan {
        let found = tensor(gguf, &planned.source)?;
        let expected = planned.source_shape();
        let squeezed = expected.strip_prefix(&[1]).unwrap_or(&expected);
        if found.shape != expected && found.shape != squeezed {
            let expected = format!("shape {expected:?}");
            return Err(GgufProblem::tensor(&planned.source, &expected, format_args!("{:?}", found.shape)));
        }
    }
    let known: std::collections::BTreeSet<&str> = plan.iter().map(|p| p.source.as_str()).collect();
    let read_elsewhere = [rope::FREQS, rope::LONG, rope::SHORT];
    match gguf.tensors.keys().find(|n| !known.contains(n.as_str()) && !read_elsewhere.contains(&n.as_str())) {
        None => Ok(()),
        Some(extra) => Err(GgufProblem::unsupported(
            &format!("tensor {}", super::super::header::shown(extra)),
            "only the tensors of the architecture",
            "an additional tensor",
        )),
    }
}
