//! Where the Hub is, who we are there, and where its files are kept.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use url::Url;

use crate::error::HubError;

const ENDPOINT: &str = "https://huggingface.co";

/// A secret that does not print.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// `None` when nothing but white space is left.
    pub fn new(text: &str) -> Option<Self> {
        let text: String = text.chars().filter(|c| !['\r', '\n'].contains(c)).collect();
        Some(text.trim()).filter(|text| !text.is_empty()).map(|text| Self(text.into()))
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// What bounds a transfer.
#[derive(Debug, Clone)]
pub struct Limits {
    /// To reach the host.
    pub connect: Duration,
    /// From a request to its answer's headers.
    pub answer: Duration,
    /// A body that brings fewer than `progress_bytes` in this time is given up.
    pub progress_window: Duration,
    /// See `progress_window`; the end of a file may be smaller.
    pub progress_bytes: u64,
    /// Requests for one file's content, the first included: a cut transfer goes on where it was cut.
    pub attempts: u32,
    /// Files in transfer at once, over all callers of a client.
    pub parallel: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            progress_window: Duration::from_secs(10),
            progress_bytes: 64 << 10,
            attempts: 5,
            parallel: 4,
        }
    }
}

/// Settings of a [`HubClient`](crate::HubClient).
#[derive(Clone)]
#[non_exhaustive]
pub struct HubOptions {
    /// The Hub, or a mirror of it.
    pub endpoint: Url,
    /// The operator's token.
    pub token: Option<Token>,
    /// A file that holds the token where `token` is `None`; read at each use, so that a new one counts at once.
    pub token_path: Option<PathBuf>,
    /// The folder of `models--org--name` folders.
    pub cache_dir: PathBuf,
    /// Ask nobody: the cache is all there is.
    pub offline: bool,
    /// What bounds a transfer.
    pub limits: Limits,
}

// By hand: an endpoint may carry a password.
impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint.host_str())
            .field("token", &self.token)
            .field("token_path", &self.token_path)
            .field("cache_dir", &self.cache_dir)
            .field("offline", &self.offline)
            .field("limits", &self.limits)
            .finish()
    }
}

impl HubOptions {
    /// The Hub itself, without a token, with files in `cache_dir`.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: Url::parse(ENDPOINT).expect("the Hub's address is one"),
            token: None,
            token_path: None,
            cache_dir: cache_dir.into(),
            offline: false,
            limits: Limits::default(),
        }
    }

    /// Reads `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_HOME`, `HF_HUB_CACHE`,
    /// `HF_HUB_OFFLINE` and the older names beside them, as `huggingface_hub` does. `get` looks a variable up.
    pub fn from_vars(get: impl Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let set = |name: &str| get(name).filter(|value| !value.is_empty());
        let is_true = |name: &str| {
            set(name).is_some_and(|value| {
                ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str())
            })
        };
        let user = set("HOME").map(PathBuf::from);
        let path = |text: String| match (text.strip_prefix("~/"), &user) {
            (Some(rest), Some(user)) => user.join(rest),
            _ => PathBuf::from(text),
        };
        let home = match set("HF_HOME").map(path) {
            Some(home) => home,
            None => match set("XDG_CACHE_HOME").map(path) {
                Some(cache) => cache,
                None => user.as_deref().unwrap_or(Path::new("/tmp")).join(".cache"),
            }
            .join("huggingface"),
        };
        let cache = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE"));
        let mut options = Self::new(cache.map_or_else(|| home.join("hub"), path));
        if let Some(text) = set("HF_ENDPOINT") {
            options.endpoint = endpoint(&text)?;
        }
        if !is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            let token = set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN"));
            options.token = token.as_deref().and_then(Token::new);
            options.token_path =
                Some(set("HF_TOKEN_PATH").map_or_else(|| home.join("token"), path));
        }
        options.offline = is_true("HF_HUB_OFFLINE") || is_true("TRANSFORMERS_OFFLINE");
        Ok(options)
    }

    /// The token that counts now.
    pub(crate) fn current_token(&self) -> Option<Token> {
        self.token.clone().or_else(|| {
            // A missing file means: nobody has logged in.
            let text = std::fs::read_to_string(self.token_path.as_ref()?).ok()?;
            Token::new(&text)
        })
    }
}

fn endpoint(text: &str) -> Result<Url, HubError> {
    // Not echoed: it may hold a password.
    let bad =
        || HubError::invalid("HF_ENDPOINT is no http(s) address, such as https://huggingface.co");
    let url = Url::parse(text).map_err(|_| bad())?;
    let usable = ["http", "https"].contains(&url.scheme()) && url.has_host();
    if !usable || url.query().is_some() || url.fragment().is_some() {
        return Err(bad());
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(vars: &[(&str, &str)]) -> Result<HubOptions, HubError> {
        HubOptions::from_vars(|name| {
            vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn folders_follow_huggingface_hub() {
        for (vars, cache) in [
            (&[("HOME", "/u")][..], "/u/.cache/huggingface/hub"),
            (&[("HOME", "/u"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HOME", "/u"), ("HF_HOME", "~/hf")], "/u/hf/hub"),
            (&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
            (&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")], "/new"),
        ] {
            assert_eq!(options(vars).unwrap().cache_dir, Path::new(cache), "{vars:?}");
        }
    }

    #[test]
    fn a_token_comes_from_the_variable_or_the_file_and_does_not_print() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        let from_file = options(&[("HF_HOME", home)]).unwrap();
        assert_eq!(from_file.current_token(), None);
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        assert_eq!(from_file.current_token(), Token::new("hf_file"));
        let both = options(&[("HF_HOME", home), ("HF_TOKEN", " hf_variable ")]).unwrap();
        assert_eq!(both.current_token(), Token::new("hf_variable"));
        assert!(!format!("{both:?}").contains("hf_variable"));
        let off = options(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).unwrap();
        assert_eq!(off.current_token(), None);
    }

    #[test]
    fn an_endpoint_is_an_address_and_its_password_does_not_print() {
        for text in ["file:///etc", "huggingface.co", "https://h/?a=b", "ftp://h"] {
            let error = options(&[("HF_ENDPOINT", text)]).unwrap_err();
            assert!(error.message.starts_with("HF_ENDPOINT"), "{error}");
        }
        let with = options(&[("HF_ENDPOINT", "http://me:secret@mirror/hf")]).unwrap();
        assert!(!format!("{with:?}").contains("secret"));
    }

    #[test]
    fn offline_goes_by_two_names() {
        assert!(options(&[("HF_HUB_OFFLINE", "1")]).unwrap().offline);
        assert!(options(&[("TRANSFORMERS_OFFLINE", "yes")]).unwrap().offline);
        assert!(!options(&[("HF_HUB_OFFLINE", "0")]).unwrap().offline);
    }
}
