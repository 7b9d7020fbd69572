//! Many trainings from one file: every setting with every seed is a run of its own, and one table says what came out.
//!
//! A sweep keeps no state: what is in the folders of its runs says what is left to do.

pub mod emit;
mod jobs;
pub mod outcome;
pub mod spec;
pub mod table;

pub use jobs::{CHILD_VARIABLE, Options, run};
