//! `export_resolver!` and what it expands to.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{RResult, RStr, RString};

use super::interface::{
    AbiResolver_TO, Create, HostServices, PluginModule, PluginModuleRef, ResolverBox,
};
use super::shim::{Shim, panicked};
use super::{bridge, wire};
use crate::{LoraResolver, ResolveError, ResolverConfig};

/// Makes a library a resolver plugin.
///
/// Takes the plugin's name, which is the one that operators write in `PLUGINS` and that the library's file has
/// (`lib<name>.so`), and a function from [`ResolverConfig`](crate::ResolverConfig) to the resolver or the reason why there
/// is none. The crate needs `crate-type = ["cdylib"]` and must be built with `panic = "unwind"`, which is the default.
///
/// ```
/// use loraplex_plugin_sdk::{LoraRequest, LoraResolver, ResolveError, ResolverConfig, async_trait};
///
/// #[derive(Debug)]
/// struct Nowhere;
///
/// #[async_trait]
/// impl LoraResolver for Nowhere {
///     async fn resolve_lora(&self, _: &str, _: &str) -> Result<Option<LoraRequest>, ResolveError> {
///         Ok(None)
///     }
/// }
///
/// loraplex_plugin_sdk::export_resolver!("nowhere", |_config: ResolverConfig| Ok(Nowhere));
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! export_resolver {
    ($name:literal, $create:expr) => {
        const _: () = {
            use $crate::abi::abi_stable::library::{
                __call_root_module_loader, CheckTypeLayout, LibHeader, RootModuleResult,
            };
            use $crate::abi::abi_stable::std_types::{RResult, RStr, RString};

            extern "C" fn create(
                config: RStr<'_>,
                host: $crate::abi::HostServices,
            ) -> RResult<$crate::abi::ResolverBox, RString> {
                $crate::abi::create($name, config, host, $create)
            }

            extern "C" fn module() -> RootModuleResult {
                __call_root_module_loader(|| $crate::abi::module(create))
            }

            static HEADER: LibHeader = {
                // SAFETY: the module that the constructor makes is the type that is named.
                unsafe {
                    LibHeader::from_constructor::<$crate::abi::PluginModuleRef>(
                        module,
                        CheckTypeLayout::Yes,
                    )
                }
            };

            // SAFETY: a library is one plugin, so nothing else has this name.
            #[unsafe(no_mangle)]
            pub static LORAPLEX_RESOLVER: $crate::abi::Declaration =
                $crate::abi::Declaration::new($name, &HEADER);
        };
    };
}

/// The plugin's module. Called once; what it makes lives as long as the process.
pub fn module(create: Create) -> PluginModuleRef {
    PluginModule { create }.leak_into_prefix()
}

/// Makes an author's resolver. A panic in the constructor is an error.
pub fn create<R: LoraResolver>(
    name: &'static str,
    config: RStr<'_>,
    host: HostServices,
    construct: impl Fn(ResolverConfig) -> Result<R, ResolveError>,
) -> RResult<ResolverBox, RString> {
    let made = catch_unwind(AssertUnwindSafe(|| {
        bridge::install(name, host);
        let config = serde_json::from_str(&config).map_err(|error| {
            ResolveError::invalid(format!("the host's configuration cannot be read: {error}"))
        })?;
        construct(config)
    }));
    match made.unwrap_or_else(|panic| Err(panicked(panic))) {
        Ok(resolver) => {
            RResult::ROk(AbiResolver_TO::from_value(Shim(Arc::new(resolver)), TD_Opaque))
        }
        Err(error) => RResult::RErr(wire::encode_error(&error)),
    }
}
