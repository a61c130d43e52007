//! Layer 5: stage 1: a recipe applied to a checkpoint.
