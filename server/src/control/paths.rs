//! Which local paths a request may name.

use std::path::{Path, PathBuf};

use crate::error::{ApiError, ApiResult};
use crate::lora_modules::expand_home;

/// Folders below which adapters may be loaded by path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathPolicy {
    /// Any path that the server can read.
    Any,
    /// These folders and what is below them; none when empty.
    Below(Vec<PathBuf>),
}

impl PathPolicy {
    /// The folder that `path` names, links resolved, if the policy allows it.
    pub(crate) async fn check(&self, path: &str) -> ApiResult<PathBuf> {
        let path = expand_home(path);
        let Self::Below(folders) = self else { return Ok(path) };
        if folders.is_empty() {
            return Err(refused(
                "local adapter paths are off: this server does not listen on the loopback address \
                 alone, and LORA_ALLOWED_PATHS is not set",
            ));
        }
        // Outside of the folders nobody learns what exists.
        let outside = || refused("the path is outside the folders of LORA_ALLOWED_PATHS");
        let lexically = path.is_absolute()
            && !path.components().any(|part| part == std::path::Component::ParentDir)
            && folders.iter().any(|folder| path.starts_with(folder));
        match tokio::fs::canonicalize(&path).await {
            Ok(real) if is_below(&real, folders) => Ok(real),
            // Not there yet, where it would be allowed: the load says so in the words that trainers wait for.
            Err(_) if lexically => Ok(path),
            _ => Err(outside()),
        }
    }
}

fn is_below(path: &Path, folders: &[PathBuf]) -> bool {
    folders.iter().any(|folder| path.starts_with(folder))
}

fn refused(message: &str) -> ApiError {
    ApiError::param("lora_path", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_outside_the_folders() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        for folder in ["in/a", "out"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::os::unix::fs::symlink(root.join("out"), root.join("in/leak")).unwrap();
        std::os::unix::fs::symlink(root.join("in/a"), root.join("in/link")).unwrap();
        let policy = PathPolicy::Below(vec![root.join("in")]);
        let check = async |path: &str| policy.check(root.join(path).to_str().unwrap()).await;
        assert_eq!(check("in/a").await.unwrap(), root.join("in/a"));
        assert_eq!(check("in/link").await.unwrap(), root.join("in/a"));
        assert_eq!(check("in/later").await.unwrap(), root.join("in/later"));
        for path in ["out", "in/leak", "in/../out", "in/../absent", "absent", "inside"] {
            assert!(check(path).await.is_err(), "{path}");
        }
        assert!(policy.check("in/a").await.is_err(), "relative to where?");
        assert!(PathPolicy::Below(Vec::new()).check("/in").await.is_err());
        assert_eq!(PathPolicy::Any.check("/out").await.unwrap(), Path::new("/out"));
    }
}
