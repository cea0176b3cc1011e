//! Names to keys: the operator's template, and what may stand in it.

use loraplex_plugin_sdk::ResolveError;

const LORA_NAME: &str = "{lora_name}";
const BASE_MODEL: &str = "{base_model}";
/// Bytes of a name at most.
const MAX_NAME: usize = 256;
/// Bytes of a key at most, with room for a file's name below it: S3's own limit is 1,024.
const MAX_KEY: usize = 960;

/// Where adapters lie: `s3://bucket/prefix/{lora_name}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    pub(crate) scheme: String,
    pub(crate) bucket: String,
    /// Of an adapter's folder, with the placeholders.
    key: String,
}

impl Template {
    pub(crate) fn parse(uri: &str) -> Result<Self, ResolveError> {
        let refuse = |why: &str| {
            Err(ResolveError::invalid(format!(
                "LORA_RESOLVER_S3_URI {uri:?} {why}; it is such as s3://bucket/prefix/{LORA_NAME}"
            )))
        };
        let Some((scheme, rest)) = uri.split_once("://") else { return refuse("has no scheme") };
        let Some((bucket, key)) = rest.split_once('/') else {
            return refuse("has no key after its bucket");
        };
        let fits = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if bucket.is_empty() || !bucket.chars().all(fits) {
            return refuse("names no bucket");
        }
        let key = key.strip_suffix('/').unwrap_or(key);
        if !key.contains(LORA_NAME) {
            return refuse("does not hold {lora_name}");
        }
        let plain = key.replace(LORA_NAME, "x").replace(BASE_MODEL, "x");
        if plain.contains(['{', '}']) {
            return refuse("holds a placeholder other than {lora_name} and {base_model}");
        }
        if !is_plain(&plain, MAX_KEY) {
            return refuse("has an empty segment, one of dots, or one of the characters \\ % ? #");
        }
        let (scheme, bucket) = (scheme.to_owned(), bucket.to_owned());
        Ok(Self { scheme, bucket, key: key.to_owned() })
    }

    /// The key of an adapter's folder; `None` for a name that no adapter has.
    pub(crate) fn key(&self, base: &str, name: &str) -> Result<Option<String>, ResolveError> {
        if !is_plain(name, MAX_NAME) {
            return Ok(None);
        }
        // The base first: a name is not looked into for placeholders.
        let mut key = String::new();
        for (i, part) in self.key.split(LORA_NAME).enumerate() {
            if i > 0 {
                key.push_str(name);
            }
            key.push_str(&part.replace(BASE_MODEL, base.trim_matches('/')));
        }
        let names_base = self.key.contains(BASE_MODEL);
        if names_base && !is_plain(base.trim_matches('/'), MAX_KEY) {
            return Err(ResolveError::invalid(format!(
                "the base model's name {base:?} cannot be part of a key: set --served-model-name, or leave {BASE_MODEL} out of LORA_RESOLVER_S3_URI"
            )));
        }
        Ok(is_plain(&key, MAX_KEY).then_some(key))
    }
}

/// Whether a text is made of plain segments, each of which is itself in a key, in a path and in an address.
fn is_plain(text: &str, max: usize) -> bool {
    text.len() <= max
        && !text.contains(['\\', '%', '?', '#'])
        && !text.chars().any(char::is_control)
        && text.split('/').all(|segment| !["", ".", ".."].contains(&segment))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(uri: &str, base: &str, name: &str) -> Option<String> {
        Template::parse(uri).unwrap().key(base, name).unwrap()
    }

    #[test]
    fn a_name_is_a_key_below_the_prefix() {
        for (uri, base, name, expected) in [
            ("s3://b/{lora_name}", "m", "a", "a"),
            ("s3://b/p/q/{lora_name}/", "m", "team/a", "p/q/team/a"),
            ("s3://b/{base_model}/{lora_name}", "org/m", "a", "org/m/a"),
            ("s3://b/{base_model}/{lora_name}", "/models/m", "a", "models/m/a"),
            ("s3://b/lora-{lora_name}/v1", "m", "a/b", "lora-a/b/v1"),
            ("s3://b/p/{lora_name}", "m", "{base_model}", "p/{base_model}"),
            ("s3://b/{lora_name}/{lora_name}", "m", "{lora_name}", "{lora_name}/{lora_name}"),
        ] {
            assert_eq!(key(uri, base, name).as_deref(), Some(expected), "{uri} {name}");
        }
    }

    #[test]
    fn no_name_leaves_the_prefix() {
        for name in [
            "", "/", "..", ".", "../x", "a/..", "a/./b", "a//b", "/a", "a/", "a\\b", "a\0", "a\n",
            "%2e%2e/x", "..%2fx", "a?x", "a#x", "a\u{7f}", "a\u{85}",
        ] {
            assert_eq!(key("s3://b/p/{lora_name}", "m", name), None, "{name:?}");
        }
        assert_eq!(key("s3://b/.{lora_name}/x", "m", ".a"), Some("..a/x".into()));
        assert_eq!(key("s3://b/p/{lora_name}", "m", &"x".repeat(257)), None);
    }

    #[test]
    fn a_template_that_cannot_work_says_why() {
        for (uri, part) in [
            ("bucket/{lora_name}", "no scheme"),
            ("s3://bucket", "no key"),
            ("s3:///{lora_name}", "names no bucket"),
            ("s3://user:secret@b/{lora_name}", "names no bucket"),
            ("s3://b/p", "does not hold {lora_name}"),
            ("s3://b/{name}/{lora_name}", "a placeholder other than"),
            ("s3://b//{lora_name}", "an empty segment"),
            ("s3://b/../{lora_name}", "an empty segment"),
        ] {
            let error = Template::parse(uri).unwrap_err();
            assert!(error.message.contains(part), "{error}");
        }
        let template = Template::parse("s3://b/{base_model}/{lora_name}").unwrap();
        let error = template.key("a/../b", "x").unwrap_err();
        assert!(error.message.contains("--served-model-name"), "{error}");
    }
}
