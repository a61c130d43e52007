//! Pages of the key-value cache: 32 slots each, one key tile, counted by how many sequences use them.

use crate::ops::attention::{Segment, Source};
use crate::ops::microkernel::NR;

/// Slots of a page.
pub(super) const PAGE: usize = NR;

/// Hands out pages.
pub(super) struct PagePool {
    /// Uses of every page that was ever handed out.
    uses: Vec<u32>,
    free: Vec<usize>,
    capacity: usize,
}

/// A page of one sequence: its first `len` slots.
#[derive(Debug, Clone, Copy)]
pub(super) struct Page {
    pub index: usize,
    pub len: usize,
}

impl PagePool {
    pub fn new(capacity: usize) -> Self {
        Self { uses: Vec::new(), free: Vec::new(), capacity }
    }

    /// Pages that it has, used or not.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Pages that can still be taken.
    pub fn available(&self) -> usize {
        self.free.len() + self.capacity - self.uses.len()
    }

    /// Pages in use.
    pub fn used(&self) -> usize {
        self.uses.len() - self.free.len()
    }

    pub fn take(&mut self) -> Option<usize> {
        let page = self.free.pop().or_else(|| {
            (self.uses.len() < self.capacity).then(|| {
                self.uses.push(0);
                self.uses.len() - 1
            })
        })?;
        self.uses[page] = 1;
        Some(page)
    }

    /// Whether only one sequence uses this page, which alone may then write to it.
    pub fn is_exclusive(&self, page: usize) -> bool {
        self.uses[page] == 1
    }

    /// Another sequence uses these pages too.
    pub fn share(&mut self, pages: &[Page]) {
        for page in pages {
            self.uses[page.index] += 1;
        }
    }

    /// A sequence no longer uses these pages.
    pub fn release(&mut self, pages: &[Page]) {
        for page in pages {
            self.uses[page.index] -= 1;
            if self.uses[page.index] == 0 {
                self.free.push(page.index);
            }
        }
    }
}

/// The keys of a sequence: pages that follow each other in the cache are one segment.
pub(super) fn segments(pages: &[Page]) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    for page in pages {
        match segments.last_mut() {
            Some(last) if last.len % PAGE == 0 && last.first_tile + last.len / PAGE == page.index => {
                last.len += page.len;
            }
            _ => segments.push(Segment {
                source: Source::Cache,
                first_tile: page.index,
                first_row: page.index * PAGE,
                len: page.len,
            }),
        }
    }
    segments
}
