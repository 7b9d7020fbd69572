//! What an evaluation is about.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use steadfast_infer::Decision;

use crate::data::Images;
use crate::device::Device;
use crate::model::Classifier;

/// A model and what it is measured on.
pub struct Subject<'a> {
    /// The model; any mode, it is put into evaluation mode.
    pub model: &'a Classifier,
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
