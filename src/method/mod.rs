//! The base methods: attacks that make the training examples, one file each behind one trait. To add one: its file with an
//! `ENTRY`, the `mod` line here, and a line in `registry.rs`; fields of [`MethodSettings`] where it has settings of its own.

mod base;
mod clean;
mod entry;
mod fgsm;
mod fgsm_bp;
mod fgsm_ep;
mod fgsm_mep;
mod fgsm_rs;
mod free;
pub mod grad_align;
mod history;
mod n_fgsm;
mod pgd_k;
mod registry;
mod settings;
pub mod trades;
pub mod zero_grad;

pub use base::{AttackInput, Attacked, BaseMethod};
pub use entry::MethodConfig;
pub use registry::{Method, alpha_help, help};
pub use settings::MethodSettings;
