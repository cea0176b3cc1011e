//! A name to the folder of an adapter that fits the base model.
//!
//! Links are followed first, absolute ones too, and what they lead to must lie in the root. Then everything is opened below
//! a handle of the root that refuses to be led out, so that a link that moves in between reaches nothing either.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use cap_std::ambient_authority;
use cap_std::fs::{Dir, Metadata, MetadataExt};
use loraplex_plugin_sdk::{ResolveError, ResolverConfig};
use serde_json::Value;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// Weights that the server refuses in words of its own.
const PICKLE: &str = "adapter_model.bin";
/// Bytes of a configuration at most.
const MAX_CONFIG: u64 = 1 << 20;
/// Bytes of a name at most.
const MAX_NAME: usize = 256;

/// The folder that holds all adapters.
#[derive(Debug)]
pub(crate) struct Root {
    path: PathBuf,
    dir: Dir,
    marker: Option<String>,
    config: ResolverConfig,
}

/// An adapter that fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// Absolute, without links.
    pub(crate) folder: PathBuf,
    /// Where the name leads before links are resolved.
    pub(crate) place: PathBuf,
    pub(crate) base_model: Option<String>,
    pub(crate) version: Version,
}

/// What changes when an adapter's files do: inode, length and time of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version([(u64, u64, Option<SystemTime>); 2]);

impl Root {
    pub(crate) fn open(
        path: &Path,
        marker: Option<String>,
        config: ResolverConfig,
    ) -> Result<Self, ResolveError> {
        let refuse = |error: std::io::Error| {
            let shown = path.display();
            ResolveError::invalid(format!("LORA_RESOLVER_CACHE_DIR {shown} is no folder: {error}"))
        };
        let path = path.canonicalize().map_err(refuse)?;
        let dir = Dir::open_ambient_dir(&path, ambient_authority()).map_err(refuse)?;
        Ok(Self { path, dir, marker, config })
    }

    /// The adapter `name`, if it is there and fits. Whatever keeps it from being there, a name that leads out of the root
    /// included, looks the same from outside; what is there and does not fit is said.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Found>, ResolveError> {
        if !is_plain(name) {
            return Ok(None);
        }
        let Some(folder) = self.inside(Path::new(name)) else { return Ok(None) };
        if let Some(marker) = &self.marker
            && self.file(&folder.join(marker)).is_none()
        {
            return Ok(None);
        }
        let config = folder.join(CONFIG);
        let Some(found) = self.file(&config) else { return Ok(None) };
        if found.len() > MAX_CONFIG {
            return Err(ResolveError::invalid(format!(
                "{CONFIG} has {} bytes, the limit is {MAX_CONFIG}",
                found.len()
            )));
        }
        let Some(weights) =
            self.file(&folder.join(WEIGHTS)).or_else(|| self.file(&folder.join(PICKLE)))
        else {
            return Err(ResolveError::not_found(format!("adapter {name:?} has no {WEIGHTS} yet")));
        };
        let base_model = self.config.fits(name, &self.read(&config)?)?;
        let version = Version([version(&found), version(&weights)]);
        let (folder, place) = (self.path.join(folder), self.path.join(name));
        Ok(Some(Found { folder, place, base_model, version }))
    }

    /// The version of an adapter's files, when both are there.
    pub(crate) fn version(&self, name: &str) -> Option<Version> {
        let folder = self.inside(Path::new(name))?;
        if let Some(marker) = &self.marker {
            self.file(&folder.join(marker))?;
        }
        let files = [CONFIG, WEIGHTS].map(|file| self.file(&folder.join(file)));
        let [Some(config), Some(weights)] = files else { return None };
        Some(Version([version(&config), version(&weights)]))
    }

    /// Where `path` leads, links resolved, if that lies in the root.
    fn inside(&self, path: &Path) -> Option<PathBuf> {
        let real = self.path.join(path).canonicalize().ok()?;
        real.strip_prefix(&self.path).ok().map(Path::to_owned)
    }

    fn file(&self, path: &Path) -> Option<Metadata> {
        self.dir.metadata(self.inside(path)?).ok().filter(Metadata::is_file)
    }

    fn read(&self, path: &Path) -> Result<Value, ResolveError> {
        let unreadable =
            |error: &dyn std::fmt::Display| ResolveError::invalid(format!("{CONFIG}: {error}"));
        let mut text = Vec::new();
        let path = self.inside(path).ok_or_else(|| unreadable(&"it has gone"))?;
        let file = self.dir.open(path).map_err(|error| unreadable(&error))?;
        file.take(MAX_CONFIG).read_to_end(&mut text).map_err(|error| unreadable(&error))?;
        serde_json::from_slice(&text).map_err(|error| unreadable(&error))
    }
}

/// Whether a name is made of plain segments: nothing that a path would make something else of.
fn is_plain(name: &str) -> bool {
    name.len() <= MAX_NAME
        && !name.contains('\\')
        && !name.chars().any(char::is_control)
        && name.split('/').all(|segment| !["", ".", ".."].contains(&segment))
}

fn version(file: &Metadata) -> (u64, u64, Option<SystemTime>) {
    (file.ino(), file.len(), file.modified().ok().map(|time| time.into_std()))
}
