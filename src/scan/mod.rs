//! Layer 5: the checkpoint verifier.
