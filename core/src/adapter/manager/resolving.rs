//! The resolvers are asked for a name that nobody loaded, in their order; what comes of it.

use std::sync::Arc;
use std::time::Instant;

use loraplex_plugin_sdk::LoraRequest;

use super::AdapterManager;
use crate::adapter::resolvers::{CallLimits, GuardedResolver};
use crate::adapter::{Adapter, LoadRequest, Origin, ResolverRegistry};
use crate::error::{Error, ErrorKind, Result};

impl AdapterManager {
    pub(super) fn resolvers(&self) -> Option<&ResolverRegistry> {
        self.resolvers.get().filter(|resolvers| !resolvers.is_empty())
    }

    /// Asks the resolvers in order and loads what the first of them finds that can be loaded.
    pub(super) async fn resolve(self: &Arc<Self>, name: &str) -> Result<Arc<Adapter>> {
        let mut failures = Vec::new();
        for resolver in self.resolvers().into_iter().flat_map(ResolverRegistry::iter) {
            let error = match self.ask(resolver, name).await {
                Ok(None) => continue,
                Err(error) => error,
                Ok(Some(request)) => match self.load_found(resolver, request).await {
                    Ok(adapter) => return Ok(adapter),
                    Err(mut error) => {
                        // The resolver has found it: files that are missing are the adapter's fault.
                        if error.kind == ErrorKind::NotFound {
                            error.kind = ErrorKind::InvalidRequest;
                        }
                        error.context(format_args!(
                            "LoRA adapter '{name}' was found but could not be loaded"
                        ))
                    }
                },
            };
            // Where the next one has it no client hears of it.
            tracing::warn!(resolver = %resolver.name(), name, error = %error.message, "not resolved");
            failures.push((resolver.name().clone(), error));
        }
        Err(verdict(name, failures))
    }

    pub(super) async fn ask(
        &self,
        resolver: &GuardedResolver,
        name: &str,
    ) -> Result<Option<LoraRequest>> {
        let limits = CallLimits {
            stall: 2 * self.config.resolver_timeout,
            total: self.config.resolver_limit,
        };
        let base_model = &self.config.base_model;
        Ok(resolver.call((base_model, name), limits, &self.tasks).await?)
    }

    async fn load_found(
        &self,
        resolver: &GuardedResolver,
        request: LoraRequest,
    ) -> Result<Arc<Adapter>> {
        let arrived = Instant::now();
        let name = request.name.clone();
        let guard = self.locks.lock(&name).await;
        // Somebody may have loaded the name while the resolver looked for it: theirs is newer.
        if let Some(adapter) = self.registry.peek(&name).and_then(|entry| entry.current()) {
            return Ok(adapter);
        }
        let origin = Origin::Resolver(resolver.name().clone());
        let ask = LoadRequest::new(request).in_place();
        Ok(self.load_locked(ask, origin, &guard, arrived).await?.0)
    }
}

/// What a client learns when no resolver brought the adapter: the most telling failure. Found but unusable comes first,
/// then sources that could not be asked, then faults; `not found` alone remains where all have said so.
fn verdict(name: &str, failures: Vec<(Arc<str>, Error)>) -> Error {
    let weight = |error: &Error| match error.kind {
        ErrorKind::InvalidRequest | ErrorKind::Conflict => 6,
        ErrorKind::Exhausted => 5,
        ErrorKind::Unavailable | ErrorKind::Cancelled => 4,
        ErrorKind::PermissionDenied => 3,
        ErrorKind::Internal => 2,
        ErrorKind::NotFound => 1,
    };
    let reasons: Vec<String> =
        failures.iter().map(|(resolver, error)| format!("{resolver}: {}", error.message)).collect();
    // The first of equals: the operator's order.
    let worst = failures.into_iter().rev().map(|(_, error)| error).max_by_key(weight);
    let mut error = worst.unwrap_or_else(|| Error::not_found(""));
    error.message = match (error.kind, reasons.is_empty()) {
        // The caller says that the name is unknown; here is why, if anybody knows.
        (ErrorKind::NotFound, _) => reasons.join("; "),
        _ => format!("LoRA adapter '{name}' cannot be had: {}", reasons.join("; ")),
    };
    error
}
