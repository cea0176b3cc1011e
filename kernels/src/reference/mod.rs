//! The definition of every operation: plain loops in f32, written to be read.
