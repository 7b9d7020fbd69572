//! A model and what it is measured on.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use steadfast_infer::Decision;

use crate::attack::{self, Suite};
use crate::data::Images;
use crate::device::Device;
use crate::error::Result;
use crate::model::Subject;
use crate::observer::NEVER;

/// A model and what it is measured on.
pub struct Evaluation<'a> {
    /// The model; a classifier in any mode is put into evaluation mode.
    pub model: &'a dyn Subject,
    /// The labelled images.
    pub images: Arc<Images>,
    /// Number of classes.
    pub classes: usize,
    /// How logits become a verdict.
    pub decision: Decision,
    /// Where to compute.
    pub device: &'a Device,
    /// Stops at the next batch when set.
    pub interrupted: &'a AtomicBool,
}

impl<'a> Evaluation<'a> {
    /// Of a model on images, which nothing interrupts.
    pub fn new(
        model: &'a dyn Subject,
        images: Arc<Images>,
        classes: usize,
        decision: Decision,
        device: &'a Device,
    ) -> Self {
        Self { model, images, classes, decision, device, interrupted: &NEVER }
    }

    /// The attacks of these names, see [`attack::parse`].
    ///
    /// # Errors
    /// A name is unknown, or its attack needs good classes and there are none.
    pub fn attacks(&self, names: &[&str]) -> Result<Vec<Suite>> {
        names.iter().map(|name| attack::parse(name, self.classes, &self.decision)).collect()
    }
}
