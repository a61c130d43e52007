//! How much one device computes at once, and less where its memory turns out to be too small.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::error::EngineError;
use crate::base::progress;
use crate::device::cuda::CudaError;

/// Fewest rows that a batch is cut down to: those of a small model are a few megabytes.
pub(super) const FEWEST_ROWS: usize = 256;

/// Limits of one device; calls that run at the same time share them.
pub(super) struct BatchLimits {
    rows: AtomicUsize,
    cache_bytes: AtomicUsize,
}

impl BatchLimits {
    pub fn new(rows: usize, cache_bytes: usize) -> Self {
        Self { rows: AtomicUsize::new(rows), cache_bytes: AtomicUsize::new(cache_bytes) }
    }

    /// Most rows of a batch.
    pub fn rows(&self) -> usize {
        self.rows.load(Ordering::Relaxed)
    }

    /// Memory of keys and values that are kept for other prompts.
    pub fn cache_bytes(&self) -> usize {
        self.cache_bytes.load(Ordering::Relaxed)
    }

    /// Halves both after a batch of `rows` rows found no memory; the cache keeps what one prompt needs, `prompt_bytes`.
    ///
    /// # Errors
    /// Where that was the smallest batch.
    pub fn shrink(&self, rows: usize, prompt_bytes: usize, full: CudaError) -> Result<(), EngineError> {
        let limit = rows.min(self.rows());
        if limit <= FEWEST_ROWS {
            return Err(EngineError::BatchMemory { rows, full });
        }
        let fewer = (limit / 2).max(FEWEST_ROWS);
        self.rows.fetch_min(fewer, Ordering::Relaxed);
        self.cache_bytes.fetch_min((self.cache_bytes() / 2).max(prompt_bytes), Ordering::Relaxed);
        progress::note(&format!("{full}; going on with batches of {fewer} rows instead of {limit}"));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Classified;

    fn full() -> CudaError {
        CudaError::OutOfMemory { ordinal: 0, bytes: 10, free: 5, total: 100 }
    }

    #[test]
    fn rows_are_halved_down_to_the_fewest() {
        let limits = BatchLimits::new(3000, 1000);
        limits.shrink(2000, 300, full()).unwrap();
        assert_eq!((limits.rows(), limits.cache_bytes()), (1000, 500));
        // A batch may be longer than allowed, where one prompt has to be.
        limits.shrink(5000, 300, full()).unwrap();
        assert_eq!((limits.rows(), limits.cache_bytes()), (500, 300));
        limits.shrink(300, 2000, full()).unwrap();
        assert_eq!((limits.rows(), limits.cache_bytes()), (FEWEST_ROWS, 300));
        let error = limits.shrink(5000, 300, full()).unwrap_err();
        let message = error.to_string();
        assert!(message.starts_with("not even a batch of 5000 rows fits: cuda:0 has no"), "{message}");
        assert!(message.ends_with("; use another device, or --device cpu"), "{message}");
        assert!(error.hint().unwrap().contains("nvidia-smi"));
        assert_eq!(limits.rows(), FEWEST_ROWS);
    }
}
