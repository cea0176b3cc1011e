//! A failure.

use serde::Serialize;
use utoipa::ToSchema;

/// Body of every failure.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ErrorResponse {
    /// The failure.
    pub error: ErrorBody,
}

/// What failed.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ErrorBody {
    /// For people.
    pub message: String,
    /// For programs.
    #[serde(rename = "type")]
    pub kind: String,
    /// The field at fault, if one is.
    pub param: Option<String>,
    /// The status, or a word that says more.
    pub code: ErrorCode,
}

/// The status, or a word that says more: `adapter_source_gated`.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(untagged)]
pub enum ErrorCode {
    /// The HTTP status.
    Status(u16),
    /// A word.
    Word(String),
}
