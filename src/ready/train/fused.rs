//! Differentiable operations that touch each element once.
//!
//! candle's own fused norms, rotary embeddings and softmax have no backward pass, and composed from
//! elementwise operations they cost more than the matrix products of a model this small.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<f32>()?[from..to]),
        None => bail!("a fused operation needs contiguous input"),
    }
}

fn values(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all()?.to_vec1()
}

fn like(data: Vec<f32>, x: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(data, x.shape(), x.device())
}

fn result(data: Vec<f32>, layout: &Layout) -> (CpuStorage, Shape) {
    (CpuStorage::F32(data), layout.shape().clone())
}

/// `y = x / sqrt(mean(x²) + eps) · weight` over rows; x `[N, C]`, weight `[C]`.
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f32,
}

impl RmsNorm {
    fn inverse_rms(&self, row: &[f32]) -> f32 {
        let mean = row.iter().map(|v| v * v).sum::<f32>() / row.len() as f32;
        (mean + self.eps).sqrt().recip()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (slice(s1, l1)?, slice(s2, l2)?);
        let mut y = Vec::with_capacity(x.len());
        for row in x.chunks_exact(weight.len()) {
            let r = self.inverse_rms(row);
            y.extend(row.iter().zip(weight).map(|(v, w)| v * r * w));
        }
        Ok(result(y, l1))
    }

    /// With n = x·r: dx = r · (g·w − n · mean(g·w·n)), dw = Σ g·n.
    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (xs, ws, gs) = (values(x)?, values(w)?, values(g)?);
        let c = ws.len();
        let (mut dx, mut dw) = (Vec::with_capacity(xs.len()), vec![0.0; c]);
        for (row, grad) in xs.chunks_exact(c).zip(gs.chunks_exact(c)) {
            let r = self.inverse_rms(row);
            let mut dot = 0.0;
            for i in 0..c {
                let gn = grad[i] * row[i] * r;
                dot += gn * ws[i];
                dw[i] += gn;
            }
            let mean = dot / c as f32;
            dx.extend((0..c).map(|i| r * (grad[i] * ws[i] - row[i] * r * mean)));
        }
        Ok((Some(like(dx, x)?), Some(like(dw, w)?)))
    }
}

/// `y = silu(gate) · up`, all of one shape.
pub struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (slice(s1, l1)?, slice(s2, l2)?);
        let y = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        Ok(result(y, l1))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (mut gate, mut up, grad) = (values(a)?, values(b)?, values(g)?);
        for ((gate, up), d) in gate.iter_mut().zip(&mut up).zip(&grad) {
            let s = 1.0 / (1.0 + (-*gate).exp());
            let silu = *gate * s;
            *gate = d * *up * (s + silu * (1.0 - s));
            *up = d * silu;
        }
        Ok((Some(like(gate, a)?), Some(like(up, b)?)))
    }
}

/// Rotary embedding in Hugging Face's layout (`rotate_half`): dimension i turns with i + D/2.
#[derive(Clone)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f32,
    /// −1 turns back, which is the gradient.
    pub sign: f32,
}

impl Rope {
    /// x is `[…, T, D]`; row t turns by angle t · theta^(−2i/D).
    fn turn(&self, x: &[f32], t: usize, d: usize) -> Vec<f32> {
        let half = d / 2;
        let angle = |row: usize, i: usize| row as f32 * self.theta.powf(-2.0 * i as f32 / d as f32);
        let table: Vec<(f32, f32)> = (0..t * half).map(|at| angle(at / half, at % half).sin_cos()).collect();
        let mut y = vec![0.0; x.len()];
        for (row, (from, to)) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).enumerate() {
            let turns = &table[row % t * half..][..half];
            for (i, &(sin, cos)) in turns.iter().enumerate() {
                let (a, b, sin) = (from[i], from[i + half], sin * self.sign);
                to[i] = a * cos - b * sin;
                to[i + half] = b * cos + a * sin;
            }
        }
        y
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let dims = layout.dims();
        let (t, d) = (dims[dims.len() - 2], dims[dims.len() - 1]);
        Ok(result(self.turn(slice(storage, layout)?, t, d), layout))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let back = Self { sign: -self.sign, ..self.clone() };
        Ok(Some(g.contiguous()?.apply_op1(back)?))
    }
}

/// Softmax of `scale · x` over what each token may see; x is `[B, …, T]`, row r belongs to token r mod T.
///
/// A token sees itself and what came before it in its document.
pub struct CausalSoftmax {
    /// Multiplies the scores.
    pub scale: f32,
    /// `[B, T]`: where the document of each token starts in its row; empty if every row is one document.
    pub starts: Arc<[usize]>,
}

impl CausalSoftmax {
    /// Calls `f` with each row of `x` and the range its token sees.
    fn rows(&self, x: &mut [f32], dims: &[usize], mut f: impl FnMut(usize, &mut [f32], Range<usize>)) {
        let (b, t) = (dims[0], dims[dims.len() - 1]);
        let rows_per_sequence = x.len() / t / b;
        for (r, row) in x.chunks_exact_mut(t).enumerate() {
            let start = self.starts.get(r / rows_per_sequence * t + r % t).copied().unwrap_or(0);
            f(r, row, start..r % t + 1);
        }
    }
}

impl CustomOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = slice(storage, layout)?.to_vec();
        self.rows(&mut y, layout.dims(), |_, row, seen| {
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
            let row = &mut row[seen];
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for v in row.iter_mut() {
                *v = ((*v - max) * self.scale).exp();
                sum += *v;
            }
            for v in row {
                *v /= sum;
            }
        });
        Ok(result(y, layout))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let (y, mut grad) = (values(y)?, values(g)?);
        let t = x.dim(candle_core::D::Minus1)?;
        self.rows(&mut grad, x.dims(), |r, g, seen| {
            let p = &y[r * t..][..t];
            let dot: f32 = seen.clone().map(|i| p[i] * g[i]).sum();
            g[..seen.start].fill(0.0);
            g[seen.end..].fill(0.0);
            for i in seen {
                g[i] = self.scale * p[i] * (g[i] - dot);
            }
        });
        Ok(Some(like(grad, x)?))
    }
}

/// Mean negative log-likelihood of one target a row; logits `[N, V]`.
pub struct CrossEntropy {
    /// One class a row.
    pub targets: Vec<u32>,
}

/// A row's maximum and the logarithm of its sum of exponentials.
pub fn log_sum_exp(row: &[f32]) -> f32 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    max + row.iter().map(|v| (v - max).exp()).sum::<f32>().ln()
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let vocab = layout.dims()[1];
        let rows = slice(storage, layout)?.chunks_exact(vocab).zip(&self.targets);
        let total: f64 = rows.map(|(row, &t)| f64::from(log_sum_exp(row) - row[t as usize])).sum();
        let mean = (total / self.targets.len() as f64) as f32;
        Ok((CpuStorage::F32(vec![mean]), Shape::from(())))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let mut logits = values(x)?;
        let each = g.to_scalar::<f32>()? / self.targets.len() as f32;
        for (row, &t) in logits.chunks_exact_mut(x.dim(1)?).zip(&self.targets) {
            let lse = log_sum_exp(row);
            for v in row.iter_mut() {
                *v = (*v - lse).exp() * each;
            }
            row[t as usize] -= each;
        }
        Ok(Some(like(logits, x)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor, Var};

    use super::*;

    /// Compares the backward pass with central differences along one random direction.
    fn assert_gradient(dims: &[usize], f: impl Fn(&Tensor) -> Tensor) {
        let device = Device::Cpu;
        let n: usize = dims.iter().product();
        let wave = |k: f32| (0..n).map(|i| (i as f32 * k).sin()).collect::<Vec<f32>>();
        let x = Tensor::from_vec(wave(0.7), dims, &device).unwrap();
        let direction = Tensor::from_vec(wave(1.3), dims, &device).unwrap();
        // A fixed weighting, so that no gradient cancels in the sum.
        let loss = |x: &Tensor| {
            let y = f(x).flatten_all().unwrap();
            let weights: Vec<f32> = (0..y.elem_count()).map(|i| (i as f32 * 0.37).cos()).collect();
            (&y * Tensor::new(weights, &device).unwrap()).unwrap().sum_all().unwrap()
        };
        let var = Var::from_tensor(&x).unwrap();
        let grads = loss(var.as_tensor()).backward().unwrap();
        let grad = grads.get(&var).unwrap();
        let slope = (grad * &direction).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        let h = 1e-2;
        let at = |h: f64| loss(&(&x + (&direction * h).unwrap()).unwrap()).to_scalar::<f32>().unwrap();
        let measured = (at(h) - at(-h)) / (2.0 * h as f32);
        assert!((slope - measured).abs() <= 2e-3 * (1.0 + measured.abs()), "{slope} against {measured}");
    }

    #[test]
    fn gradients_match_differences() {
        let other = Tensor::arange(1f32, 9f32, &Device::Cpu).unwrap();
        assert_gradient(&[3, 8], |x| x.apply_op2(&other, RmsNorm { eps: 1e-5 }).unwrap());
        assert_gradient(&[8], |w| {
            let x = Tensor::arange(-9f32, 7f32, &Device::Cpu).unwrap().reshape((2, 8)).unwrap();
            x.apply_op2(w, RmsNorm { eps: 1e-5 }).unwrap()
        });
        assert_gradient(&[8], |x| x.apply_op2(&other, SwiGlu).unwrap());
        assert_gradient(&[8], |x| other.apply_op2(x, SwiGlu).unwrap());
        assert_gradient(&[2, 5, 8], |x| x.apply_op1(Rope { theta: 100.0, sign: 1.0 }).unwrap());
        for starts in [vec![], vec![0, 0, 2, 2, 2, 0, 1, 1, 3, 3]] {
            let softmax = || CausalSoftmax { scale: 0.5, starts: starts.clone().into() };
            assert_gradient(&[2, 3, 5, 5], |x| x.apply_op1(softmax()).unwrap());
        }
        assert_gradient(&[3, 6], |x| x.apply_op1(CrossEntropy { targets: vec![1, 5, 0] }).unwrap());
    }
}
