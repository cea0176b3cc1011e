//! The host's side: a plugin's resolver as a [`LoraResolver`].

use abi_stable::StableAbi;
use abi_stable::abi_stability::abi_checking::check_layout_compatibility;
use abi_stable::std_types::{ROption, RResult};

use super::interface::{
    Declaration, HostServices, PluginModuleRef, ResolverBox, SDK_VERSION, dotted,
};
use super::wire;
use crate::{
    AdapterChange, LoraRequest, LoraResolver, Progress, ResolveError, ResolverConfig, async_trait,
};

/// Name of the symbol that holds a plugin's [`Declaration`].
pub const SYMBOL: &[u8] = b"LORAPLEX_RESOLVER\0";

/// A resolver that lives in a plugin.
#[derive(Debug)]
pub struct ForeignResolver {
    name: String,
    /// Never dropped: a destructor that panics could not be contained, and the library stays as long as the process.
    resolver: &'static ResolverBox,
}

/// Why a plugin cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// One line.
    pub reason: String,
    /// Everything that the check found, for the log; often long.
    pub detail: Option<String>,
}

impl From<String> for Misfit {
    fn from(reason: String) -> Self {
        Self { reason, detail: None }
    }
}

impl ForeignResolver {
    /// Compares both sides, then has the plugin make its resolver. Nothing of the plugin runs before the comparison.
    pub fn open(
        plugin: &'static Declaration,
        config: &ResolverConfig,
        host: HostServices,
    ) -> Result<Self, Misfit> {
        let (name, header) = plugin.check()?;
        let misfit = |detail: String| Misfit {
            reason: format!(
                "its interface is laid out in another way than this server's (plugin SDK {} there, {} here): build it with the server's SDK",
                dotted(plugin.version()),
                dotted(SDK_VERSION)
            ),
            detail: Some(detail),
        };
        let ours = <PluginModuleRef as StableAbi>::LAYOUT;
        let theirs = header.layout().ok_or_else(|| misfit("it hides its layout".to_owned()))?;
        // The newer side may have more at the end. The check takes the one with less first.
        let (less, more) =
            if plugin.version() < SDK_VERSION { (theirs, ours) } else { (ours, theirs) };
        check_layout_compatibility(less, more).map_err(|errors| misfit(errors.to_string()))?;
        // SAFETY: what the older side knows lies in the same places on both, and accessors of what was added later look
        // whether it is there.
        let module = unsafe { header.init_root_module_with_unchecked_layout::<PluginModuleRef>() };
        let module = module.map_err(|error| misfit(error.to_string()))?;
        let config = serde_json::to_string(config)
            .map_err(|error| Misfit::from(format!("its configuration is no JSON: {error}")))?;
        match module.create()(config.as_str().into(), host) {
            RResult::ROk(resolver) => {
                Ok(Self { name: name.to_owned(), resolver: Box::leak(Box::new(resolver)) })
            }
            RResult::RErr(error) => Err(wire::decode_error(&error).message.into()),
        }
    }

    /// What the plugin calls itself.
    pub fn name(&self) -> &str {
        &self.name
    }
}

#[async_trait]
impl LoraResolver for ForeignResolver {
    async fn resolve_lora(
        &self,
        base_model: &str,
        lora_name: &str,
    ) -> Result<Option<LoraRequest>, ResolveError> {
        let progress = Progress::current().shared();
        let answer = self.resolver.resolve_lora(base_model.into(), lora_name.into(), progress);
        match answer.await {
            RResult::ROk(ROption::RSome(json)) => wire::decode_request(&json).map(Some),
            RResult::ROk(ROption::RNone) => Ok(None),
            RResult::RErr(json) => Err(wire::decode_error(&json)),
        }
    }

    async fn next_change(&self) -> Option<AdapterChange> {
        match self.resolver.next_change().await {
            ROption::RSome(json) => wire::decode_change(&json),
            ROption::RNone => None,
        }
    }
}
