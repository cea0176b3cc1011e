//! A resolver reports that an adapter's source has changed: it is replaced in place.

use std::sync::Arc;
use std::time::Instant;

use loraplex_plugin_sdk::AdapterChange;

use super::{AdapterManager, unknown};
use crate::adapter::resolvers::GuardedResolver;
use crate::adapter::{LoadRequest, Origin, ResolverRegistry};

impl AdapterManager {
    /// Sets who is asked for unknown names, once, and starts to take the changes that they report.
    pub fn install_resolvers(self: &Arc<Self>, resolvers: ResolverRegistry) {
        for resolver in resolvers.iter() {
            let (this, resolver) = (self.clone(), resolver.clone());
            self.tasks.spawn(async move {
                while let Some(change) = resolver.next_change(&this.tasks).await {
                    this.take_change(&resolver, change).await;
                }
            });
        }
        if self.resolvers.set(resolvers).is_err() {
            tracing::error!("resolvers are installed once; the second set is ignored");
        }
    }

    /// An adapter's source has changed: loads it again, if it is this resolver's. A failure leaves what is there.
    async fn take_change(self: &Arc<Self>, resolver: &GuardedResolver, change: AdapterChange) {
        let name = &change.name;
        self.flights.forget(name);
        let ours = Origin::Resolver(resolver.name().clone());
        let entry = self.registry.peek(name).filter(|entry| entry.source().1 == ours);
        let Some(entry) = entry else { return };
        let reloaded = async {
            let Some(request) = self.ask(resolver, name).await? else {
                return Err(unknown(name));
            };
            let arrived = Instant::now();
            let guard = self.locks.lock(name).await;
            let ask = LoadRequest::new(request).in_place();
            self.load_locked(ask, ours, &guard, arrived).await
        };
        match reloaded.await {
            Ok((adapter, _)) => {
                let generation = adapter.generation;
                tracing::info!(name, generation, "an adapter's files have changed: reloaded");
            }
            Err(error) => {
                let generation = entry.current().map(|adapter| adapter.generation);
                tracing::warn!(name, ?generation, error = %error.message, "an adapter's files have changed and cannot be loaded: the old generation stays");
            }
        }
    }
}
