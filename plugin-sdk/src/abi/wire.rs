//! Requests, errors and changes as JSON. A field that the other side does not know is ignored, one that it does not send
//! has its default: that is how both may grow.

use std::time::Duration;

use abi_stable::std_types::RString;
use serde::{Deserialize, Serialize};

use crate::{AdapterChange, ErrorKind, LoraRequest, ResolveError};

/// Bytes of an answer at most.
const MAX_BYTES: usize = 1 << 20;
/// Characters of an error's message and of its code that are kept: clients see them.
const MAX_MESSAGE: usize = 2000;
const MAX_CODE: usize = 64;

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct WireError {
    kind: String,
    message: String,
    retry_after_ms: Option<u64>,
    code: Option<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct WireChange {
    name: String,
}

/// Kinds by the words that cross. A kind that this side does not know is a fault.
const KINDS: [(ErrorKind, &str); 8] = [
    (ErrorKind::InvalidRequest, "invalid"),
    (ErrorKind::NotFound, "not_found"),
    (ErrorKind::PermissionDenied, "denied"),
    (ErrorKind::Conflict, "conflict"),
    (ErrorKind::Exhausted, "exhausted"),
    (ErrorKind::Unavailable, "unavailable"),
    (ErrorKind::Cancelled, "cancelled"),
    (ErrorKind::Internal, "internal"),
];

pub(super) fn encode_request(request: &LoraRequest) -> Result<RString, ResolveError> {
    let json = serde_json::to_string(request).map_err(|error| {
        ResolveError::internal(format!("the resolver's answer cannot be passed on: {error}"))
    })?;
    Ok(json.into())
}

pub(super) fn decode_request(json: &str) -> Result<LoraRequest, ResolveError> {
    bounded(json)?;
    let request: LoraRequest = serde_json::from_str(json)
        .map_err(|error| ResolveError::internal(format!("the plugin's answer: {error}")))?;
    let path = &request.path;
    let plain = path.components().all(|part| part != std::path::Component::ParentDir);
    if !path.is_absolute() || !plain || path.to_string_lossy().contains('\0') {
        let shown: String = path.to_string_lossy().chars().take(120).collect();
        return Err(ResolveError::internal(format!(
            "the plugin answered with the path {shown:?}: a path must be absolute and plain"
        )));
    }
    Ok(request)
}

pub(super) fn encode_error(error: &ResolveError) -> RString {
    let kind =
        KINDS.iter().find(|(kind, _)| *kind == error.kind).map_or("internal", |known| known.1);
    let wire = WireError {
        kind: kind.to_owned(),
        message: error.message.clone(),
        retry_after_ms: error.retry_after.map(|after| after.as_millis() as u64),
        code: error.code.clone(),
    };
    serde_json::to_string(&wire).expect("strings and numbers become JSON").into()
}

pub(super) fn decode_error(json: &str) -> ResolveError {
    let wire = match bounded(json).map(|()| serde_json::from_str::<WireError>(json)) {
        Ok(Ok(wire)) => wire,
        Ok(Err(error)) => return ResolveError::internal(format!("the plugin's error: {error}")),
        Err(error) => return error,
    };
    let kind = KINDS.iter().find(|(_, word)| *word == wire.kind);
    ResolveError {
        kind: kind.map_or(ErrorKind::Internal, |known| known.0),
        message: line(&wire.message, MAX_MESSAGE),
        retry_after: wire.retry_after_ms.map(Duration::from_millis),
        code: wire.code.map(|code| line(&code, MAX_CODE)),
    }
}

/// The first characters of a text that a plugin wrote, as one line.
fn line(text: &str, most: usize) -> String {
    text.chars().take(most).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

pub(super) fn encode_change(change: &AdapterChange) -> RString {
    let wire = WireChange { name: change.name.clone() };
    serde_json::to_string(&wire).expect("a string becomes JSON").into()
}

pub(super) fn decode_change(json: &str) -> Option<AdapterChange> {
    bounded(json).ok()?;
    let wire: WireChange = serde_json::from_str(json).ok()?;
    Some(AdapterChange::new(wire.name))
}

fn bounded(json: &str) -> Result<(), ResolveError> {
    match json.len() {
        len if len > MAX_BYTES => Err(ResolveError::internal(format!(
            "the plugin answered with {len} bytes, the limit is {MAX_BYTES}"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_come_back_as_they_went() {
        let request = LoraRequest::new("a/b", "/x/y")
            .with_id(7)
            .with_base_model("base")
            .with_revision("r1")
            .with_digest("d")
            .with_metadata("k", "v");
        let json = encode_request(&request).unwrap();
        assert_eq!(decode_request(&json).unwrap(), request);
        // Older and newer sides.
        let sparse =
            decode_request(r#"{"name":"a","path":"/x","of_a_later_version":[1]}"#).unwrap();
        assert_eq!(sparse, LoraRequest::new("a", "/x"));
    }

    #[test]
    fn garbage_is_named_and_refused() {
        for (json, part) in [
            (r#"{"name":"a","path":"x"}"#.to_owned(), "absolute"),
            (r#"{"name":"a","path":"/x/../y"}"#.to_owned(), "absolute"),
            (r#"{"name":"a","path":"/x\u0000y"}"#.to_owned(), "absolute"),
            (r#"{"name":"a"}"#.to_owned(), "path"),
            ("nothing".to_owned(), "plugin's answer"),
            (format!(r#"{{"name":"{}","path":"/x"}}"#, "a".repeat(MAX_BYTES)), "bytes"),
        ] {
            let error = decode_request(&json).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Internal);
            assert!(error.message.contains(part), "{error}");
        }
    }

    #[test]
    fn errors_of_every_kind_come_back_as_they_went() {
        for (kind, _) in KINDS {
            let mut error = ResolveError::new(kind, "why").with_code("word");
            error.retry_after = Some(Duration::from_millis(1500));
            let back = decode_error(&encode_error(&error));
            assert_eq!((back.kind, &*back.message), (kind, "why"));
            assert_eq!((back.retry_after, back.code), (error.retry_after, error.code));
        }
        let unknown = decode_error(r#"{"kind":"of_a_later_version","message":"m"}"#);
        assert_eq!((unknown.kind, &*unknown.message), (ErrorKind::Internal, "m"));
        assert_eq!(decode_error("nothing").kind, ErrorKind::Internal);
        let long = ResolveError::internal(format!("two\nlines {}", "x".repeat(10_000)));
        let message = decode_error(&encode_error(&long)).message;
        assert!(message.starts_with("two lines xxx") && message.len() == MAX_MESSAGE, "{message}");
    }
}
