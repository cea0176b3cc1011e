//! The operations in SIMD on a thread pool.
