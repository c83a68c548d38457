//! Checks and fixes for the whole workspace.
fn main() {}
