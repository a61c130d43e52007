//! Absmax calibration: samples go through the model as it is, and the largest magnitude of what goes into each linear
//! module is kept. Nothing is quantized meanwhile that the checkpoint does not quantize itself, as in ModelOpt, and in
//! llm-compressor's `basic` pipeline; its observer `static_minmax` keeps the same magnitude. `tests/oracle/calibrated_scales.py`
//! compares with it.

use super::error::{EngineError, RequestError};
use super::run::Engine;
use crate::model::RaggedBatch;
use crate::model::decoder::Workspace;
use crate::ops::attention::{Segment, Sequence, Source, tiles_for};
use crate::record::calibration::ObservedInputs;

impl Engine {
    /// Runs samples, each on its own from position 0, and returns what went into the linear modules. `progress` is called
    /// with numbers of tokens done.
    pub fn observe_inputs(
        &self,
        samples: &[Vec<u32>],
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<ObservedInputs, EngineError> {
        for (index, sample) in samples.iter().enumerate() {
            let checked = if sample.is_empty() {
                Err(RequestError::Empty)
            } else {
                self.check_tokens(sample, sample.len())
            };
            checked.map_err(|source| EngineError::Request { index, source })?;
        }
        let host = self.host.as_ref().ok_or(EngineError::NotOnDevice { what: "calibration" })?;
        let decoder = &host.decoder;
        decoder.observe_inputs(true);
        host.pool.install(|| {
            let (mut cache, mut work) = (decoder.new_cache(), Workspace::default());
            let mut rest = samples;
            while !rest.is_empty() {
                let (batch, taken) = self.whole_samples(rest);
                decoder.forward(&batch, &mut cache, &mut work);
                progress(batch.tokens.len());
                rest = &rest[taken..];
            }
        });
        decoder.observe_inputs(false);
        let mut seen = ObservedInputs {
            samples: samples.len(),
            tokens: samples.iter().map(Vec::len).sum(),
            ..ObservedInputs::default()
        };
        for (module, amax) in decoder.take_input_amax() {
            match amax {
                None => drop(seen.unseen.insert(module)),
                Some(amax) if amax.is_finite() => drop(seen.amax.insert(module, amax)),
                Some(_) => seen.not_finite = seen.not_finite.or(Some(module)),
            }
        }
        Ok(seen)
    }

    /// The first samples that fit a batch, at least one; and how many they are. Every row is computed to the end.
    fn whole_samples(&self, samples: &[Vec<u32>]) -> (RaggedBatch, usize) {
        let is_long = |sample: &[u32]| self.config().is_long_input(sample.len());
        let mut batch = RaggedBatch { long: is_long(&samples[0]), ..RaggedBatch::default() };
        let (mut tiles, mut taken) = (0, 0);
        for sample in samples {
            let (first_row, len) = (batch.tokens.len(), sample.len());
            if taken > 0 && (first_row + len > self.max_batched_tokens || is_long(sample) != batch.long) {
                break;
            }
            batch.tokens.extend_from_slice(sample);
            batch.positions.extend(0..len as u32);
            batch.segments.push(Segment { source: Source::Batch, first_tile: tiles, first_row, len });
            batch.sequences.push(Sequence {
                rows: first_row..first_row + len,
                first_position: 0,
                first_tile: tiles,
                segments: taken..taken + 1,
            });
            tiles += tiles_for(len);
            taken += 1;
        }
        batch.logit_rows = (0..batch.tokens.len()).collect();
        (batch, taken)
    }
}
