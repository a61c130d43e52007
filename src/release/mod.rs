//! Layer 9: the conductor.
