//! Stands where a scheme is not built in.

use loraplex_plugin_sdk::ResolveError;

use crate::store::Store;
use crate::transport::Transport;

pub(crate) fn open(
    bucket: &str,
    _vars: &[(String, String)],
    _transport: Transport,
) -> Result<Store, ResolveError> {
    Err(ResolveError::invalid(format!(
        "LORA_RESOLVER_S3_URI names the bucket {bucket:?} of a store that is not built in: build lora_s3_resolver with --features gs,az"
    )))
}
