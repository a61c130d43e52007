//! A zero-initialized f32 array aligned to a cache line, so that no vector load crosses two lines.

use std::cell::RefCell;
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
        let lines = len.div_ceil(LANES) + 2;
        if lines > self.lines.capacity() {
            self.lines.reserve_exact(lines - self.lines.len());
            advise_huge_pages(self.lines.as_ptr().cast(), self.lines.capacity() * size_of::<Line>());
        }
        self.lines.resize(lines, Line([0.0; LANES]));
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

    /// The same memory as numbers of 4 bytes that hold what kernels of narrower types read.
    pub fn units(&self) -> &[u32] {
        // SAFETY: as in `deref`; every f32 is a u32 of the same size and alignment.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    /// As [`Self::units`], to write.
    pub fn units_mut(&mut self) -> &mut [u32] {
        // SAFETY: as in `units`, and `self` is borrowed mutably; every u32 is an f32.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }

    /// Floats that may be read from [`Self::as_ptr`], slack included.
    pub fn readable(&self) -> usize {
        self.lines.len() * LANES
    }
}

/// Asks for large pages: tiles of a matrix lie in more small pages than the CPU keeps translations of.
#[cfg(target_os = "linux")]
fn advise_huge_pages(start: *const u8, bytes: usize) {
    const HUGE: usize = 2 << 20;
    let first = (start as usize).next_multiple_of(HUGE);
    let end = (start as usize + bytes) / HUGE * HUGE;
    if first < end {
        // SAFETY: the range lies within memory that this process has allocated; advice changes no contents. A system that
        // does not take it leaves small pages.
        unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_start: *const u8, _bytes: usize) {}

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

thread_local! {
    /// Memory of arrays made before on this thread: a layer holds two or three at a time.
    static SPARE: RefCell<Vec<Buffer>> = RefCell::default();
}

/// An array of what an op hands to the next, whose memory serves the thread again.
#[derive(Default)]
pub(super) struct Scratch(Buffer);

impl Scratch {
    /// At least `len` floats, of whatever was there.
    pub fn of(len: usize) -> Self {
        let mut buffer = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        buffer.ensure(len);
        Self(buffer)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        const KEPT: usize = 4;
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < KEPT {
                spare.push(std::mem::take(&mut self.0));
            }
        });
    }
}

impl Deref for Scratch {
    type Target = Buffer;
    fn deref(&self) -> &Buffer {
        &self.0
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut Buffer {
        &mut self.0
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
