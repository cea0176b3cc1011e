//! Finds adapters in a folder.
