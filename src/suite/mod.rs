//! Layer 6: suites: tasks, prompts, data sets.
