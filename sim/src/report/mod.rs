//! What people and machines get to read.

pub mod directory;
pub mod progress;
pub mod summary;
pub mod text;
