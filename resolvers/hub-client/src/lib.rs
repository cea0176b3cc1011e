//! The routes of the Hugging Face Hub and the layout of its cache folder.
