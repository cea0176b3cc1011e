//! Whole steps with a scripted runner.
