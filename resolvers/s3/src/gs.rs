//! Google's store, by `GOOGLE_*`.

use std::sync::Arc;

use loraplex_plugin_sdk::ResolveError;
use object_store::gcp::GoogleCloudStorageBuilder;

use crate::store::{Store, no_retries, options};
use crate::transport::Transport;

pub(crate) fn open(
    bucket: &str,
    vars: &[(String, String)],
    transport: Transport,
) -> Result<Store, ResolveError> {
    let mut builder = GoogleCloudStorageBuilder::new();
    for (key, value) in options(vars, "GOOGLE_") {
        builder = builder.with_config(key, value);
    }
    let built = builder
        .with_bucket_name(bucket)
        .with_retry(no_retries())
        .with_http_connector(transport)
        .build();
    let objects = built.map_err(|error| ResolveError::invalid(format!("GOOGLE_*: {error}")))?;
    Ok(Store { objects: Arc::new(objects), identity: format!("gs://{bucket}") })
}
