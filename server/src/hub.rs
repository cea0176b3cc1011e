//! Models and adapters of the Hugging Face Hub: which files they need, brought into the cache folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use loraplex_core::{Error, ErrorKind};
use loraplex_hub_client::names::check_file;
use loraplex_hub_client::{
    Address, HubClient, HubError, HubErrorKind, Listing, Progress, RepoId, Revision, Silent,
};

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// What a model folder may have beside its configuration and weights.
const OPTIONAL: [&str; 6] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];
const ADAPTER_CONFIG: &str = "adapter_config.json";
const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

/// Bytes of a file that describes others.
const MAX_JSON: u64 = 64 << 20;
/// Bytes of an adapter's weights.
const MAX_ADAPTER: u64 = 16 << 30;

/// A model on the Hub: `org/name`, with `@revision`, with `:file.gguf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubModel {
    /// The repository, which is the model's name too.
    pub repo: RepoId,
    /// What of it.
    pub revision: Revision,
    /// One file that is the whole model.
    pub gguf: Option<String>,
}

impl HubModel {
    /// Reads what somebody typed in place of a folder; `None` when it cannot be a repository.
    pub fn parse(text: &str) -> Option<Self> {
        let (place, gguf) = match text.split_once(':') {
            Some((place, file)) => (place, Some(file)),
            None => (text, None),
        };
        let is_gguf = |file: &str| file.to_ascii_lowercase().ends_with(".gguf");
        let address: Address = place.parse().ok()?;
        let fits = address.folder.is_empty()
            && gguf.is_none_or(|file| is_gguf(file) && check_file(file).is_ok())
            // A file's name that was mistyped.
            && !is_gguf(address.repo.as_str());
        fits.then(|| Self {
            revision: address.revision(),
            repo: address.repo,
            gguf: gguf.map(Into::into),
        })
    }

    /// The files that are needed before the weights.
    fn first_files(&self, listing: &Listing) -> Result<Vec<String>> {
        let repo = &self.repo;
        if let Some(file) = &self.gguf {
            if listing.file(file).is_none() {
                bail!("{repo} has no {file}; it has {}", or_nothing(ggufs(listing)));
            }
            return Ok(Vec::new());
        }
        if listing.file(CONFIG).is_none() {
            match ggufs(listing) {
                files if files.is_empty() => bail!("{repo} is no model: it has no {CONFIG}"),
                files => bail!(
                    "{repo} is no model folder but has GGUF files: name one of them as {repo}:FILE, \
                     of {}",
                    files.join(", ")
                ),
            }
        }
        // The engine reads one file where there is one, whatever an index says.
        let index = listing.file(SINGLE).is_none().then_some(INDEX);
        let names = [CONFIG].into_iter().chain(OPTIONAL).chain(index);
        Ok(names.filter(|name| listing.file(name).is_some()).map(Into::into).collect())
    }

    /// The weights, of which an index in `folder` may speak.
    fn weights(&self, listing: &Listing, folder: &Path) -> Result<Vec<String>> {
        let repo = &self.repo;
        if let Some(file) = &self.gguf {
            return Ok(vec![file.clone()]);
        }
        if listing.file(SINGLE).is_some() {
            return Ok(vec![SINGLE.to_owned()]);
        }
        if listing.file(INDEX).is_some() {
            let text = std::fs::read(folder.join(INDEX)).with_context(|| INDEX.to_owned())?;
            let index: Index = serde_json::from_slice(&text)
                .with_context(|| format!("{INDEX} of {repo} cannot be read"))?;
            let shards: BTreeSet<String> = index.weight_map.into_values().collect();
            return Ok(shards.into_iter().collect());
        }
        bail!("{repo} has neither {SINGLE} nor {INDEX}: only safetensors and GGUF can be read")
    }
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: std::collections::HashMap<String, String>,
}

fn ggufs(listing: &Listing) -> Vec<&str> {
    let names = listing.files.iter().map(|file| file.name.as_str());
    names.filter(|name| name.to_ascii_lowercase().ends_with(".gguf")).collect()
}

fn or_nothing(names: Vec<&str>) -> String {
    if names.is_empty() { "no GGUF file".into() } else { names.join(", ") }
}

/// Brings a model into the cache, without its weights where `with_weights` is false; its folder or file.
pub async fn fetch_model(
    client: &HubClient,
    model: &HubModel,
    with_weights: bool,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    let whole = |listing: &Listing| model.first_files(listing).is_ok();
    let listing = list(client, &model.repo, &model.revision, whole).await?;
    let first = model.first_files(&listing)?;
    let folder = client.fetch(&listing, &first, MAX_JSON, progress).await?;
    if with_weights || model.gguf.is_some() {
        let weights = model.weights(&listing, &folder)?;
        client.fetch(&listing, &weights, u64::MAX, progress).await?;
    }
    Ok(match &model.gguf {
        Some(file) => folder.join(file),
        None => folder,
    })
}

/// Whether `text` can be an adapter's address on the Hub rather than a path of this machine.
pub(crate) fn is_address(text: &str) -> bool {
    !text.starts_with(['/', '.', '~']) && text.parse::<Address>().is_ok()
}

/// Brings the adapter `org/name[/sub/folder][@revision]` into the cache; its folder.
pub async fn fetch_adapter(client: &HubClient, address: &str) -> loraplex_core::Result<PathBuf> {
    let address: Address = address.parse().map_err(error)?;
    let (config, weights) = (address.file(ADAPTER_CONFIG), address.file(ADAPTER_WEIGHTS));
    let missing = |listing: &Listing| {
        [&config, &weights].into_iter().find(|name| listing.file(name).is_none()).cloned()
    };
    let whole = |listing: &Listing| missing(listing).is_none();
    let listing = list(client, &address.repo, &address.revision(), whole).await.map_err(error)?;
    if let Some(name) = missing(&listing) {
        if client.options().offline {
            return Err(error(client.not_cached(&address.repo, &address.revision())));
        }
        let (repo, commit) = (&address.repo, &listing.commit);
        return Err(Error::not_found(format!("{repo} has no {name} at {commit}")));
    }
    client.fetch(&listing, &[config], MAX_JSON, &Silent).await.map_err(error)?;
    let snapshot = client.fetch(&listing, &[weights], MAX_ADAPTER, &Silent).await;
    Ok(snapshot.map_err(error)?.join(&address.folder))
}

/// What the Hub has, or the cache if that is enough while the Hub does not answer.
async fn list(
    client: &HubClient,
    repo: &RepoId,
    revision: &Revision,
    is_enough: impl Fn(&Listing) -> bool,
) -> Result<Listing, HubError> {
    match client.listing(repo, revision).await {
        Err(error) if error.kind == HubErrorKind::Unavailable => {
            let cached = client.cached(repo, revision).await;
            let listing = cached.filter(is_enough).ok_or_else(|| error.clone())?;
            tracing::warn!(%repo, %error, "taken from the cache");
            Ok(listing)
        }
        other => other,
    }
}

fn error(error: HubError) -> Error {
    let kind = match error.kind {
        HubErrorKind::Unauthorized | HubErrorKind::Gated => ErrorKind::PermissionDenied,
        HubErrorKind::NotFound | HubErrorKind::Offline => ErrorKind::NotFound,
        HubErrorKind::Unavailable | HubErrorKind::StorageFull => ErrorKind::Unavailable,
        HubErrorKind::Invalid => ErrorKind::InvalidRequest,
        HubErrorKind::Storage => ErrorKind::Internal,
    };
    let code = error.code().map(Into::into);
    let mut failure = Error::new(kind, error.message);
    failure.code = code;
    failure.retry_after = error.retry_after;
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_a_repository_a_revision_and_perhaps_a_file() {
        for (text, expected) in [
            ("o/n", Some(("o/n", "main", None))),
            ("o/n@v1", Some(("o/n", "v1", None))),
            ("o/n-GGUF:q4/n.Q4_0.gguf", Some(("o/n-GGUF", "main", Some("q4/n.Q4_0.gguf")))),
            ("o/n@v1:n.GGUF", Some(("o/n", "v1", Some("n.GGUF")))),
            ("o/n:../n.gguf", None),
            ("o/n:model.bin", None),
            ("o/n.gguf", None),
            ("o/n/sub", None),
            ("./o/n", None),
            ("./n", None),
            ("/o/n", None),
            ("n", None),
        ] {
            let found = HubModel::parse(text);
            let found = found
                .as_ref()
                .map(|model| (model.repo.as_str(), model.revision.as_str(), model.gguf.as_deref()));
            assert_eq!(found, expected, "{text}");
        }
    }
}
