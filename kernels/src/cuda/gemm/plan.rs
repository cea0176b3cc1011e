//! What cuBLASLt is asked for, and the algorithms that it offers.

use cudarc::cublaslt::{result, sys};

/// NVIDIA's advice for Hopper; more than older devices want.
pub(super) static WORKSPACE: usize = 32 << 20;
/// Algorithms that are asked for.
const MOST: usize = 8;

/// `y = x Wᵀ`: x is `[rows, inputs]`, W `[outputs, inputs]`, y `[rows, outputs]`, all without gaps between rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::cuda) struct Product {
    pub(in crate::cuda) rows: usize,
    pub(in crate::cuda) inputs: usize,
    pub(in crate::cuda) outputs: usize,
    /// Outputs of a product whose fastest algorithm may do well here, too: the library knows less of odd numbers.
    pub(in crate::cuda) alike: usize,
    /// y in f32 instead of bf16.
    pub(in crate::cuda) wide: bool,
}

/// A product as cuBLASLt wants it described: by columns, so `yᵀ = W xᵀ` with W transposed.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) operation: sys::cublasLtMatmulDesc_t,
    pub(super) weight: sys::cublasLtMatrixLayout_t,
    pub(super) x: sys::cublasLtMatrixLayout_t,
    pub(super) y: sys::cublasLtMatrixLayout_t,
    pub(super) algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Plan {
    pub(super) fn new(product: Product) -> std::result::Result<Self, result::CublasError> {
        use sys::cudaDataType_t::{CUDA_R_16BF, CUDA_R_32F};
        let [rows, inputs, outputs] =
            [product.rows, product.inputs, product.outputs].map(|n| n as u64);
        let out = if product.wide { CUDA_R_32F } else { CUDA_R_16BF };
        let layout = |dtype, rows: u64, columns: u64| {
            result::create_matrix_layout(dtype, rows, columns, rows as i64)
        };
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let plan = Self {
            operation: result::create_matmul_desc(compute, CUDA_R_32F)?,
            weight: layout(CUDA_R_16BF, inputs, outputs)?,
            x: layout(CUDA_R_16BF, inputs, rows)?,
            y: layout(out, outputs, rows)?,
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        // CUBLAS_OP_T
        let transposed = 1_i32;
        // SAFETY: the descriptors were made above; the attribute is the size that the library expects.
        unsafe {
            result::set_matmul_desc_attribute(
                plan.operation,
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const transposed).cast(),
                size_of_val(&transposed),
            )?;
        }
        Ok(plan)
    }

    /// At least one algorithm, the most promising first.
    pub(super) fn candidates(
        &self,
        handle: sys::cublasLtHandle_t,
    ) -> std::result::Result<Vec<sys::cublasLtMatmulAlgo_t>, result::CublasError> {
        let preference = Preference::new()?;
        let mut count = 0;
        // SAFETY: a result is numbers alone; all that is handed over lives, and there is room for as many as are asked for.
        let found = unsafe {
            let mut found: [sys::cublasLtMatmulHeuristicResult_t; MOST] = std::mem::zeroed();
            sys::cublasLtMatmulAlgoGetHeuristic(
                handle,
                self.operation,
                self.weight,
                self.x,
                self.y,
                self.y,
                preference.0,
                MOST as i32,
                found.as_mut_ptr(),
                &raw mut count,
            )
            .result()?;
            found
        };
        let works = |found: &&sys::cublasLtMatmulHeuristicResult_t| found.state.result().is_ok();
        let found = found[..count as usize].iter().filter(works);
        let algorithms: Vec<_> = found.map(|found| found.algo).collect();
        if algorithms.is_empty() {
            return Err(result::CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED));
        }
        Ok(algorithms)
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made in `choose`, used by calls that have returned. An error here has no consequence.
        unsafe {
            let _ = result::destroy_matmul_desc(self.operation);
            let _ = result::destroy_matrix_layout(self.weight);
            let _ = result::destroy_matrix_layout(self.x);
            let _ = result::destroy_matrix_layout(self.y);
        }
    }
}

/// What an algorithm may use.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> std::result::Result<Self, result::CublasError> {
        let preference = Self(result::create_matmul_pref()?);
        // SAFETY: made just above; the attribute is a `size_t`.
        unsafe {
            result::set_matmul_pref_attribute(
                preference.0,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const WORKSPACE).cast(),
                size_of::<usize>(),
            )?;
        }
        Ok(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made in `new`. An error here has no consequence.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
