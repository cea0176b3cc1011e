//! What a store may answer in place of an object, and what the client gets.

use std::time::Duration;

use axum::http::header;
use loraplex_plugin_sdk::ErrorKind;
use loraplex_plugin_sdk::testing::{CONFIG, WEIGHTS};
use serde_json::json;

use crate::bucket::{Bucket, Fault, SECRET};
use crate::{World, find, kept, weights};

const ALWAYS: usize = usize::MAX;

fn status(status: u16, code: &'static str) -> Fault {
    Fault::Status(status, code, Vec::new())
}

#[tokio::test]
async fn s9_each_refusal_says_what_it_is() {
    let world = World::new().await;
    let content = world.adapter("poet", 1, 3000);
    let later = |status, code| Fault::Status(status, code, vec![("retry-after", "7".to_owned())]);
    let moved = Fault::Status(301, "", vec![("x-amz-bucket-region", "eu-west-1".to_owned())]);
    let cases = [
        (status(401, "Unauthorized"), ErrorKind::PermissionDenied, "401 Unauthorized"),
        (status(403, "AccessDenied"), ErrorKind::PermissionDenied, "403 AccessDenied"),
        (status(400, "ExpiredToken"), ErrorKind::PermissionDenied, "400 ExpiredToken"),
        (status(404, "NoSuchBucket"), ErrorKind::NotFound, "no such bucket"),
        (status(409, "OperationAborted"), ErrorKind::Unavailable, "409 OperationAborted"),
        (status(412, "PreconditionFailed"), ErrorKind::Unavailable, "has changed (412"),
        (status(416, "InvalidRange"), ErrorKind::Unavailable, "has changed (416"),
        (later(429, "TooManyRequests"), ErrorKind::Unavailable, "429 TooManyRequests"),
        (status(500, "InternalError"), ErrorKind::Unavailable, "500 InternalError"),
        (later(503, "SlowDown"), ErrorKind::Unavailable, "503 SlowDown"),
        (status(400, "a <b>"), ErrorKind::InvalidRequest, "refuses the request (400)"),
        (moved, ErrorKind::InvalidRequest, "the bucket is in eu-west-1: set AWS_REGION"),
        (Fault::EndlessRefusal, ErrorKind::InvalidRequest, "refuses the request (400)"),
    ];
    for (fault, kind, part) in cases {
        let waits = matches!(&fault, Fault::Status(_, _, headers) if headers.iter().any(|(name, _)| *name == "retry-after"));
        let mut limits = world.limits.clone();
        // A store that says when is not asked again within one call that would wait longer than for an answer.
        limits.answer = Duration::from_secs(if waits { 5 } else { 30 });
        let cache = tempfile::tempdir().unwrap();
        let resolver =
            crate::resolver(&world.bucket.vars(), cache.path(), limits, json!({})).unwrap();
        world.bucket.fail("", ALWAYS, fault);
        let error = find(&resolver, "poet").await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(part), "{part}: {error}");
        assert!(error.message.contains("of adapter \"poet\""), "{error}");
        assert!(!error.message.contains("loras"), "the prefix is the operator's: {error}");
        let is_denied = kind == ErrorKind::PermissionDenied;
        assert_eq!(error.code.as_deref() == Some("adapter_source_unauthorized"), is_denied);
        if waits {
            assert_eq!(error.retry_after, Some(Duration::from_secs(7)), "{error}");
        }
        world.bucket.heal();
        assert_eq!(kept(cache.path()), (0, 0));
    }
    // No key of that name is an answer as good as any.
    world.bucket.fail(CONFIG, 1, status(404, "NoSuchKey"));
    let resolver = world.resolver(json!({}));
    assert_eq!(find(&resolver, "poet").await.unwrap(), None);
    assert_eq!(weights(&resolver, "poet").await, content);
}

#[tokio::test]
async fn s9_what_fails_now_and_then_is_asked_for_again() {
    let world = World::new().await;
    let resolver = world.resolver(json!({}));
    for (name, code, word) in
        [("a", 500, "InternalError"), ("b", 503, "SlowDown"), ("c", 429, "TooManyRequests")]
    {
        let content = world.adapter(name, 1, 3000);
        world.bucket.fail(CONFIG, 3, status(code, word));
        world.bucket.fail(WEIGHTS, 3, status(code, word));
        assert_eq!(weights(&resolver, name).await, content);
        world.bucket.heal();
    }
}

#[tokio::test]
async fn s9_answers_that_are_not_what_was_asked_for() {
    let world = World::new().await;
    let content = world.adapter("poet", 1, 3000);
    let header = |name, value: &str| Fault::Header(name, value.to_owned());
    for fault in [
        header(header::CONTENT_RANGE, "bytes 0-2999/3001"),
        header(header::CONTENT_RANGE, "bytes 1-3000/3001"),
        header(header::CONTENT_RANGE, "nonsense"),
        Fault::NoRanges,
    ] {
        let cache = tempfile::tempdir().unwrap();
        let limits = world.limits.clone();
        let resolver =
            crate::resolver(&world.bucket.vars(), cache.path(), limits, json!({})).unwrap();
        world.bucket.pass(WEIGHTS);
        world.bucket.fail(WEIGHTS, ALWAYS, fault);
        let error = find(&resolver, "poet").await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
        assert_eq!(kept(cache.path()), (0, 0));
        world.bucket.heal();
    }
    // Bytes are what they are: nothing is unpacked.
    world.bucket.fail("", ALWAYS, header(header::CONTENT_ENCODING, "gzip"));
    assert_eq!(weights(&world.resolver(json!({})), "poet").await, content);
}

#[tokio::test]
async fn s9_redirects_are_not_followed() {
    let (world, other) = (World::new().await, Bucket::start().await);
    world.adapter("poet", 1, 3000);
    for to in [other.url(), "file:///etc/passwd".into(), "http://169.254.169.254/".into()] {
        for file in [CONFIG, WEIGHTS] {
            let headers = vec![("location", to.clone())];
            world.bucket.fail(file, ALWAYS, Fault::Status(307, "TemporaryRedirect", headers));
            let error = find(&world.resolver(json!({})), "poet").await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidRequest);
            assert!(error.message.contains("which is not followed"), "{error}");
            world.bucket.heal();
        }
    }
    assert!(other.seen().is_empty(), "nobody else is asked");
}

#[tokio::test]
async fn credentials_are_checked_and_never_shown() {
    let world = World::new().await;
    let content = world.adapter("poet", 1, 3000);
    let mut vars = world.bucket.vars();
    for (name, wrong) in [("AWS_SECRET_ACCESS_KEY", "not/it"), ("AWS_ACCESS_KEY_ID", "nobody")] {
        let var = vars.iter_mut().find(|(var, _)| var == name).unwrap();
        var.1 = wrong.to_owned();
        let limits = world.limits.clone();
        let resolver = crate::resolver(&vars, world.cache.path(), limits, json!({})).unwrap();
        let error = find(&resolver, "poet").await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::PermissionDenied, "{error}");
        assert_eq!(error.code.as_deref(), Some("adapter_source_unauthorized"));
        assert!(error.message.contains("check the credentials"), "{error}");
        assert!(!error.message.contains("not/it"), "{error}");
    }
    let resolver = world.resolver(json!({}));
    assert_eq!(weights(&resolver, "poet").await, content);
    assert!(!format!("{resolver:?}").contains(SECRET));
}
