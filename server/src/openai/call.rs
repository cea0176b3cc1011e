//! Fields of every generating route that say how a call is served, not how its tokens are drawn.

use serde::Deserialize;
use utoipa::ToSchema;

use super::usage::StreamOptions;
use crate::object::optional;

/// How a call is served; every generating route has these fields.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct CallFields {
    /// A served name of the base, or an adapter's name; the base when left out.
    pub model: Option<String>,
    /// Cached prefixes are shared only under the same salt.
    pub cache_salt: Option<String>,
    /// Lower runs earlier.
    pub priority: Option<i64>,
    /// The call's id, in place of one that the server makes; the header `X-Request-Id` goes before it.
    pub request_id: Option<String>,
    /// What happens when the adapter is replaced before the output ends: `pin` finishes on the weights that it started
    /// with, `follow` takes the new ones at the next token.
    pub lora_update_policy: Option<String>,
    /// Report which generation of the adapter drew which tokens.
    pub return_weight_versions: Option<bool>,
    /// Wait for this generation of the adapter or a newer one, for as long as a request waits for room.
    pub min_generation: Option<i64>,
    /// Wait for this policy version of the adapter or a newer one.
    pub min_policy_version: Option<i64>,
    /// Answer in server-sent events.
    pub stream: Option<bool>,
    /// What a stream tells beside its text.
    #[serde(default, deserialize_with = "optional")]
    pub stream_options: Option<StreamOptions>,
}
