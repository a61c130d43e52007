//! Layer 3: one operation a file, with its reference and the test that compares them.
