//! Layer 2: what this machine can compute on: CPU features, GPU probe.
