//! Layer 9: Markdown for people.
