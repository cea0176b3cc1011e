//! What this machine reads from memory, beside what is measured: it bounds decoding, and on many machines it drifts.

use anyhow::Result;
use loraplex_core::DType;
use loraplex_core::probe::Probe;

/// One for all cores.
pub(crate) fn probe() -> Result<Probe> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(Probe::new(DType::F32, threads, None)?)
}

/// Reads once; GB a second, or `None` without a probe.
pub(crate) fn read(probe: &mut Option<Probe>) -> Result<Option<f64>> {
    Ok(probe.as_mut().map(Probe::read).transpose()?.map(|bytes| bytes / 1e9))
}
