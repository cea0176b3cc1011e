//! CUDA C++ to machine code for one kind of device, by NVRTC, kept on disk.
//!
//! The kernels include no file: the shared parts are put in front of each source. So nothing but NVRTC has to be
//! installed, and what a kernel's machine code depends on is known: that makes the key of the cache.

use std::ffi::{CStr, CString};
use std::fs;
use std::path::Path;
use std::thread;

use cudarc::nvrtc::{result, sys};

use super::probe::{Library, require};
use crate::error::{KernelError, Result};

/// What every kernel starts with.
const SHARED: [&str; 8] = [
    include_str!("../../cuda/ptx.cuh"),
    include_str!("../../cuda/prelude.cuh"),
    include_str!("../../cuda/lora.cuh"),
    include_str!("../../cuda/packed.cuh"),
    include_str!("../../cuda/norm.cuh"),
    include_str!("../../cuda/prompts.cuh"),
    include_str!("../../cuda/paged.cuh"),
    include_str!("../../cuda/prefill.cuh"),
];

/// One file of `cuda/`.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// The file's name.
    pub name: &'static str,
    text: &'static str,
}

macro_rules! sources {
    ($($name:literal),* $(,)?) => {
        [$(Source { name: $name, text: include_str!(concat!("../../cuda/", $name)) }),*]
    };
}

/// Every file with kernels.
pub const SOURCES: [Source; 15] = sources![
    "embed.cu",
    "stack.cu",
    "spread.cu",
    "residual.cu",
    "qkv.cu",
    "gated_mlp.cu",
    "shrink.cu",
    "expand.cu",
    "product.cu",
    "decode.cu",
    "prefill.cu",
    "prefill_hopper.cu",
    "sample.cu",
    "draw.cu",
    "random.cu",
];

/// Machine code of one source.
#[derive(Debug)]
pub struct Compiled {
    /// The source's name.
    pub name: &'static str,
    /// What the driver loads.
    pub cubin: Vec<u8>,
    /// What the compiler said: warnings, and what each kernel takes of registers and memory.
    pub log: String,
}

/// Compiles all sources for `arch` (`sm_90a`) at once, each on its own thread, or takes them from the folder `cache`.
///
/// Without a cache the log of each holds the assembler's report.
pub fn compile_all(arch: &str, cache: Option<&Path>) -> Result<Vec<Compiled>> {
    require(Library::Nvrtc)?;
    thread::scope(|scope| {
        let start = |source: Source| scope.spawn(move || source.cached(arch, cache));
        let threads = SOURCES.map(start);
        let results = threads.map(|thread| {
            thread.join().unwrap_or_else(|_| Err(KernelError::Device("NVRTC panicked".into())))
        });
        results.into_iter().collect()
    })
}

impl Source {
    /// What the file holds.
    pub const fn text(&self) -> &'static str {
        self.text
    }

    fn cached(&self, arch: &str, cache: Option<&Path>) -> Result<Compiled> {
        let Some(folder) = cache else { return self.compile(arch, &["--ptxas-options=-v"]) };
        let path = folder.join(format!("{}-{}.cubin", self.name, self.key(arch)?));
        if let Ok(cubin) = fs::read(&path)
            && !cubin.is_empty()
        {
            return Ok(Compiled { name: self.name, cubin, log: String::new() });
        }
        let compiled = self.compile(arch, &[])?;
        // A cache that cannot be written costs time at the next start, nothing else.
        let _ = store(&path, &compiled.cubin);
        Ok(compiled)
    }

    /// Of everything that the machine code depends on.
    fn key(&self, arch: &str) -> Result<String> {
        let (major, minor) = version()?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("nvrtc {major}.{minor} {arch}\n").as_bytes());
        hasher.update(self.full_text().as_bytes());
        Ok(hasher.finalize().to_hex()[..32].to_owned())
    }

    fn full_text(&self) -> String {
        let shared = SHARED.map(|text| text.replace("#pragma once", "")).concat();
        // Messages name the file and its own lines.
        format!("{shared}\n#line 1 \"{}\"\n{}", self.name, self.text)
    }

    fn compile(&self, arch: &str, options: &[&str]) -> Result<Compiled> {
        let failed = |what: &str, log: &str| {
            Err(KernelError::Device(format!("NVRTC could not {what} {}:\n{log}", self.name)))
        };
        let text = CString::new(self.full_text()).expect("sources hold no zero byte");
        let name = CString::new(self.name).expect("names hold no zero byte");
        let Ok(program) = result::create_program(&text, Some(&name)) else {
            return failed("take", "");
        };
        let program = Program(program);
        let arch = format!("--gpu-architecture={arch}");
        let options: Vec<&str> =
            [arch.as_str(), "--std=c++17"].into_iter().chain(options.iter().copied()).collect();
        // SAFETY: the program was made above and lives until the end of this function.
        let outcome = unsafe { result::compile_program(program.0, &options) };
        let log = program.log();
        match (outcome, program.cubin()) {
            (Ok(()), Some(cubin)) => Ok(Compiled { name: self.name, cubin, log }),
            (Err(error), _)
                if error.0 == sys::nvrtcResult::NVRTC_ERROR_BUILTIN_OPERATION_FAILURE =>
            {
                failed(
                    "find libnvrtc-builtins, which lies beside libnvrtc (add that folder to LD_LIBRARY_PATH), for",
                    &log,
                )
            }
            _ => failed("compile", &log),
        }
    }
}

/// Version of the NVRTC that is there.
fn version() -> Result<(i32, i32)> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two integers.
    unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) }
        .result()
        .map_err(|error| KernelError::Device(format!("NVRTC does not say its version: {error}")))?;
    Ok((major, minor))
}

/// Writes a file that is there in full or not at all.
fn store(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    fs::create_dir_all(folder)?;
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    fs::write(&partial, bytes)?;
    fs::rename(&partial, path)
}

/// A program that is destroyed when it goes out of scope.
struct Program(sys::nvrtcProgram);

impl Program {
    fn log(&self) -> String {
        // SAFETY: the program lives; the text ends with a zero byte.
        unsafe {
            result::get_program_log(self.0).map_or_else(
                |_| String::new(),
                |text| CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned(),
            )
        }
    }

    /// `None` where the program did not compile.
    fn cubin(&self) -> Option<Vec<u8>> {
        let mut size = 0;
        // SAFETY: the program lives; the second call writes as many bytes as the first one said.
        unsafe {
            sys::nvrtcGetCUBINSize(self.0, &raw mut size).result().ok()?;
            let mut cubin = vec![0_u8; size];
            sys::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast()).result().ok()?;
            Some(cubin)
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: nobody else holds the program. An error here has no consequence.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}
