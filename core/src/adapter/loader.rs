//! Threads that read, check and pack adapters, below the engine's priority. What a load does in parallel (`rayon`) runs on
//! the loaders' own helpers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use parking_lot::Mutex;
use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::oneshot;

use crate::error::{Error, Result};

/// Loads in work at once: reading one while another is packed; more would only hold memory.
const THREADS: usize = 2;
/// Cores that one load is spread over at most.
const MOST_CORES: usize = 16;
/// Added to the threads' niceness: where cores are scarce, tokens go first.
const NICENESS: i32 = 10;

type Job = Box<dyn FnOnce() + Send>;

/// A queue of loads and the threads that work on it. They end when it is dropped.
#[derive(Debug)]
pub(super) struct Loader {
    jobs: Mutex<Sender<Job>>,
}

impl Loader {
    pub(super) fn start() -> Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        let cores = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_CORES);
        let helpers = ThreadPoolBuilder::new()
            .num_threads(cores)
            .thread_name(|index| format!("lora-helper-{index}"))
            .start_handler(|_| give_way())
            .build();
        let helpers = helpers
            .map_err(|error| Error::internal(format!("cannot start the loaders: {error}")))?;
        let helpers = Arc::new(helpers);
        for index in 0..THREADS {
            let (queue, helpers) = (queue.clone(), helpers.clone());
            std::thread::Builder::new()
                .name(format!("lora-loader-{index}"))
                .spawn(move || work(&queue, &helpers))
                .map_err(|error| Error::internal(format!("cannot start a loader: {error}")))?;
        }
        Ok(Self { jobs: Mutex::new(jobs) })
    }

    /// Runs `job` on a loader's thread. A job that panics is an error and nothing more.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (done, answer) = oneshot::channel();
        let job: Job = Box::new(move || {
            // A caller that has left does not want the answer.
            let _ = done.send(job());
        });
        // The threads live as long as the queue.
        let _ = self.jobs.lock().send(job);
        answer.await.unwrap_or_else(|_| Err(Error::internal("the load of an adapter panicked")))
    }
}

/// Linux keeps a niceness for each thread. One that cannot be set costs nothing but the courtesy.
fn give_way() {
    let _ = rustix::process::nice(NICENESS);
}

fn work(queue: &Mutex<Receiver<Job>>, helpers: &ThreadPool) {
    loop {
        let job = queue.lock().recv();
        match job {
            // The panic's message went through the hook already.
            Ok(job) => drop(catch_unwind(AssertUnwindSafe(|| helpers.install(job)))),
            Err(_) => return,
        }
    }
}
