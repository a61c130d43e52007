//! What a device was asked for, counted.

use std::ops::Sub;
use std::sync::atomic::{AtomicU64, Ordering};

/// How often a device was asked for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceCounts {
    /// Kernels, products, and recordings of any number of both.
    pub launches: u64,
    /// Copies and fills.
    pub copies: u64,
    /// Waits of the CPU for all work of a stream.
    pub waits: u64,
    /// Memory that was taken or given back.
    pub allocations: u64,
}

impl Sub for DeviceCounts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            launches: self.launches - before.launches,
            copies: self.copies - before.copies,
            waits: self.waits - before.waits,
            allocations: self.allocations - before.allocations,
        }
    }
}

/// One thing that a device is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asked {
    Launch,
    Copy,
    Wait,
    Allocation,
}

/// Counts as they grow.
#[derive(Default)]
pub(super) struct Counters([AtomicU64; 4]);

impl Counters {
    pub fn count(&self, asked: Asked) {
        self.0[asked as usize].fetch_add(1, Ordering::AcqRel);
    }

    pub fn get(&self) -> DeviceCounts {
        let of = |asked: Asked| self.0[asked as usize].load(Ordering::Acquire);
        DeviceCounts {
            launches: of(Asked::Launch),
            copies: of(Asked::Copy),
            waits: of(Asked::Wait),
            allocations: of(Asked::Allocation),
        }
    }
}
