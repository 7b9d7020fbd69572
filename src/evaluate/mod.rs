//! Runs attacks over images and counts.

pub mod conditions;
mod evaluation;
pub mod examples;
pub mod figures;
mod measure;
mod progress;
pub mod qualities;
mod runner;
pub mod warnings;

pub use evaluation::Evaluation;
pub use figures::{Conditioned, Point};
pub use measure::{CURVE, EvaluationOptions, EvaluationResult};
pub use progress::ProgressFile;
pub use steadfast_infer::{Decision, argmax, margin};
