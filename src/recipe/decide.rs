//! What the data alone decide. The figures behind the rules are in docs/results.md.

use std::collections::BTreeSet;

use super::Decision;
use crate::data::Dataset;
use crate::model::Stem;
use crate::run::config::Config;
use crate::train::init::TEXTURES;

/// The largest class may have so many times the images of the smallest before classes are drawn equally often.
const UNEVEN: f64 = 1.5;
/// Sides from which, and up to which, the first convolution leaves half of rows and columns.
const HALF: std::ops::RangeInclusive<usize> = 40..=96;
/// Up to so many training images, batches of so many.
const BATCHES: [(usize, i64); 2] = [(5_000, 32), (20_000, 64)];
const LARGE_BATCH: i64 = 128;

/// Settings that follow from size, number and balance of the images, beside those that were given.
pub(super) fn from_data(data: &Dataset, config: &Config, given: &BTreeSet<String>) -> Vec<Decision> {
    let shape = data.shape();
    let side = shape.height.max(shape.width);
    let stem = if HALF.contains(&side) {
        "half"
    } else if side > *HALF.end() {
        "imagenet"
    } else {
        "cifar"
    };
    let images = data.train.len();
    let batch = BATCHES.iter().find(|(most, _)| images <= *most).map_or(LARGE_BATCH, |(_, batch)| *batch);
    let sizes = data.train.class_sizes(data.classes.len());
    let (largest, smallest) = (sizes.iter().max().unwrap_or(&0), sizes.iter().min().unwrap_or(&0));
    let uneven = *largest as f64 > UNEVEN * *smallest as f64;
    let mut decisions = vec![
        Decision::new(
            "arch",
            "mobile-resnet",
            "0.3 million parameters: wider ones gained nothing on inspection data",
        ),
        Decision::new("stem", stem, format!("images of {} × {} pixels", shape.height, shape.width)),
        Decision::new(
            "optimizer",
            "adamw",
            "in few epochs as good as SGD at any learning rate that was tried",
        ),
        Decision::new("no-decay-norm", true, "usual with AdamW"),
        Decision::new("label-factor", 0.9, "label smoothing of 0.1"),
        Decision::new("batch-size", batch, format!("{images} training images")),
        Decision::new(
            "balance",
            if uneven { "sampling" } else { "none" },
            format!("the smallest class has {smallest} training images, the largest {largest}"),
        ),
    ];
    if let Some(side) = config.image_size {
        let reason = "the images are larger; so they cost as much as 64 pixels with the stem half";
        decisions.push(Decision::new("image-size", side as i64, reason));
    }
    if config.method.is_adversarial() {
        decisions.push(Decision::new("guard", "rollback", "a collapse goes back to the last good epoch"));
        let batch = if given.contains("batch-size") { config.batch_size } else { batch as usize };
        let steps = (images / batch).max(2);
        // Three decimals, for people to read.
        let decay = (1000.0 * (1.0 - 1.0 / steps as f64)).round() / 1000.0;
        let reason = format!("the mean of the weights over about an epoch, {steps} steps, is more robust");
        decisions.push(Decision::new("ema", decay, reason));
    }
    // The weights fit two networks.
    let arch = !given.contains("arch") || ["mobile-resnet", "micro-cnn"].contains(&config.arch.name);
    let width = config.width.is_none_or(|width| width == 16);
    let stem = config.stem.map_or(stem == "half", |stem| stem == Stem::Half);
    if arch && width && stem {
        decisions.push(Decision::new("init", TEXTURES, "weights trained against attacks on drawn textures"));
    }
    decisions
}
