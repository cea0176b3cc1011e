//! Who sees the token, where redirects may lead, and what each refusal becomes.

use std::time::Duration;

use loraplex_hub_client::{HubClient, HubErrorKind};

use crate::stub::{Access, Fault, Stub};
use crate::{fetch, listing, options};

const TOKEN: &str = "hf_secret";

#[tokio::test]
async fn the_token_goes_to_the_hub_and_not_to_the_host_that_it_redirects_to() {
    let (stub, folder) = (Stub::start().await, tempfile::tempdir().unwrap());
    stub.push("o/n", Access::Private(TOKEN), &[("a.json", b"{}"), ("w.safetensors", b"weights")]);
    let client = HubClient::new(options(&stub, folder.path(), Some(TOKEN))).unwrap();
    let files = fetch(&client, "o/n", &["a.json", "w.safetensors"]).await.unwrap();
    assert_eq!(files, [b"{}".to_vec(), b"weights".to_vec()]);
    let seen = stub.seen();
    assert!(seen.iter().any(|request| request.host == "cdn"));
    for request in seen {
        let expected = (request.host == "hub").then(|| format!("Bearer {TOKEN}"));
        assert_eq!(request.token, expected, "{request:?}");
    }
}

#[tokio::test]
async fn a_new_token_in_the_file_counts_at_once() {
    let (stub, folder) = (Stub::start().await, tempfile::tempdir().unwrap());
    stub.push("o/n", Access::Private(TOKEN), &[("a.json", b"{}")]);
    let mut options = options(&stub, folder.path(), None);
    options.token_path = Some(folder.path().join("token"));
    let client = HubClient::new(options).unwrap();
    let error = listing(&client, "o/n").await.unwrap_err();
    assert_eq!(error.kind, HubErrorKind::Unauthorized);
    std::fs::write(folder.path().join("token"), format!("{TOKEN}\n")).unwrap();
    assert_eq!(listing(&client, "o/n").await.unwrap().files.len(), 1);
}

#[tokio::test]
async fn each_refusal_has_its_kind_and_names_the_next_step() {
    use HubErrorKind::{Gated, NotFound, Unauthorized, Unavailable};
    let (stub, folder) = (Stub::start().await, tempfile::tempdir().unwrap());
    stub.push("o/n", Access::Public, &[("a.json", b"{}")]);
    stub.push("o/gated", Access::Gated, &[("a.json", b"{}")]);
    stub.push("o/private", Access::Private("other"), &[("a.json", b"{}")]);
    let without = HubClient::new(options(&stub, folder.path(), None)).unwrap();
    let with = HubClient::new(options(&stub, folder.path(), Some(TOKEN))).unwrap();
    for (client, repo, kind, code, part) in [
        (&without, "o/gated", Gated, Some("adapter_source_gated"), "accept its terms"),
        (&with, "o/gated", Gated, Some("adapter_source_gated"), "the account of the token"),
        (&without, "o/private", Unauthorized, Some("adapter_source_unauthorized"), "set HF_TOKEN"),
        (
            &with,
            "o/private",
            Unauthorized,
            Some("adapter_source_unauthorized"),
            "refuses the token",
        ),
        (&with, "o/none", NotFound, None, "no repository o/none"),
    ] {
        let error = listing(client, repo).await.unwrap_err();
        assert_eq!((error.kind, error.code()), (kind, code), "{repo}: {error}");
        assert!(error.message.contains(part) && !error.message.contains(TOKEN), "{error}");
    }
    let repo = "o/n".parse().unwrap();
    let error = with.listing(&repo, &"v9".parse().unwrap()).await.unwrap_err();
    assert_eq!((error.kind, error.message.as_str()), (NotFound, "o/n has no revision v9"));
    let error = fetch(&with, "o/n", &["none.json"]).await.unwrap_err();
    assert_eq!(error.kind, NotFound);
    assert!(error.message.contains("o/n has no file none.json"), "{error}");

    for (status, retry_after, kind) in [
        (403, None, Unauthorized),
        (404, None, NotFound),
        (409, None, Unavailable),
        (412, None, Unavailable),
        (416, None, Unavailable),
        (429, Some("17"), Unavailable),
        (500, None, Unavailable),
        (503, Some("2"), Unavailable),
    ] {
        let headers = retry_after.map(|seconds| ("retry-after", seconds)).into_iter().collect();
        stub.fail(Fault::Status(status, headers));
        let error = listing(&with, "o/n").await.unwrap_err();
        assert_eq!(error.kind, kind, "{status}: {error}");
        let seconds = retry_after.map(|text| Duration::from_secs(text.parse().unwrap()));
        assert_eq!(error.retry_after, seconds, "{status}");
    }
}

#[tokio::test]
async fn redirects_lead_neither_inside_nor_round_and_round() {
    let (stub, folder) = (Stub::start().await, tempfile::tempdir().unwrap());
    stub.push("o/n", Access::Public, &[("a.json", b"{}")]);
    let client = HubClient::new(options(&stub, folder.path(), Some(TOKEN))).unwrap();
    let again = format!("{}/o/n/resolve/main/a.json", stub.url());
    for (to, part) in [
        ("file:///etc/passwd", "the scheme file"),
        ("ftp://127.0.0.1/x", "the scheme ftp"),
        ("data:,x", "the scheme data"),
        ("http://169.254.169.254/latest/meta-data", "an address of this network"),
        ("http://[::ffff:169.254.169.254]/", "an address of this network"),
        ("http://0.0.0.0:1/", "an address of this network"),
        ("http://[", "no address"),
        (&again, "more than 5 redirects"),
    ] {
        stub.fail(Fault::Redirect(to.to_owned()));
        let error = fetch(&client, "o/n", &["a.json"]).await.unwrap_err();
        assert!(error.message.contains(part), "{to}: {error}");
    }
    assert!(stub.seen().len() < 30, "a loop ends");
}

#[tokio::test]
async fn a_closed_port_is_an_outage_that_names_the_host() {
    let (stub, folder) = (Stub::start().await, tempfile::tempdir().unwrap());
    let options = options(&stub, folder.path(), Some(TOKEN));
    let address = stub.address.to_string();
    drop(stub);
    let client = HubClient::new(options).unwrap();
    let error = listing(&client, "o/n").await.unwrap_err();
    assert_eq!(error.kind, HubErrorKind::Unavailable);
    assert!(error.message.starts_with(&format!("cannot reach {address}: ")), "{error}");
}
