//! Runs attacks over images and counts.

pub mod conditions;
pub mod examples;
pub mod figures;
mod grade;
mod progress;
mod runner;
mod subject;
pub mod warnings;

pub use figures::{Conditioned, Point};
pub use grade::{CURVE, EvaluationOptions, Grade};
pub use progress::Saved;
pub use steadfast_infer::{Decision, argmax, margin};
pub use subject::Subject;
