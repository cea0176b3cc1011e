//! Arguments to configuration to server.
fn main() {}
