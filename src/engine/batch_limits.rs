//! How much one device computes at once, and less where its memory turns out to be too small.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::error::EngineError;
use crate::base::progress;
use crate::base::units::human_bytes;
use crate::device::cuda::CudaError;

/// Fewest rows that a batch is cut down to: those of a small model are a few megabytes.
pub(super) const FEWEST_ROWS: usize = 256;

/// A batch for which a device has no memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct FullBatch {
    /// Rows of the batch.
    pub rows: usize,
    /// Memory of the cache that it began with; `None` where nothing was computed before it with this session, so that it had
    /// the device's memory to itself.
    pub held_bytes: Option<usize>,
    /// Memory of keys and values of the longest prompt.
    pub prompt_bytes: usize,
}

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

    /// Less than what found no memory, to be tried with an empty cache. Where a cache was held, less of it; rows only where
    /// there was none. The cache keeps what one prompt needs.
    ///
    /// # Errors
    /// Where the smallest batch had no cache beside it.
    pub fn shrink(&self, batch: FullBatch, full: CudaError) -> Result<(), EngineError> {
        let FullBatch { rows, held_bytes, prompt_bytes } = batch;
        let less = |bytes: usize| (bytes / 2).max(prompt_bytes);
        if let Some(held) = held_bytes {
            let kept = less(held.min(self.cache_bytes()));
            self.cache_bytes.fetch_min(kept, Ordering::Relaxed);
            let kept = human_bytes(self.cache_bytes() as u64);
            progress::note(&format!("{full}; going on with {kept} of keys and values of other prompts"));
            return Ok(());
        }
        let Some(fewer) = self.fewer_rows(rows) else {
            return Err(EngineError::BatchMemory { rows, full });
        };
        self.cache_bytes.fetch_min(less(self.cache_bytes()), Ordering::Relaxed);
        progress::note(&format!("{full}; going on with batches of {fewer} rows"));
        Ok(())
    }

    /// Halves the rows of a batch after one of `rows` rows found no memory: how many are left; `None` where there are no
    /// fewer.
    pub fn fewer_rows(&self, rows: usize) -> Option<usize> {
        let limit = rows.min(self.rows());
        let fewer = (limit / 2).max(FEWEST_ROWS);
        if limit <= FEWEST_ROWS {
            return None;
        }
        self.rows.fetch_min(fewer, Ordering::Relaxed);
        Some(fewer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Classified;

    fn full() -> CudaError {
        CudaError::OutOfMemory { ordinal: 0, call: "cuMemAlloc", bytes: 10, free: 5, total: 100 }
    }

    fn alone(rows: usize, prompt_bytes: usize) -> FullBatch {
        FullBatch { rows, held_bytes: None, prompt_bytes }
    }

    /// Batches beside a cache that was held leave the rows as they are, even the smallest.
    #[test]
    fn what_is_held_goes_before_rows_do() {
        let limits = BatchLimits::new(3000, 1000);
        let beside = |held: usize| FullBatch { rows: 10, held_bytes: Some(held), prompt_bytes: 100 };
        for (held, left) in [(2000, 500), (400, 200), (1000, 100), (50, 100), (0, 100)] {
            limits.shrink(beside(held), full()).unwrap();
            assert_eq!((limits.rows(), limits.cache_bytes()), (3000, left));
        }
        assert!(limits.shrink(alone(10, 100), full()).is_err());
        assert_eq!((limits.rows(), limits.cache_bytes()), (3000, 100));
    }

    #[test]
    fn rows_are_halved_down_to_the_fewest() {
        let limits = BatchLimits::new(3000, 1000);
        limits.shrink(alone(2000, 300), full()).unwrap();
        assert_eq!((limits.rows(), limits.cache_bytes()), (1000, 500));
        // A batch may be longer than allowed, where one prompt has to be.
        limits.shrink(alone(5000, 300), full()).unwrap();
        assert_eq!((limits.rows(), limits.cache_bytes()), (500, 300));
        limits.shrink(alone(300, 2000), full()).unwrap();
        assert_eq!((limits.rows(), limits.cache_bytes()), (FEWEST_ROWS, 300));
        let error = limits.shrink(alone(5000, 300), full()).unwrap_err();
        let message = error.to_string();
        assert!(message.starts_with("not even a batch of 5000 rows fits: cuda:0 has no"), "{message}");
        assert!(message.ends_with("; use another device, or --device cpu"), "{message}");
        assert!(error.hint().unwrap().contains("nvidia-smi"));
        assert_eq!(limits.rows(), FEWEST_ROWS);
    }
}
