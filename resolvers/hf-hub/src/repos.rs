//! The repositories that the operator lists, and where in them a name may be.

use loraplex_hub_client::names::{check_file, split_revision};
use loraplex_hub_client::{RepoId, Revision};
use loraplex_plugin_sdk::{ErrorKind, ResolveError};

use crate::adapter::Adapter;
use crate::failure;

/// What is on the list, in its order.
#[derive(Debug)]
pub(crate) struct Repos(Vec<(RepoId, Option<Revision>)>);

impl Repos {
    /// Reads `repo` and `repo@revision`; the latter is served at that revision only.
    pub(crate) fn parse(list: &[String]) -> Result<Self, ResolveError> {
        if list.is_empty() {
            return Err(ResolveError::invalid(
                "LORA_RESOLVER_HF_REPO_LIST is empty: name the repositories that may be served, \
                 with commas between them",
            ));
        }
        let entry = |text: &String| {
            let (repo, revision) = split_revision(text)?;
            Ok((repo.parse()?, revision))
        };
        let entries: Result<_, _> = list.iter().map(entry).collect();
        entries.map(Self).map_err(|error| {
            let error = failure::from(error);
            ResolveError::invalid(format!("LORA_RESOLVER_HF_REPO_LIST: {error}"))
        })
    }

    /// The places that `name` may mean, none of them checked. Empty when it is in no listed repository.
    pub(crate) fn places(&self, name: &str) -> Result<Vec<Adapter>, ResolveError> {
        // A client's name that is none of ours is the next resolver's.
        let Ok((place, asked)) = split_revision(name) else { return Ok(Vec::new()) };
        let mut places = Vec::new();
        for (repo, listed) in &self.0 {
            let Some(rest) = place.strip_prefix(repo.as_str()) else { continue };
            let folder = match rest.strip_prefix('/') {
                None if rest.is_empty() => "",
                Some(folder) if check_file(folder).is_ok() => folder,
                _ => continue,
            };
            let revision = match (&asked, listed) {
                (Some(asked), Some(listed)) if asked != listed => continue,
                (Some(asked), None) if asked.is_pull_request() => {
                    // Anybody may propose a change to a public repository.
                    return Err(ResolveError::new(
                        ErrorKind::NotFound,
                        format!(
                            "{asked} of {repo} is no branch or tag: to serve it, put {repo}@{asked} \
                             on LORA_RESOLVER_HF_REPO_LIST"
                        ),
                    ));
                }
                (Some(revision), _) | (None, Some(revision)) => revision.clone(),
                (None, None) => Revision::default(),
            };
            places.push(Adapter {
                name: name.to_owned(),
                repo: repo.clone(),
                folder: folder.to_owned(),
                revision,
            });
        }
        Ok(places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(list: &[&str], name: &str) -> Vec<(String, String, String)> {
        let list: Vec<String> = list.iter().map(|&entry| entry.into()).collect();
        let found = Repos::parse(&list).unwrap().places(name).unwrap();
        found
            .into_iter()
            .map(|place| (place.repo.to_string(), place.folder, place.revision.to_string()))
            .collect()
    }

    #[test]
    fn a_name_is_a_listed_repository_or_a_folder_in_one() {
        let list = ["o/a", "o/ab", "p/x@v1"];
        for (name, expected) in [
            ("o/a", Some(("o/a", "", "main"))),
            ("o/ab", Some(("o/ab", "", "main"))),
            ("o/abc", None),
            ("o/a/b", Some(("o/a", "b", "main"))),
            ("o/a/b/c@v2", Some(("o/a", "b/c", "v2"))),
            ("o/a@v2/x", Some(("o/a", "", "v2/x"))),
            ("p/x", Some(("p/x", "", "v1"))),
            ("p/x/sub@v1", Some(("p/x", "sub", "v1"))),
            ("p/x@v2", None),
            ("o", None),
            ("o/", None),
            ("o/a/", None),
            ("o/a/../ab", None),
            ("o/a//b", None),
            ("/o/a", None),
            ("o/a\0", None),
            ("o/a/b\\c", None),
            ("o/a@../x", None),
            ("O/A", None),
            ("", None),
        ] {
            let expected: Vec<_> =
                expected.into_iter().map(|(a, b, c)| (a.into(), b.into(), c.into())).collect();
            assert_eq!(places(&list, name), expected, "{name:?}");
        }
    }

    #[test]
    fn a_pull_request_is_served_only_when_the_operator_lists_it() {
        let open = Repos::parse(&["o/a".into()]).unwrap();
        let error = open.places("o/a@refs/pr/7").unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert!(error.message.contains("put o/a@refs/pr/7 on"), "{error}");
        assert_eq!(places(&["o/a@refs/pr/7"], "o/a@refs/pr/7").len(), 1);
    }

    #[test]
    fn a_list_that_names_nothing_is_refused() {
        for (list, part) in [(vec![], "is empty"), (vec!["o/../a".to_owned()], "\"o/../a\"")] {
            let error = Repos::parse(&list).unwrap_err();
            assert!(error.message.contains("LORA_RESOLVER_HF_REPO_LIST"), "{error}");
            assert!(error.message.contains(part), "{error}");
        }
    }
}
