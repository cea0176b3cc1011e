//! Finds adapters on the Hugging Face Hub.
