//! Finds adapters in S3 and stores like it.
