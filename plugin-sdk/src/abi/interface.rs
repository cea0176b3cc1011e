//! The types that cross, and the declaration that a plugin exports.
//!
//! Both may grow at their end: the module and the resolver are *prefix types*, of which an older side knows the first
//! part. What stands before `last_prefix_field` never changes within a major version of the SDK.

#![expect(non_local_definitions, reason = "what `sabi_trait` expands to")]

use std::ffi::c_char;
use std::fmt;
use std::sync::atomic::AtomicUsize;

use abi_stable::library::{LibHeader, RootModule};
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RArc, RBox, ROption, RResult, RStr, RString};
use abi_stable::{StableAbi, package_version_strings, sabi_trait};
use async_ffi::FfiFuture;

/// How [`Declaration`] and what it points to are laid out. Changes with this file's first lines or with a version of
/// `abi_stable` that cannot be mixed with the one before.
const ABI: u32 = 1;

const MAGIC: [u8; 16] = *b"loraplex plugin\0";

/// The symbol that a plugin exports: plain C, so that a host can say in one line why a plugin does not fit before it
/// looks at anything that could be laid out differently.
#[repr(C)]
pub struct Declaration {
    magic: [u8; 16],
    abi: u32,
    version: [u16; 3],
    name: *const c_char,
    name_len: usize,
    header: &'static LibHeader,
}

// SAFETY: every field is constant after compilation; the pointer leads to a `&'static str`.
unsafe impl Sync for Declaration {}

impl fmt::Debug for Declaration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Declaration").field("abi", &self.abi).finish_non_exhaustive()
    }
}

/// The version of the SDK that this side was built with.
pub const SDK_VERSION: [u16; 3] = [
    number(env!("CARGO_PKG_VERSION_MAJOR")),
    number(env!("CARGO_PKG_VERSION_MINOR")),
    number(env!("CARGO_PKG_VERSION_PATCH")),
];

const fn number(digits: &str) -> u16 {
    let (digits, mut value, mut at) = (digits.as_bytes(), 0, 0);
    while at < digits.len() {
        value = value * 10 + (digits[at] - b'0') as u16;
        at += 1;
    }
    value
}

impl Declaration {
    /// The declaration of the plugin `name`.
    pub const fn new(name: &'static str, header: &'static LibHeader) -> Self {
        Self {
            magic: MAGIC,
            abi: ABI,
            version: SDK_VERSION,
            name: name.as_ptr().cast(),
            name_len: name.len(),
            header,
        }
    }

    /// The plugin's name and header, if this side can go on with it; otherwise one line that says who is older.
    pub(super) fn check(&self) -> Result<(&str, &'static LibHeader), String> {
        if self.magic != MAGIC {
            return Err("it is not a plugin for this server".into());
        }
        let ours = SDK_VERSION;
        if self.abi != ABI || self.version[0] != ours[0] {
            let older = match (self.abi, self.version) < (ABI, ours) {
                true => "the plugin is older: build it again with the server's SDK",
                false => {
                    "the server is older: use a newer server, or build the plugin with its SDK"
                }
            };
            return Err(format!(
                "it was built with plugin SDK {}, this server has {}; {older}",
                dotted(self.version),
                dotted(ours)
            ));
        }
        // SAFETY: magic and ABI are ours, so the plugin's `Declaration::new` took both from a `&'static str`; a plugin
        // is never unloaded.
        let name = unsafe { std::slice::from_raw_parts(self.name.cast::<u8>(), self.name_len) };
        let name = std::str::from_utf8(name).map_err(|_| "its name is not UTF-8".to_owned())?;
        Ok((name, self.header))
    }

    /// The version of the SDK that the plugin was built with.
    pub(super) fn version(&self) -> [u16; 3] {
        self.version
    }
}

pub(super) fn dotted(version: [u16; 3]) -> String {
    version.map(|part| part.to_string()).join(".")
}

/// What the host does for a plugin.
#[repr(C)]
#[derive(Debug, Clone, Copy, StableAbi)]
pub struct HostServices {
    /// Writes a line to the host's log. Levels rise from 1, an error, to 5, a trace.
    pub log: extern "C" fn(level: u8, plugin: RStr<'_>, target: RStr<'_>, message: RStr<'_>),
}

/// A call's answer: the request as JSON, nothing, or an error as JSON.
pub type Answer = RResult<ROption<RString>, RString>;

/// A resolver as it crosses.
#[sabi_trait]
pub trait AbiResolver: Debug + Send + Sync {
    /// [`LoraResolver::resolve_lora`](crate::LoraResolver::resolve_lora). `progress` rises while the call gets somewhere.
    fn resolve_lora(
        &self,
        base_model: RStr<'_>,
        lora_name: RStr<'_>,
        progress: RArc<AtomicUsize>,
    ) -> FfiFuture<Answer>;

    /// [`LoraResolver::next_change`](crate::LoraResolver::next_change), as JSON. The plugin holds up to one call.
    #[sabi(last_prefix_field)]
    fn next_change(&self) -> FfiFuture<ROption<RString>>;
}

/// A resolver that its plugin owns.
pub type ResolverBox = AbiResolver_TO<'static, RBox<()>>;

/// Makes the plugin's resolver from its configuration as JSON; an error comes as JSON too.
pub type Create =
    extern "C" fn(config: RStr<'_>, host: HostServices) -> RResult<ResolverBox, RString>;

/// What a plugin consists of.
#[repr(C)]
#[derive(Debug, StableAbi)]
#[sabi(kind(Prefix(prefix_ref = PluginModuleRef)))]
#[sabi(missing_field(panic))]
pub struct PluginModule {
    /// Makes the resolver.
    #[sabi(last_prefix_field)]
    pub create:
        extern "C" fn(config: RStr<'_>, host: HostServices) -> RResult<ResolverBox, RString>,
}

impl RootModule for PluginModuleRef {
    abi_stable::declare_root_module_statics! {PluginModuleRef}
    const BASE_NAME: &'static str = "loraplex_plugin";
    const NAME: &'static str = "loraplex_plugin";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}
