//! A folder of downloads by content digest.
