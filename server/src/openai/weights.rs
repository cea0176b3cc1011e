//! Which weights made which tokens.

use serde::Serialize;
use utoipa::ToSchema;

/// Neighbouring tokens of an output that one generation of its adapter drew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct WeightSpan {
    /// The adapter's generation; null is the base.
    pub generation: Option<u64>,
    /// The trainer's own version of it.
    pub policy_version: Option<u64>,
    /// Its first token, an index into the output's tokens.
    pub start: usize,
    /// The token after its last.
    pub end: usize,
}
