//! What a repository, a revision and a file may be called. Everything that becomes a path or an address passes here.

use std::fmt;
use std::str::FromStr;

use crate::error::HubError;

/// A repository: `org/name`, or a bare `name`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RepoId(String);

impl RepoId {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of its folder in the cache.
    pub(crate) fn folder(&self) -> String {
        format!("models--{}", self.0.replace('/', "--"))
    }
}

impl FromStr for RepoId {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let part = |part: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty()
                && part.len() <= 96
                && part.chars().all(plain)
                && !part.starts_with(['-', '.'])
                && !part.ends_with(['-', '.'])
                && !part.contains("--")
                && !part.contains("..")
        };
        if text.split('/').count() <= 2 && text.split('/').all(part) {
            Ok(Self(text.to_owned()))
        } else {
            Err(HubError::invalid(format!("{text:?} is no repository: org/name is one")))
        }
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A branch, a tag or a commit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Revision(String);

impl Revision {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it names one content for ever.
    pub fn is_commit(&self) -> bool {
        is_hex(&self.0, 40)
    }

    /// Whether it is outside of the repository's branches and tags: anybody may open a pull request.
    pub fn is_pull_request(&self) -> bool {
        self.0.starts_with("refs/")
    }
}

impl Default for Revision {
    fn default() -> Self {
        Self("main".into())
    }
}

impl FromStr for Revision {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let part = |part: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
            !part.is_empty()
                && part.chars().all(plain)
                && !part.starts_with(['-', '.'])
                && !part.contains("..")
        };
        if text.len() <= 200 && text.split('/').all(part) {
            Ok(Self(text.to_owned()))
        } else {
            Err(HubError::invalid(format!(
                "{text:?} is no revision: a branch, a tag or a commit is"
            )))
        }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A place in a repository: `org/name`, `org/name/sub/folder`, each with `@revision` or without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The repository.
    pub repo: RepoId,
    /// The folder in it, without slashes at its ends; empty for the repository itself.
    pub folder: String,
    /// What follows the `@`.
    pub revision: Option<Revision>,
}

impl Address {
    /// The revision that it means.
    pub fn revision(&self) -> Revision {
        self.revision.clone().unwrap_or_default()
    }

    /// The name of `file` in its folder, as the repository lists it.
    pub fn file(&self, file: &str) -> String {
        match self.folder.as_str() {
            "" => file.to_owned(),
            folder => format!("{folder}/{file}"),
        }
    }
}

impl FromStr for Address {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let (place, revision) = split_revision(text)?;
        let end = place.match_indices('/').nth(1).map_or(place.len(), |(at, _)| at);
        let (repo, folder) = place.split_at(end);
        if !repo.contains('/') {
            return Err(HubError::invalid(format!("{text:?} is no repository: org/name is one")));
        }
        let folder = match folder.strip_prefix('/') {
            Some(folder) => check_file(folder).map(|()| folder)?,
            None => "",
        };
        Ok(Self { repo: repo.parse()?, folder: folder.to_owned(), revision })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repo)?;
        if !self.folder.is_empty() {
            write!(f, "/{}", self.folder)?;
        }
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

/// `place@revision` in its two parts.
pub fn split_revision(text: &str) -> Result<(&str, Option<Revision>), HubError> {
    match text.split_once('@') {
        Some((place, revision)) => Ok((place, Some(revision.parse()?))),
        None => Ok((text, None)),
    }
}

/// Refuses a file's name that would leave its folder, or that only looks like what it is.
pub fn check_file(name: &str) -> Result<(), HubError> {
    let part = |part: &str| !part.is_empty() && part != "." && part != ".." && part.len() <= 255;
    let plain = |c: char| !c.is_control() && c != '\\';
    if name.len() <= 1024 && name.chars().all(plain) && name.split('/').all(part) {
        Ok(())
    } else {
        Err(HubError::invalid(format!("{name:?} is no name of a file in a repository")))
    }
}

/// Whether `text` is `digits` lowercase hexadecimal digits.
pub(crate) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_repository_a_folder_and_a_revision() {
        for (text, repo, folder, revision) in [
            ("o/n", "o/n", "", None),
            ("o/n/a", "o/n", "a", None),
            ("o/n/a/b@v1", "o/n", "a/b", Some("v1")),
            ("o/n@refs/pr/1", "o/n", "", Some("refs/pr/1")),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.repo.as_str(), address.folder.as_str()), (repo, folder), "{text}");
            assert_eq!(address.revision.as_ref().map(Revision::as_str), revision, "{text}");
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn names_that_leave_their_place_are_refused() {
        let long = format!("o/{}", "n".repeat(4096));
        for text in [
            "",
            "n",
            "/o/n",
            "o//n",
            "../n",
            "o/..",
            "o/n/..",
            "o/n/../x",
            "o/n//a",
            "o/n/",
            "o/n/.",
            "o/n\0",
            "o/n/a\0b",
            "o\\n/x",
            "o/n/a\\b",
            "o--x/n",
            "-o/n",
            ".o/n",
            "o/n@",
            "o/n@../x",
            "o/n@a/../b",
            "o/n@-x",
            "o/n@/x",
            "o/n@a@b",
            "o/n@x y",
            "o/ñ",
            "~/n",
            "s3://b/k",
            &long,
        ] {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_bare_name_is_a_repository_but_no_address() {
        assert!("gpt2".parse::<RepoId>().is_ok());
        assert!("gpt2".parse::<Address>().is_err());
        assert_eq!("o/n".parse::<RepoId>().unwrap().folder(), "models--o--n");
    }
}
