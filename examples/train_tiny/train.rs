//! The whole training with its progress lines.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Result, ensure};
use candle_core::Tensor;

use super::model::Model;
use super::trainer::{Schedule, Trainer};

/// Points of the loss curve.
const POINTS: usize = 40;

/// One point of the loss curve.
#[derive(Clone, Debug)]
pub struct Point {
    /// Steps done.
    pub step: usize,
    /// Tokens seen.
    pub tokens: usize,
    /// Mean loss in nats a token since the last point.
    pub loss: f64,
}

/// A finished run.
pub struct Trained {
    /// Weights by name, f32.
    pub weights: BTreeMap<String, Tensor>,
    /// The loss curve.
    pub curve: Vec<Point>,
    /// Wall-clock time.
    pub seconds: f64,
}

/// Trains to the end of the schedule; `progress` gets one line at a time, `look` describes the model so far.
pub fn train(
    mut trainer: Trainer<'_>,
    schedule: &Schedule,
    progress: &mut dyn FnMut(&str),
    look: &dyn Fn(&Model) -> Result<String>,
) -> Result<Trained> {
    let started = Instant::now();
    let every = schedule.steps.div_ceil(POINTS);
    let (mut curve, mut sum, mut count) = (Vec::new(), 0.0, 0);
    for step in 0..schedule.steps {
        let loss = trainer.step()?.loss;
        ensure!(loss.is_finite(), "the loss of step {step} is {loss}; lower --lr");
        sum += loss;
        count += 1;
        if (step + 1) % every == 0 || step + 1 == schedule.steps {
            let tokens = (step + 1) * schedule.batch * schedule.seq_len;
            let point = Point { step: step + 1, tokens, loss: sum / f64::from(count) };
            let seconds = started.elapsed().as_secs_f64();
            let left = seconds / (step + 1) as f64 * (schedule.steps - step - 1) as f64;
            progress(&format!(
                "step {}/{}  loss {:.4}  {:.0} tokens/s  {left:.0} s left  {}",
                point.step,
                schedule.steps,
                point.loss,
                tokens as f64 / seconds,
                look(trainer.model())?,
            ));
            curve.push(point);
            (sum, count) = (0.0, 0);
        }
    }
    Ok(Trained { weights: trainer.into_weights(), curve, seconds: started.elapsed().as_secs_f64() })
}
