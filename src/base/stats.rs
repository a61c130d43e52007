//! Statistics of paired comparisons: pure functions, each with its source.
