//! Products of 8-bit weights and activations: blocks of 32 neighbours in k share a scale on both sides.
//!
//! | module | holds |
//! |---|---|
//! | `pack` | weights in panels |
//! | `rows` | activations, rounded when a product begins |
//! | `dot` | the instructions that multiply bytes |
//! | `tile`, `strip` | the register tile over them; a strip of panels in tiles |
//!
//! The products of a block are summed in integers, exactly; blocks are summed in f32 in order of k. So an output does not
//! depend on how many rows or panels are computed together, nor, but for the rounding of a fused multiply-add, on the
//! instructions.

mod dot;
mod pack;
mod rows;
mod strip;
mod tile;

pub(crate) use dot::Dots;
pub(crate) use pack::{PackInt8, at, panel_bytes};
pub(crate) use rows::{Int8Input, Int8Rows, Source};
pub(crate) use tile::Int8Tile;

/// k's that a step of a tile takes: neighbours in each 32-bit lane.
const STEP: usize = 4;
