//! Lists a repository at one commit and brings its files into the cache.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde::Deserialize;
use tokio::time::timeout;

use crate::cache::RepoCache;
use crate::download;
use crate::error::{HubError, HubErrorKind};
use crate::http::{Http, Subject, host};
use crate::names::{Address, RepoId, Revision, check_file, is_hex};
use crate::options::HubOptions;
use crate::progress::Progress;
use crate::workers::Workers;

/// Bytes of a listing at most: a large repository has some thousands of files.
const MAX_LISTING: usize = 32 << 20;

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoFile {
    /// With its folders, separated by `/`.
    pub name: String,
    /// Bytes, where they are known.
    pub size: Option<u64>,
}

/// The files of a repository at one commit.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The repository.
    pub repo: RepoId,
    /// What was asked for.
    pub revision: Revision,
    /// What that is now: 40 hexadecimal digits.
    pub commit: String,
    /// All of its files; of a listing from the cache, those that are there.
    pub files: Vec<RepoFile>,
}

impl Listing {
    /// The file called `name`.
    pub fn file(&self, name: &str) -> Option<&RepoFile> {
        self.files.iter().find(|file| file.name == name)
    }
}

/// A client of one Hub and one cache folder. Clones share their limits.
#[derive(Debug, Clone)]
pub struct HubClient {
    http: Http,
    workers: Arc<Workers>,
}

impl HubClient {
    /// A client; nothing is asked yet.
    pub fn new(options: HubOptions) -> Result<Self, HubError> {
        let options = Arc::new(options);
        let workers = Arc::new(Workers::new(options.limits.parallel));
        Ok(Self { http: Http::new(options)?, workers })
    }

    /// What it was made with.
    pub fn options(&self) -> &HubOptions {
        &self.http.options
    }

    /// The files of `repo` at `revision`, from the Hub, or offline from the cache.
    pub async fn listing(&self, repo: &RepoId, revision: &Revision) -> Result<Listing, HubError> {
        if self.options().offline {
            return self
                .cached(repo, revision)
                .await
                .ok_or_else(|| self.not_cached(repo, revision));
        }
        let _worker = self.workers.listing().await;
        let segments = ["api", "models"].into_iter().chain(repo.as_str().split('/'));
        let mut url = self.http.url(segments.chain(["revision", revision.as_str()]));
        url.set_query(Some("blobs=true"));
        let subject = Subject { repo, revision: revision.as_str(), file: None };
        let answer = self.http.send(Method::GET, url, &HeaderMap::new(), subject).await?;
        if !answer.status().is_success() {
            return Err(self.http.refusal(&answer, subject));
        }
        let from = host(answer.url());
        let limit = self.options().limits.answer;
        let body = timeout(limit, collect(answer, MAX_LISTING)).await.unwrap_or(None).ok_or_else(
            || HubError::unavailable(format!("{from}: the listing of {repo} did not arrive whole")),
        )?;
        let found: ModelInfo = serde_json::from_slice(&body).map_err(|error| {
            HubError::unavailable(format!("{from}: the listing of {repo}: {error}"))
        })?;
        if !is_hex(&found.sha, 40) {
            return Err(HubError::unavailable(format!(
                "{from}: the listing of {repo} has no commit"
            )));
        }
        let files = found.siblings.into_iter().filter(|file| check_file(&file.rfilename).is_ok());
        let files = files.map(|file| RepoFile { name: file.rfilename, size: file.size }).collect();
        let (repo, revision) = (repo.clone(), revision.clone());
        Ok(Listing { repo, revision, commit: found.sha, files })
    }

    /// What the cache has of `repo` at the commit that `revision` was when somebody last asked the Hub.
    pub async fn cached(&self, repo: &RepoId, revision: &Revision) -> Option<Listing> {
        let cache = self.cache(repo);
        let (repo, revision) = (repo.clone(), revision.clone());
        let look = move || {
            let commit = cache.commit_of(&revision)?;
            let files = cache.files(&commit);
            (!files.is_empty()).then_some(Listing { repo, revision, commit, files })
        };
        tokio::task::spawn_blocking(look).await.ok().flatten()
    }

    /// Brings `names` of `listing` into the cache and returns the folder of the commit. A file of more than `limit`
    /// bytes is refused. Files that are there are not asked for.
    pub async fn fetch(
        &self,
        listing: &Listing,
        names: &[String],
        limit: u64,
        progress: &dyn Progress,
    ) -> Result<PathBuf, HubError> {
        let unique: HashSet<&String> = names.iter().collect();
        let transfers: Vec<_> = unique
            .into_iter()
            .map(|name| self.fetch_file(listing, name, limit, progress))
            .collect();
        // The first failure ends the others; what arrived stays and is continued.
        stream::iter(transfers)
            .buffer_unordered(self.options().limits.parallel.max(1))
            .try_collect::<Vec<()>>()
            .await?;
        let Listing { revision, commit, repo, .. } = listing;
        let cache = self.cache(repo);
        if !self.options().offline
            && let Err(error) = cache.set_commit(revision, commit)
        {
            tracing::warn!(%repo, %error, "the cache does not remember the revision");
        }
        Ok(cache.snapshot(commit))
    }

    async fn fetch_file(
        &self,
        listing: &Listing,
        name: &str,
        limit: u64,
        progress: &dyn Progress,
    ) -> Result<(), HubError> {
        check_file(name)?;
        let Listing { repo, commit, .. } = listing;
        let cache = self.cache(repo);
        let size = listing.file(name).and_then(|file| file.size);
        if cache.file(commit, name, size).is_some() {
            return Ok(());
        }
        if self.options().offline {
            return Err(self.not_cached(repo, &listing.revision));
        }
        let _worker = self.workers.file(progress).await;
        let progress = self.workers.watched(progress);
        let subject = Subject { repo, revision: commit, file: Some(name) };
        let found = download::metadata(&self.http, subject).await?;
        if found.size > limit {
            let size = found.size;
            return Err(HubError::invalid(format!(
                "{subject} has {size} bytes, the limit is {limit}"
            )));
        }
        if cache.blob(&found.digest, Some(found.size)).is_none() {
            download::blob(&self.http, &cache, subject, &found, &progress).await?;
        }
        let linked = cache.link(commit, name, &found.digest);
        linked.map_err(|error| HubError::storage(format!("cannot link {subject}"), &error))?;
        if cache.file(commit, name, Some(found.size)).is_none() {
            let folder = cache.snapshot(commit);
            return Err(HubError::new(
                HubErrorKind::Storage,
                format!("{name} in {} is not what was put there", folder.display()),
            ));
        }
        Ok(())
    }

    /// The folder of `repo` in the cache.
    pub fn cache(&self, repo: &RepoId) -> RepoCache {
        RepoCache::new(&self.options().cache_dir, repo)
    }

    /// The error for what offline is not there.
    pub fn not_cached(&self, repo: &RepoId, revision: &Revision) -> HubError {
        let address =
            Address { repo: repo.clone(), folder: String::new(), revision: Some(revision.clone()) };
        let cache = self.options().cache_dir.display();
        HubError::new(
            HubErrorKind::Offline,
            format!("HF_HUB_OFFLINE is set and {cache} does not hold all of {address}: unset it"),
        )
    }
}

#[derive(Deserialize)]
struct ModelInfo {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    #[serde(default)]
    size: Option<u64>,
}

/// The whole body; `None` when it is cut or longer than `limit`.
async fn collect(mut answer: reqwest::Response, limit: usize) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.ok()? {
        if body.len() + chunk.len() > limit {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    Some(body)
}
