//! The thread that copies adapters to the device, so that no step waits for a copy.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use super::adapter::Resident;
use super::gpu::Gpu;
use super::staging::Staging;
use crate::error::{KernelError, Result};

/// Takes adapters in order. Ends when it is dropped, after those that it has taken.
#[derive(Debug)]
pub(super) struct Copier {
    /// `None` only while it is dropped.
    queue: Option<Sender<Arc<Resident>>>,
    thread: Option<JoinHandle<()>>,
}

impl Copier {
    pub(super) fn new(gpu: &Arc<Gpu>) -> Result<Self> {
        let (queue, adapters) = channel();
        let (gpu, staging) = (gpu.clone(), Staging::new(gpu)?);
        let thread = thread::Builder::new()
            .name("adapter-copies".into())
            .spawn(move || run(&gpu, staging, &adapters))
            .map_err(|error| {
                KernelError::Device(format!("cannot start the thread of copies: {error}"))
            })?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Queues a copy.
    pub(super) fn copy(&self, adapter: Arc<Resident>) -> Result<()> {
        let queue = self.queue.as_ref().expect("it is there until the copier is dropped");
        queue
            .send(adapter)
            .map_err(|_| KernelError::Device("the thread of adapters' copies has ended".into()))
    }
}

fn run(gpu: &Gpu, mut staging: Staging, adapters: &Receiver<Arc<Resident>>) {
    let bound = gpu.bind();
    for adapter in adapters {
        match &bound {
            Ok(()) => {
                // Whoever waits for it would wait for ever.
                let copied = catch_unwind(AssertUnwindSafe(|| adapter.copy(&mut staging)));
                if copied.is_err() {
                    adapter.give_up("the copy to the device panicked");
                }
            }
            Err(error) => adapter.give_up(&error.to_string()),
        }
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // It has nothing to say but that it panicked, which was logged.
            let _ = thread.join();
        }
    }
}
