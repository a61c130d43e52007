//! The `day0` command.
fn main() {}
