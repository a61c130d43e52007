//! The largest magnitude that goes into linear modules: absmax calibration. Off, it costs one load a product.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use rayon::prelude::*;

/// Elements in one task.
const CHUNK: usize = 1 << 14;
/// All bits of an f32 but the sign. As integers, magnitudes are ordered as numbers are, with infinity and NaN above all.
const MAGNITUDE: u32 = 0x7fff_ffff;

/// What was seen of the inputs of one group of linear modules.
#[derive(Debug, Default)]
pub(super) struct InputObserver {
    is_on: AtomicBool,
    rows: AtomicUsize,
    /// Bits of the largest magnitude.
    amax: AtomicU32,
}

impl InputObserver {
    /// Begins to look, or ends.
    pub fn set(&self, is_on: bool) {
        self.is_on.store(is_on, Ordering::Relaxed);
    }

    /// Whether it looks.
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Looks at `rows` inputs.
    pub fn see(&self, x: &[f32], rows: usize) {
        if !self.is_on() || rows == 0 {
            return;
        }
        let largest = |chunk: &[f32]| chunk.iter().map(|x| x.to_bits() & MAGNITUDE).max().unwrap_or(0);
        let bits = x.par_chunks(CHUNK).map(largest).max().unwrap_or(0);
        self.amax.fetch_max(bits, Ordering::Relaxed);
        self.rows.fetch_add(rows, Ordering::Relaxed);
    }

    /// max |x| since the last time it was taken, NaN or infinite if an input was; `None` if there was no input.
    pub fn take(&self) -> Option<f32> {
        let amax = self.amax.swap(0, Ordering::Relaxed);
        (self.rows.swap(0, Ordering::Relaxed) > 0).then(|| f32::from_bits(amax))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_magnitudes_only_while_it_is_on() {
        let observer = InputObserver::default();
        observer.see(&[9.0], 1);
        assert_eq!(observer.take(), None);
        observer.set(true);
        observer.see(&[1.0, -4.0, 0.5], 1);
        observer.see(&[0.0, 3.0, -0.0], 1);
        assert_eq!(observer.take(), Some(4.0));
        assert_eq!(observer.take(), None);
        observer.see(&[0.0], 1);
        assert_eq!(observer.take(), Some(0.0), "zeros are inputs");
        observer.see(&[f32::NEG_INFINITY, 1.0], 1);
        assert_eq!(observer.take(), Some(f32::INFINITY));
        observer.see(&[1e30, -f32::NAN, f32::INFINITY], 1);
        assert!(observer.take().unwrap().is_nan());
        let many: Vec<f32> = (0..3 * CHUNK).map(|i| -(i as f32)).collect();
        observer.see(&many, 3);
        assert_eq!(observer.take(), Some((3 * CHUNK - 1) as f32));
    }
}
