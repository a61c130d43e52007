//! A zero-initialized f32 array aligned to a cache line, so that no vector load crosses two lines.

use std::ops::{Deref, DerefMut};

/// Floats per cache line.
const LANES: usize = 16;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// Aligned floats. Behind the last one lies slack for vector kernels that read whole lines.
#[derive(Clone, Default)]
pub struct Buffer {
    lines: Vec<Line>,
    len: usize,
}

impl Buffer {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        let mut buffer = Self::default();
        buffer.resize(len);
        buffer
    }

    /// Sets the length. New floats are 0; those kept are unchanged.
    pub fn resize(&mut self, len: usize) {
        if len < self.len {
            self[len..].fill(0.0);
        }
        // Two lines of slack: the widest panel is two lines.
        self.lines.resize(len.div_ceil(LANES) + 2, Line([0.0; LANES]));
        self.len = len;
    }

    /// Sets the length to at least `len`, leaving whatever was there.
    pub fn ensure(&mut self, len: usize) {
        if len > self.len {
            self.resize(len);
        }
    }

    /// Start of the floats; [`Self::readable`] of them may be read.
    pub fn as_ptr(&self) -> *const f32 {
        self.lines.as_ptr().cast()
    }

    /// Floats that may be read from [`Self::as_ptr`], slack included.
    pub fn readable(&self) -> usize {
        self.lines.len() * LANES
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: `lines` holds at least `len` initialized floats (`resize`), contiguous by `repr(C)`; for an empty
        // buffer the pointer is dangling but aligned, and the length is 0.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_again_gives_zeros() {
        let mut b = Buffer::zeros(40);
        b.fill(1.0);
        b.resize(3);
        b.resize(40);
        assert_eq!(&b[..3], &[1.0; 3]);
        assert!(b[3..].iter().all(|x| *x == 0.0));
        assert_eq!(b.as_ptr() as usize % 64, 0);
        assert!(Buffer::default().is_empty());
    }
}
