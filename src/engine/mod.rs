//! Layer 5: batching, prefix sharing, scoring, generation.
