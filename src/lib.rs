//! Steadfast trains image classifiers that keep working under attack, and hands them to the inspection line.
//!
//! The modules, in the order in which an image walks through them: [`device`], [`data`], [`kernel`], [`batch`], [`model`],
//! [`attack`], [`method`], [`converge`], [`evaluate`], [`run`], [`train`], [`sweep`], [`bundle`], [`export`], [`inspect`],
//! [`report`];
//! [`cli`] only parses, calls and prints.

#![warn(missing_docs)]

pub mod attack;
pub mod batch;
pub mod bundle;
pub mod cli;
pub mod converge;
pub mod data;
pub mod demo;
pub mod device;
pub mod error;
pub mod evaluate;
pub mod export;
pub mod files;
pub mod fraction;
pub mod inspect;
pub mod kernel;
pub mod method;
pub mod model;
pub mod profile;
mod progress;
pub mod random;
pub mod report;
pub mod run;
pub mod sweep;
pub mod train;
