//! Opens resolver plugins: finds the library, compares both sides, and hands its resolver out.
//!
//! How calls are guarded is [`ResolverRegistry`](crate::adapter::ResolverRegistry)'s matter. What this module must never
//! do: unload a library (threads, wakers and thread-local destructors point into it), or call one before the comparison.

mod elf;
mod log;

use std::path::Path;
use std::sync::Arc;

use libloading::Library;
use loraplex_plugin_sdk::abi::foreign::{ForeignResolver, SYMBOL};
use loraplex_plugin_sdk::abi::{Declaration, HostServices};
use loraplex_plugin_sdk::{LoraResolver, ResolverConfig};

use crate::error::{Error, Result};

/// Bytes of a plugin's name at most.
const MAX_NAME: usize = 128;

/// Opens `lib<name>.so` in `folder` and has it make its resolver. An error is one line that names the file.
pub fn open(folder: &Path, name: &str, config: &ResolverConfig) -> Result<Arc<dyn LoraResolver>> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(plain) {
        return Err(Error::invalid(format!(
            "plugin {name:?}: a plugin's name has letters, digits, `_` and `-` alone"
        )));
    }
    let file = folder.join(format!(
        "{}{name}{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    ));
    let refuse =
        |reason: &str| Error::invalid(format!("plugin {name} ({}): {reason}", file.display()));
    if !file.is_file() {
        return Err(refuse(
            "there is no such file; PLUGIN_DIR or --plugin-dir says where plugins are",
        ));
    }
    elf::check(&file).map_err(|reason| refuse(&reason))?;
    let declaration = declaration(&file).map_err(|reason| refuse(&reason))?;
    let resolver = ForeignResolver::open(declaration, config, HostServices { log: log::line })
        .map_err(|misfit| {
            if let Some(detail) = &misfit.detail {
                tracing::debug!(plugin = name, "{detail}");
            }
            refuse(&misfit.reason)
        })?;
    if resolver.name() != name {
        return Err(refuse(&format!("it calls itself {:?}", resolver.name())));
    }
    Ok(Arc::new(resolver))
}

/// Maps the library for good and finds what it declares.
fn declaration(file: &Path) -> std::result::Result<&'static Declaration, String> {
    // SAFETY: the operator named this file as a plugin; its initialisers are trusted as the rest of it is.
    let library = unsafe { Library::new(file) }.map_err(|error| first_line(&error))?;
    let library = Box::leak(Box::new(library));
    // SAFETY: whoever exports this symbol with the SDK exports a `Declaration`; its first field tells others apart.
    let symbol = unsafe { library.get::<*const Declaration>(SYMBOL) };
    let symbol = symbol.map_err(|_| {
        "it exports no resolver: is it built with export_resolver! and crate-type cdylib?"
            .to_owned()
    })?;
    // SAFETY: a symbol's address is valid as long as the library is, which is never unloaded.
    unsafe { symbol.as_ref() }.ok_or_else(|| "its declaration is empty".to_owned())
}

fn first_line(error: &dyn std::error::Error) -> String {
    // The loader's own words lie below the wrapper's.
    let text = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    let line = text.lines().next().unwrap_or_default();
    format!("the system cannot load it: {line}")
}
