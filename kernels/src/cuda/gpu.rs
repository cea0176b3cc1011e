//! The device with its streams, and how kernels are launched.

use std::ffi::c_void;
use std::fmt::{self, Debug, Formatter};
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaFunction, CudaStream, sys};

use super::error::Context as _;
use super::probe::Probe;
use crate::error::Result;

/// A device in use. Shared by everything that lives on it.
///
/// Everything is ordered by hand: kernels and small copies run on `compute` in the order of issue; `side` holds work
/// between a [`Gpu::fork`] and a [`Gpu::join`]; weights and adapters come over `copy`, and `compute` waits for them.
pub(super) struct Gpu {
    pub(super) context: Arc<CudaContext>,
    pub(super) probe: Probe,
    pub(super) compute: Arc<CudaStream>,
    pub(super) side: Arc<CudaStream>,
    pub(super) copy: Arc<CudaStream>,
    forked: CudaEvent,
    joined: CudaEvent,
}

impl Debug for Gpu {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Gpu").field(&self.probe.name).finish()
    }
}

/// What a kernel takes: one struct by value, laid out alike on both sides.
///
/// # Safety
///
/// The type is `repr(C)`, holds numbers alone, and has the layout of the kernel's parameter in `cuda/*.cu`.
pub(super) unsafe trait KernelArgs: Copy {}

/// How many blocks and threads run a kernel, and when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Blocks in x, y and z; none at all where one of them is 0.
    pub(super) grid: [usize; 3],
    pub(super) threads: usize,
    /// Bytes of shared memory beside what the kernel declares.
    pub(super) shared: usize,
    /// Starts, where the device can, while the kernel before it on the stream runs, and waits for its end by itself.
    pub(super) early: bool,
    /// Blocks that are neighbours in x, y and z and read each other's shared memory, where the device knows that.
    pub(super) cluster: [usize; 3],
}

impl Shape {
    pub(super) const fn new(grid: [usize; 3], threads: usize) -> Self {
        Self { grid, threads, shared: 0, early: false, cluster: [1; 3] }
    }

    /// Of a kernel that waits by itself for the one before.
    pub(super) const fn early(grid: [usize; 3], threads: usize) -> Self {
        Self { early: true, ..Self::new(grid, threads) }
    }
}

impl Gpu {
    pub(super) fn open(ordinal: usize, probe: Probe) -> Result<Arc<Self>> {
        let context = CudaContext::new(ordinal).during("opening the device")?;
        // SAFETY: nothing is allocated through cudarc's slices; streams are ordered by hand (see the type).
        unsafe { context.disable_event_tracking() };
        let stream = || context.new_stream().during("making a stream");
        let event = || context.new_event(None).during("making an event");
        Ok(Arc::new(Self {
            compute: stream()?,
            side: stream()?,
            copy: stream()?,
            forked: event()?,
            joined: event()?,
            probe,
            context,
        }))
    }

    /// Makes the device the calling thread's own.
    pub(super) fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().during("binding the device")
    }

    /// Work issued to `side` from here on runs after everything issued to `compute` so far.
    pub(super) fn fork(&self) -> Result<()> {
        self.forked.record(&self.compute).during("forking")?;
        self.side.wait(&self.forked).during("forking")
    }

    /// Work issued to `compute` from here on runs after everything issued to `side` so far.
    pub(super) fn join(&self) -> Result<()> {
        self.joined.record(&self.side).during("joining")?;
        self.compute.wait(&self.joined).during("joining")
    }

    /// Waits until nothing runs on `compute`.
    pub(super) fn synchronize(&self) -> Result<()> {
        self.compute.synchronize().during("waiting for the device")
    }

    /// Queues a kernel.
    ///
    /// # Safety
    ///
    /// `args` belongs to `function`; every address in it is null where the kernel allows that, or points to device
    /// memory of the size that the kernel reads or writes there for this grid; that memory lives until the kernel has
    /// run, and nothing that runs at the same time on another stream writes to it. What a kernel that starts early reads
    /// before it waits was there before the kernel before it began.
    pub(super) unsafe fn launch<A: KernelArgs>(
        &self,
        function: &CudaFunction,
        stream: &CudaStream,
        shape: Shape,
        args: &A,
    ) -> Result<()> {
        if shape.grid.contains(&0) {
            return Ok(());
        }
        let [x, y, z] = shape.grid.map(|blocks| blocks as u32);
        let mut parameters = [std::ptr::from_ref(args).cast_mut().cast::<c_void>()];
        use sys::CUlaunchAttributeID as Id;
        // SAFETY: attributes are numbers, and their values the members that their names say. The driver copies attributes
        // and parameter before it returns; the caller vouches for what the parameter points to.
        unsafe {
            let mut attributes: [sys::CUlaunchAttribute; 2] = std::mem::zeroed();
            let mut count = 0;
            if shape.early && self.probe.capability.0 >= 9 {
                attributes[count].id = Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
                attributes[count].value.programmaticStreamSerializationAllowed = 1;
                count += 1;
            }
            if shape.cluster != [1; 3] {
                let [x, y, z] = shape.cluster.map(|blocks| blocks as u32);
                attributes[count].id = Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
                attributes[count].value.clusterDim.x = x;
                attributes[count].value.clusterDim.y = y;
                attributes[count].value.clusterDim.z = z;
                count += 1;
            }
            let config = sys::CUlaunchConfig {
                gridDimX: x,
                gridDimY: y,
                gridDimZ: z,
                blockDimX: shape.threads as u32,
                blockDimY: 1,
                blockDimZ: 1,
                sharedMemBytes: shape.shared as u32,
                hStream: stream.cu_stream(),
                attrs: attributes.as_mut_ptr(),
                numAttrs: count as u32,
            };
            let none = std::ptr::null_mut();
            sys::cuLaunchKernelEx(&config, function.cu_function(), parameters.as_mut_ptr(), none)
                .result()
        }
        .during("launching a kernel")
    }
}
