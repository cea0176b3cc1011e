//! Products with base weights, by cuBLASLt.
//!
//! Choosing an algorithm takes cuBLASLt longer than a small product, so each shape is chosen for once and kept. Of those that it
//! names for a decode step the first is often not the fastest (up to a tenth slower at 64 rows of Llama-3.1-8B), so they are
//! timed before a step is recorded.

mod plan;

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::{result, sys};
use cudarc::driver::result::memcpy_dtod_async;
use cudarc::driver::sys::CUevent_flags;

use super::error::Context as _;
use super::gpu::Gpu;
use super::graphs::Start;
use super::memory::Block;
use crate::error::Result;

pub(super) use plan::Product;
use plan::{Plan, WORKSPACE};

/// Bytes of the smallest weight for which that is worth it.
const LEAST_TIMED: usize = 8 << 20;
/// How often each is timed. What takes longer than so many times the fastest so far is timed no more, in the first rounds and
/// later: so most of the time goes to those that differ little.
const ROUNDS: usize = 12;
const FIRST_ROUNDS: usize = 2;
const MOST_BEHIND: [f32; 2] = [1.15, 1.06];
/// Bytes of weights that are read in a round, so that they come from memory as they do in a step: more than a cache holds.
const READ: usize = 256 << 20;
/// Shapes kept. Prefill comes in many row counts; beyond this all are forgotten.
const MOST_PLANS: usize = 2048;

/// What addresses of operands are multiples of.
const ALIGNED: usize = 256;

/// Addresses of x, W and y, each at a multiple of [`ALIGNED`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Operands {
    pub(super) x: u64,
    pub(super) weight: u64,
    pub(super) y: u64,
}

/// The library's handle, its memory, and what it chose.
#[derive(Debug)]
pub(super) struct Gemm {
    gpu: Arc<Gpu>,
    handle: sys::cublasLtHandle_t,
    workspace: Block,
    /// For steps of each kind, so that a prompt's bits do not depend on what was timed before.
    plans: HashMap<(Product, bool), Plan>,
    /// How the step began whose products these are. One that is to be recorded will run again and again: it is worth finding
    /// the fastest algorithms.
    pub(super) step: Start,
}

// SAFETY: the handle and the descriptors may be used from any thread, one at a time.
unsafe impl Send for Gemm {}

impl Gemm {
    pub(super) fn new(gpu: &Arc<Gpu>) -> Result<Self> {
        gpu.context.bind_to_thread().during("binding the device")?;
        let workspace = Block::new(gpu, WORKSPACE, "the workspace of matrix products")?;
        let handle = result::create_handle().during("opening cuBLASLt")?;
        Ok(Self { gpu: gpu.clone(), handle, workspace, plans: HashMap::new(), step: Start::Plain })
    }

    /// Queues a product on the compute stream.
    ///
    /// # Safety
    ///
    /// The operands have the product's shapes, and live until it has run.
    pub(super) unsafe fn run(&mut self, product: Product, operands: Operands) -> Result<()> {
        if product.rows == 0 {
            return Ok(());
        }
        let key = self.key(product);
        if !self.plans.contains_key(&key) {
            if self.plans.len() >= MOST_PLANS {
                self.plans.clear();
            }
            // SAFETY: the caller's promise.
            let plan = unsafe { self.choose(product, operands)? };
            self.plans.insert(key, plan);
        }
        let plan = &self.plans[&key];
        // SAFETY: as above.
        unsafe { self.queue(plan, &plan.algorithm, operands) }.during("a matrix product")
    }

    fn key(&self, product: Product) -> (Product, bool) {
        (product, self.step != Start::Plain)
    }

    /// A plan, with the fastest algorithm where it is worth to find it and there is memory for that.
    ///
    /// # Safety
    ///
    /// As for [`Gemm::run`].
    unsafe fn choose(&self, product: Product, operands: Operands) -> Result<Plan> {
        let what = "choosing a matrix product";
        let mut plan = Plan::new(product).during(what)?;
        let mut algorithms = plan.candidates(self.handle).during(what)?;
        plan.algorithm = algorithms[0];
        let bytes = product.outputs * product.inputs * 2;
        if !matches!(self.step, Start::Warm(_)) || bytes < LEAST_TIMED {
            return Ok(plan);
        }
        let alike = Product { outputs: product.alike, ..product };
        if let Some(alike) = self.plans.get(&self.key(alike))
            && algorithms.iter().all(|known| known.data != alike.algorithm.data)
        {
            algorithms.push(alike.algorithm);
        }
        let others = if bytes < READ { READ / bytes } else { 0 };
        let apart = bytes.next_multiple_of(ALIGNED);
        let Ok(memory) = Block::new(&self.gpu, others * apart, "timing matrix products") else {
            return Ok(plan);
        };
        let mut weights = vec![operands.weight];
        for other in 0..others {
            // The same numbers: how fast a device multiplies depends on them.
            let copy = memory.address() + (other * apart) as u64;
            let stream = self.gpu.compute.cu_stream();
            // SAFETY: both have room for a weight of this shape; `memory` is freed once the stream is through.
            unsafe { memcpy_dtod_async(copy, operands.weight, bytes, stream) }.during(what)?;
            weights.push(copy);
        }
        // An algorithm's code comes to the device when it first runs, which takes longer than many products.
        // SAFETY: the caller's promise.
        algorithms.retain(|it| unsafe { self.queue(&plan, it, operands) }.is_ok());
        let mut timed: Vec<_> = algorithms.into_iter().map(|it| (f32::INFINITY, it)).collect();
        // In turns, since clocks drift.
        for round in 0..ROUNDS {
            if timed.len() == 1 {
                break;
            }
            let mut best = f32::INFINITY;
            for (least, algorithm) in &mut timed {
                // SAFETY: the caller's promise.
                let took = unsafe { self.time(&plan, algorithm, operands, &weights)? };
                *least = least.min(took);
                best = best.min(*least);
            }
            let most = MOST_BEHIND[usize::from(round >= FIRST_ROUNDS)];
            timed.retain(|(least, _)| *least <= best * most);
        }
        if let Some((_, fastest)) = timed.iter().min_by(|a, b| a.0.total_cmp(&b.0)) {
            plan.algorithm = *fastest;
        }
        Ok(plan)
    }

    /// Milliseconds that products with all these weights take.
    ///
    /// # Safety
    ///
    /// As for [`Gemm::run`].
    unsafe fn time(
        &self,
        plan: &Plan,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        operands: Operands,
        weights: &[u64],
    ) -> Result<f32> {
        let what = "timing a matrix product";
        let stream = &self.gpu.compute;
        let timed = Some(CUevent_flags::CU_EVENT_DEFAULT);
        let event = || self.gpu.context.new_event(timed).during(what);
        let (start, end) = (event()?, event()?);
        // While the device is busy with the first round the host queues the second, else its own pace is timed.
        for event in [&start, &end] {
            for &weight in weights {
                let operands = Operands { weight, ..operands };
                // SAFETY: the caller's promise; the weights have one shape.
                unsafe { self.queue(plan, algorithm, operands) }.during(what)?;
            }
            event.record(stream).during(what)?;
        }
        start.elapsed_ms(&end).during(what)
    }

    /// # Safety
    ///
    /// As for [`Gemm::run`].
    unsafe fn queue(
        &self,
        plan: &Plan,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        operands: Operands,
    ) -> std::result::Result<(), result::CublasError> {
        let (alpha, beta) = (1.0_f32, 0.0_f32);
        let pointer = |address: u64| address as *mut c_void;
        // SAFETY: the descriptors describe the operands, for which the caller vouches. With beta 0 y is not read.
        unsafe {
            result::matmul(
                self.handle,
                plan.operation,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                pointer(operands.weight),
                plan.weight,
                pointer(operands.x),
                plan.x,
                pointer(operands.y),
                plan.y,
                pointer(operands.y),
                plan.y,
                std::ptr::from_ref(algorithm),
                pointer(self.workspace.address()),
                self.workspace.bytes(),
                self.gpu.compute.cu_stream().cast(),
            )
        }
    }
}

impl Drop for Gemm {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: made in `new`. An error here has no consequence.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}
