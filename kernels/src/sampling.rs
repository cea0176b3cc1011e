//! The definition of a draw.
