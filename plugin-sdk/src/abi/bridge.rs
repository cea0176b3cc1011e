//! A plugin's log lines and panics, on their way to the host. A plugin has its own copies of `tracing` and of the panic
//! hook; without this both would end in nothing, or on the terminal.

use std::fmt::{Debug, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing_core::field::{Field, Visit};
use tracing_core::span::{Attributes, Id, Record};
use tracing_core::{Dispatch, Event, Level, Metadata, Subscriber, dispatcher};

use super::interface::HostServices;

/// Sends this plugin's lines to `host`, the first time that it is called.
pub(super) fn install(plugin: &'static str, host: HostServices) {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let forwarder = Forwarder { plugin, host, spans: AtomicU64::new(1) };
        // A plugin that has brought its own keeps it.
        let _ = dispatcher::set_global_default(Dispatch::new(forwarder));
        std::panic::set_hook(Box::new(move |panic| {
            (host.log)(1, plugin.into(), "panic".into(), panic.to_string().as_str().into());
        }));
    });
}

#[derive(Debug)]
struct Forwarder {
    plugin: &'static str,
    host: HostServices,
    spans: AtomicU64,
}

impl Subscriber for Forwarder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The host filters further; what is below would cost a call each for nothing.
        *metadata.level() <= Level::DEBUG
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed))
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        let level = match *event.metadata().level() {
            Level::ERROR => 1,
            Level::WARN => 2,
            Level::INFO => 3,
            Level::DEBUG => 4,
            Level::TRACE => 5,
        };
        let target = event.metadata().target();
        (self.host.log)(level, self.plugin.into(), target.into(), line.0.as_str().into());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// An event as one line: its message, then its fields.
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => {
                let fields = std::mem::take(&mut self.0);
                write!(self.0, "{value:?}{fields}")
            }
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
