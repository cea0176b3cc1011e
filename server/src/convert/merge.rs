//! Bodies with `sampling_params` say how a call is served in two places: clients of `/v1/completions` know only one level.

use crate::error::{ApiError, ApiResult};
use crate::openai::call::CallFields;

impl CallFields {
    /// What the body says, and what its `sampling_params` say where the body is silent. Both may say the same.
    pub(super) fn merge(self, params: Self) -> ApiResult<Self> {
        Ok(Self {
            model: either("model", self.model, params.model)?,
            cache_salt: either("cache_salt", self.cache_salt, params.cache_salt)?,
            priority: either("priority", self.priority, params.priority)?,
            request_id: either("request_id", self.request_id, params.request_id)?,
            lora_update_policy: either(
                "lora_update_policy",
                self.lora_update_policy,
                params.lora_update_policy,
            )?,
            return_weight_versions: either(
                "return_weight_versions",
                self.return_weight_versions,
                params.return_weight_versions,
            )?,
            min_generation: either("min_generation", self.min_generation, params.min_generation)?,
            min_policy_version: either(
                "min_policy_version",
                self.min_policy_version,
                params.min_policy_version,
            )?,
            stream: either("stream", self.stream, params.stream)?,
            stream_options: either("stream_options", self.stream_options, params.stream_options)?,
        })
    }
}

fn either<T: PartialEq>(
    field: &'static str,
    body: Option<T>,
    params: Option<T>,
) -> ApiResult<Option<T>> {
    match (body, params) {
        (Some(body), Some(params)) if body != params => Err(ApiError::param(
            field,
            format!("`{field}` differs between the body and its `sampling_params`"),
        )),
        (body, params) => Ok(body.or(params)),
    }
}
