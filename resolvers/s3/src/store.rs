//! The store of a scheme: `s3://` always, `gs://` and `az://` where they are built in.

use std::str::FromStr;
use std::sync::Arc;

use loraplex_plugin_sdk::ResolveError;
use object_store::aws::AmazonS3Builder;
use object_store::{ObjectStore, RetryConfig};

use crate::names::Template;
use crate::settings::Limits;
use crate::transport::Transport;

/// A bucket.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) objects: Arc<dyn ObjectStore>,
    /// What tells it from every other: an entry of the cache belongs to one.
    pub(crate) identity: String,
}

/// Opens the bucket of `template`; `vars` is the environment.
pub(crate) fn open(
    template: &Template,
    vars: &[(String, String)],
    limits: &Limits,
) -> Result<Store, ResolveError> {
    let transport = Transport::new(limits)
        .map_err(|error| ResolveError::invalid(format!("no HTTP client: {error}")))?;
    match template.scheme.as_str() {
        "s3" | "s3a" => s3(&template.bucket, vars, transport),
        "gs" => crate::gs::open(&template.bucket, vars, transport),
        "az" => crate::az::open(&template.bucket, vars, transport),
        other => Err(ResolveError::invalid(format!(
            "LORA_RESOLVER_S3_URI has the scheme {other}; s3, gs and az are known"
        ))),
    }
}

fn s3(
    bucket: &str,
    vars: &[(String, String)],
    transport: Transport,
) -> Result<Store, ResolveError> {
    let mut builder = AmazonS3Builder::new();
    let set = |wanted: &str| {
        vars.iter()
            .find(|(name, value)| name == wanted && !value.is_empty())
            .map(|(_, value)| value)
    };
    for (key, value) in options(vars, "AWS_").filter(|(_, value)| !value.is_empty()) {
        builder = builder.with_config(key, value);
    }
    // Not echoed: it may hold a password.
    let mut endpoint = String::new();
    let names = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];
    if let Some((name, value)) = names.iter().find_map(|name| Some((name, set(name)?))) {
        let url = reqwest::Url::parse(value).ok();
        let url = url.filter(|url| ["http", "https"].contains(&url.scheme()) && url.has_host());
        let url = url.ok_or_else(|| {
            ResolveError::invalid(format!("{name} is no http(s) address, such as http://host:9000"))
        })?;
        endpoint = format!("{}{}", url.origin().ascii_serialization(), url.path());
    }
    let built = builder
        .with_bucket_name(bucket)
        .with_allow_http(true)
        .with_retry(no_retries())
        .with_http_connector(transport)
        .build();
    let objects = built.map_err(|error| ResolveError::invalid(format!("AWS_*: {error}")))?;
    let identity = format!("s3://{bucket} {}", endpoint.trim_end_matches('/'));
    Ok(Store { objects: Arc::new(objects), identity })
}

/// The options of a store's client among the variables that start with `prefix`; other tools' start so too.
pub(crate) fn options<'a, K: FromStr>(
    vars: &'a [(String, String)],
    prefix: &str,
) -> impl Iterator<Item = (K, &'a str)> {
    let own = vars.iter().filter(move |(name, _)| name.starts_with(prefix));
    own.filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value.as_str())))
}

/// This crate tries again itself, since it knows how far it was.
pub(crate) fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}
