//! Integration tests, one binary.

mod train_tiny;
