//! Architectures over a backend, and the checkpoints that they are read from.
