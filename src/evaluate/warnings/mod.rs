//! What makes an evaluation doubtful, noticed by the program itself. Most follow the checks of AutoAttack and the advice of
//! Carlini et al., *On evaluating adversarial robustness* (2019).

mod figures;
mod model;
mod warning;

pub use figures::{Measured, of_figures};
pub use model::of_model;
pub use warning::Warning;
