//! The client against a Hub that misbehaves: what is let into the cache, what is asked for, who sees the token.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod credentials;
mod stub;
mod transfer;

use std::path::Path;

use loraplex_hub_client::options::Token;
use loraplex_hub_client::{HubClient, HubError, HubOptions, Listing, Revision, Silent};
use stub::Stub;

/// Options for `stub` with a cache in `folder`.
fn options(stub: &Stub, folder: &Path, token: Option<&str>) -> HubOptions {
    let mut options = HubOptions::new(folder);
    options.endpoint = stub.url().parse().unwrap();
    options.token = token.and_then(Token::new);
    options
}

async fn listing(client: &HubClient, repo: &str) -> Result<Listing, HubError> {
    client.listing(&repo.parse().unwrap(), &Revision::default()).await
}

/// Lists `repo` and fetches `names`; the contents.
async fn fetch(client: &HubClient, repo: &str, names: &[&str]) -> Result<Vec<Vec<u8>>, HubError> {
    let listing = listing(client, repo).await?;
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let folder = client.fetch(&listing, &names, 1 << 20, &Silent).await?;
    Ok(names.iter().map(|name| std::fs::read(folder.join(name)).unwrap()).collect())
}

/// Every file and folder below `folder`, without the locks.
fn tree(folder: &Path) -> Vec<String> {
    fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                walk(root, &path, found);
            } else {
                found.push(path.strip_prefix(root).unwrap().display().to_string());
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, folder, &mut found);
    found.retain(|path| !path.starts_with(".locks"));
    found.sort();
    found
}
