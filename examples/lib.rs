//! Examples live in the folders beside this file.
