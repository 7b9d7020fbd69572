//! Steadfast trains image classifiers that keep working under attack, and hands them to the inspection line.
//!
//! From drawn parts to verdicts; a folder of your own is read by [`Dataset::read`]:
//!
//! ```
//! use steadfast::{Bundle, Config, Dataset, Device, Error, Evaluation, EvaluationOptions, Training};
//! use steadfast::attack::Budget;
//! use steadfast::export::{ExportOptions, export};
//! use steadfast::run::Which;
//!
//! # fn main() -> Result<(), Error> {
//! # let folder = tempfile::tempdir().unwrap();
//! # let (run_folder, bundle_folder) = (folder.path().join("run"), folder.path().join("bundle"));
//! let device = Device::cpu();
//! let data = Dataset::drawn(1, 16, (96, 24, 24));
//!
//! // Fast adversarial training against changes of up to 8/255 per pixel.
//! let config = Config {
//!     epochs: 2,
//!     batch_size: 16,
//!     width: Some(4),
//!     good: vec!["good".to_string()],
//!     ..Config::default()
//! };
//! let (run, _) = Training::new(&config).run(&data, &run_folder, &device)?;
//!
//! // What an attacker leaves of it, on images that chose nothing.
//! let model = run.model(&run.checkpoint(Which::Best)?, &device)?;
//! let test = data.test.clone();
//! let evaluation = Evaluation::new(&model, test, data.classes.len(), run.decision(), &device);
//! let attacks = evaluation.attacks(&["clean", "pgd-20"])?;
//! let budget = Budget::new(config.epsilon.get());
//! let result = evaluation.run(&attacks, budget, &EvaluationOptions::default())?;
//! let accuracy = |attack: &str| result.rows.iter().find(|row| row.attack == attack).unwrap().accuracy;
//! assert!(accuracy("pgd-20") <= accuracy("clean"));
//!
//! // To the line: a bundle checks itself when it is opened.
//! export(&run, &bundle_folder, &ExportOptions::default())?;
//! let bundle = Bundle::open(&bundle_folder, &device)?;
//! let part = std::fs::read(bundle_folder.join("golden/00.png")).unwrap();
//! println!("{:?}", bundle.classify(&part)?);
//! # Ok(())
//! # }
//! ```
//!
//! The modules, in the order in which an image walks through them: [`device`], [`data`], [`batch`], [`model`], [`attack`],
//! [`method`], [`converge`], [`evaluate`], [`run`], [`train`], [`bundle`], [`export`], [`inspect`], [`explain`], [`report`]. Progress and
//! warnings go to an [`observer`]. Inference without training is the crate [`steadfast_infer`].

#![warn(missing_docs)]

pub mod attack;
pub mod batch;
pub mod bundle;
pub mod check;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
pub mod converge;
pub mod curve;
pub mod data;
#[doc(hidden)]
pub mod demo;
pub mod device;
pub mod drift;
pub mod error;
pub mod evaluate;
pub mod explain;
pub mod export;
#[doc(hidden)]
pub mod files;
pub mod fraction;
pub mod inspect;
#[doc(hidden)]
pub mod kernel;
/// One writer for a folder.
pub mod lock;
pub mod method;
pub mod model;
pub mod observer;
#[doc(hidden)]
mod onnx;
pub mod profile;
pub mod random;
pub mod recipe;
pub mod report;
pub mod retrain;
pub mod run;
#[cfg(feature = "serve")]
pub mod serve;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod sweep;
pub mod train;

pub use attack::Attack;
pub use bundle::Bundle;
pub use data::Dataset;
pub use device::Device;
pub use error::Error;
pub use evaluate::{Evaluation, EvaluationOptions};
pub use run::config::Config;
pub use train::Training;
