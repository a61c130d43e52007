//! Layer 8: pure decisions on records.
