//! Whether this machine can run the backend, found out before any call that would end the process.
//!
//! A call into a library that is not there panics inside cudarc, so every library is looked for first.

use cudarc::driver::{CudaContext, result, sys};
use cudarc::{cublaslt, nvrtc};

use super::error::{Context as _, describe};
use crate::error::{KernelError, Result};

/// CUDA 13.0: the oldest driver that loads what NVRTC 13 makes.
const LEAST_DRIVER: i32 = 13_000;

/// What was found.
#[derive(Debug, Clone)]
pub struct Probe {
    /// The device's name and its place among the machine's devices.
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// Bytes of device memory.
    pub memory: usize,
    /// The driver's CUDA version, `1000 * major + 10 * minor`.
    pub driver: i32,
}

impl Probe {
    /// What NVRTC calls the device: its own instructions where there are any.
    pub fn arch(&self) -> String {
        let (major, minor) = self.capability;
        let own = if major >= 9 { "a" } else { "" };
        format!("sm_{major}{minor}{own}")
    }
}

/// A library that is loaded when it is first called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Library {
    Driver,
    Nvrtc,
    CublasLt,
}

/// Fails unless the library is there, and says how to get it.
pub(super) fn require(library: Library) -> Result<()> {
    // SAFETY: loads and unloads a library by name; its initialisers may run in any program.
    let (found, missing) = unsafe {
        match library {
            Library::Driver => (sys::is_culib_present(), None),
            Library::Nvrtc => {
                (nvrtc::sys::is_culib_present(), Some(("NVRTC", "nvidia-cuda-nvrtc")))
            }
            Library::CublasLt => {
                (cublaslt::sys::is_culib_present(), Some(("cuBLASLt", "nvidia-cublas")))
            }
        }
    };
    match missing {
        _ if found => Ok(()),
        None => unavailable("no NVIDIA driver: libcuda.so.1 was not found"),
        Some((name, package)) => unavailable(format!(
            "{name} 13 was not found: install the CUDA 13 toolkit, or run `pip install '{package}==13.*'` and add the \
             package's lib folder (site-packages/nvidia/cu13/lib) to LD_LIBRARY_PATH"
        )),
    }
}

/// Looks for the driver, device `ordinal`, NVRTC and cuBLASLt. The error says what is missing and what to do.
pub fn probe(ordinal: usize) -> Result<Probe> {
    require(Library::Driver)?;
    let version = driver_version()?;
    if version < LEAST_DRIVER {
        return unavailable(format!(
            "the NVIDIA driver is too old: it offers CUDA {}, 13.0 is needed (driver 580 or later)",
            spelt(version)
        ));
    }
    let count = match CudaContext::device_count() {
        Ok(count) => count as usize,
        Err(error) => return unavailable(format!("no CUDA device: {}", describe(error))),
    };
    if ordinal >= count {
        return unavailable(format!("no CUDA device {ordinal}: there are {count}"));
    }
    require(Library::Nvrtc)?;
    require(Library::CublasLt)?;
    describe_device(ordinal, version)
}

fn describe_device(ordinal: usize, driver: i32) -> Result<Probe> {
    use sys::CUdevice_attribute_enum as Attribute;
    let device = result::device::get(ordinal as i32).during("looking for the device")?;
    // SAFETY: the driver gave this device just above.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) };
    let read = |which| attribute(which).during("reading the device's attributes");
    let capability = (
        read(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        read(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    let name = result::device::get_name(device).during("reading the device's name")?;
    if capability < (8, 0) {
        return unavailable(format!(
            "{name} has compute capability {}.{}, 8.0 is needed (Ampere or later)",
            capability.0, capability.1
        ));
    }
    // SAFETY: as above.
    let memory =
        unsafe { result::device::total_mem(device) }.during("reading the memory's size")?;
    let multiprocessors = read(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
    let name = format!("{name} (cuda:{ordinal})");
    Ok(Probe { name, capability, multiprocessors, memory, driver })
}

fn driver_version() -> Result<i32> {
    let mut version = 0;
    // SAFETY: writes one integer; needs no initialised driver.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }
        .result()
        .during("asking for the driver's version")?;
    Ok(version)
}

fn spelt(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

fn unavailable<T>(why: impl Into<String>) -> Result<T> {
    Err(KernelError::Unavailable(why.into()))
}
