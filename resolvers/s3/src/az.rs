//! Azure's store, by `AZURE_*`: the bucket is a container of the account.

use std::sync::Arc;

use loraplex_plugin_sdk::ResolveError;
use object_store::azure::MicrosoftAzureBuilder;

use crate::store::{Store, no_retries, options};
use crate::transport::Transport;

pub(crate) fn open(
    bucket: &str,
    vars: &[(String, String)],
    transport: Transport,
) -> Result<Store, ResolveError> {
    let mut builder = MicrosoftAzureBuilder::new();
    for (key, value) in options(vars, "AZURE_") {
        builder = builder.with_config(key, value);
    }
    let account = vars.iter().rfind(|(name, _)| name == "AZURE_STORAGE_ACCOUNT_NAME");
    let account = account.map_or("", |(_, value)| value);
    let built = builder
        .with_container_name(bucket)
        .with_retry(no_retries())
        .with_http_connector(transport)
        .build();
    let objects = built.map_err(|error| ResolveError::invalid(format!("AZURE_*: {error}")))?;
    Ok(Store { objects: Arc::new(objects), identity: format!("az://{account}/{bucket}") })
}
