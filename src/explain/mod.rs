//! `steadfast explain`: why an image gets its verdict, and how little would change it.

mod maps;
mod smallest;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use burn::tensor::{Tensor, TensorData};
use serde::Serialize;
use steadfast_infer::{Outputs, Verdict, argmax};

use crate::bail;
use crate::bundle::{Bundle, Classification};
use crate::data::image::{encode_png, encode_values, preprocess};
use crate::data::{Dataset, ImageShape, Images, Purpose, ReadOptions};
use crate::device::Device;
use crate::error::Result;
use crate::evaluate::examples::scaled_change;
use crate::files::{self, printable};
use crate::model::state_dict::read_values;
use crate::model::{Forward, Subject};
use crate::observer;
use crate::random::Key;
use smallest::{Decided, Smallest, smallest};

/// Images that are explained together.
const BATCH: usize = 64;
/// Training images that are named.
const NEIGHBOURS: usize = 3;

/// What can be said of an image.
#[derive(Serialize)]
pub struct Explanation {
    /// The file.
    pub path: String,
    /// What the bundle says.
    #[serde(flatten)]
    pub classification: Classification,
    /// The smallest change that was found to change the verdict, or the class where no good one is known; none within 64/255.
    pub change: Option<Change>,
    /// The training images that the network takes for most alike, the nearest first; empty without data.
    pub neighbours: Vec<Neighbour>,
    /// Pictures.
    #[serde(skip)]
    pub pictures: Pictures,
}

/// A change of the image that changes the decision.
#[derive(Serialize)]
pub struct Change {
    /// The largest change of a pixel, in units of [0, 1].
    pub epsilon: f32,
    /// The attack that found it: `fab-t` or `apgd`.
    pub found_by: &'static str,
    /// What the bundle says then.
    pub label: String,
    /// Its verdict then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// The ninth of the image that carries most of it...
    pub region: String,
    /// ...and its share.
    pub region_share: f32,
    /// The smallest share of the image that carries half of it.
    pub half_area: f32,
}

/// A training image.
#[derive(Serialize)]
pub struct Neighbour {
    /// The file, or its number.
    pub path: String,
    /// Its class.
    pub label: String,
    /// Euclidean distance of the features, each in units of its standard deviation over the training images.
    pub distance: f32,
    /// The image, as PNG.
    #[serde(skip)]
    pub image: Vec<u8>,
}

/// Pictures in PNG.
pub struct Pictures {
    /// What the network saw.
    pub image: Vec<u8>,
    /// The input gradient, smoothed over noise.
    pub gradient: Vec<u8>,
    /// The class activation map, where the network has one.
    pub activation: Option<Vec<u8>>,
    /// The change (grey is nothing, black and white are the largest), what of it carries the other decision, and the changed
    /// image.
    pub change: Option<[Vec<u8>; 3]>,
}

/// What came of an image.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Explained {
    /// It was explained.
    Explained(Box<Explanation>),
    /// It could not be read.
    Unreadable {
        /// The file.
        path: String,
        /// The reason, in one line.
        error: String,
    },
}

/// Explains images; `data` is the data set of the training.
///
/// # Errors
/// No image can be read, or an interruption.
pub fn explain(
    bundle: &Bundle,
    paths: &[PathBuf],
    data: Option<&Dataset>,
    seed: u64,
    device: &Device,
    interrupted: &AtomicBool,
) -> Result<Vec<Explained>> {
    let classifier = bundle.classifier(device)?;
    let model = classifier.attacked();
    let neighbours = data.map(|data| Neighbours::new(bundle, data));
    let mut explained = Vec::new();
    for (number, paths) in paths.chunks(BATCH).enumerate() {
        let explainer =
            Explainer { bundle, model: model.as_ref(), key: Key::new(seed).child(number as u32, 0), device };
        explained.extend(explainer.explain(paths, neighbours.as_ref(), interrupted)?);
    }
    let errors = explained.iter().map(|one| match one {
        Explained::Explained(_) => None,
        Explained::Unreadable { error, .. } => Some(error),
    });
    match errors.collect::<Option<Vec<_>>>() {
        Some(errors) => {
            bail!("no image could be read: {}", errors.first().map_or("there is none", |error| error))
        }
        None => Ok(explained),
    }
}

/// The data set of a bundle's training; of another one it is said that it is not that.
///
/// # Errors
/// It cannot be read, has other classes, or no training image.
pub fn training_data(bundle: &Bundle, path: &Path) -> Result<Dataset> {
    let purpose = Purpose::Model(bundle.manifest.model_input());
    let set = Dataset::read(path, &ReadOptions { purpose, ..bundle.manifest.training.read_options() })?;
    if set.train.is_empty() {
        bail!("--data {}: no training image in it", path.display());
    }
    if set.fingerprint() != bundle.manifest.data.fingerprint {
        observer::warn(format!("{}: not exactly the data of the training", path.display()));
    }
    Ok(set)
}

/// The model that decides about images.
struct Explainer<'a> {
    bundle: &'a Bundle,
    model: &'a dyn Forward,
    key: Key,
    device: &'a Device,
}

/// Images about which it has decided.
struct Batch {
    /// `[images, channels, height, width]`.
    images: Tensor<4>,
    decided: Decided,
}

impl Explainer<'_> {
    fn explain(
        &self,
        paths: &[PathBuf],
        neighbours: Option<&Neighbours>,
        interrupted: &AtomicBool,
    ) -> Result<Vec<Explained>> {
        let input = &self.bundle.manifest.input;
        let (shape, classes) = (input.shape(), self.bundle.manifest.labels.len());
        let read = |path: &PathBuf| preprocess(&files::read(path)?, path, shape, input.bit_depth);
        let images: Vec<Result<Vec<f32>>> = paths.iter().map(read).collect();
        let readable: Vec<f32> = images.iter().flatten().flatten().copied().collect();
        let count = readable.len() / shape.len();
        let outputs = self.bundle.inference.outputs(&readable);
        let all: Vec<Vec<f32>> = outputs.logits.chunks_exact(classes).map(<[f32]>::to_vec).collect();
        let size = [count, shape.channels, shape.height, shape.width];
        let batch = Batch {
            images: Tensor::from_data(TensorData::new(readable, size), &self.device.burn),
            decided: Decided::new(&self.bundle.decision(), &all),
        };
        let found = match count {
            0 => Vec::new(),
            _ => smallest(self.model, &batch.images, &batch.decided, classes, self.key, interrupted)?,
        };
        let mut readable = outputs.of_images(classes).zip(&found).enumerate();
        let explained = paths.iter().zip(images).map(|(path, image)| {
            let path = printable(path);
            match image {
                Err(error) => Explained::Unreadable { path, error: error.with_flags().to_string() },
                Ok(_) => {
                    let (number, (outputs, found)) =
                        readable.next().expect("outputs of every readable image");
                    let near = neighbours.map_or_else(Vec::new, |near| near.of(outputs.1));
                    let explanation = self.explanation(&batch, number, path, outputs, found.as_ref());
                    Explained::Explained(Box::new(Explanation { neighbours: near, ..explanation }))
                }
            }
        });
        Ok(explained.collect())
    }

    fn explanation(
        &self,
        batch: &Batch,
        number: usize,
        path: String,
        (logits, features): (&[f32], &[f32]),
        found: Option<&Smallest>,
    ) -> Explanation {
        let shape = self.bundle.manifest.input.shape();
        let image = batch.images.clone().narrow(0, number, 1);
        let values = read_values(image.clone()).data;
        let predicted = argmax(logits);
        let label = Tensor::from_data([predicted as i64], &image.device());
        let plane = ImageShape { channels: 1, ..shape };
        let key = self.key.child(0, 1 + number as u32);
        let gradient = maps::smooth_gradient(self.model, &image, &label, key);
        let activation = self.bundle.activation_map(&values, predicted).map(|map| {
            encode_values(&map.values, ImageShape { channels: 1, height: map.rows, width: map.columns })
        });
        let (change, pictures) = match found {
            None => (None, None),
            Some(found) => {
                let (change, pictures) = self.change(batch, number, &image, &values, found);
                (Some(change), Some(pictures))
            }
        };
        Explanation {
            path,
            classification: self.bundle.classification(logits, features),
            change,
            neighbours: Vec::new(),
            pictures: Pictures {
                image: encode_values(&values, shape),
                gradient: encode_values(&maps::shades(&gradient), plane),
                activation,
                change: pictures,
            },
        }
    }

    fn change(
        &self,
        batch: &Batch,
        number: usize,
        image: &Tensor<4>,
        values: &[f32],
        found: &Smallest,
    ) -> (Change, [Vec<u8>; 3]) {
        let shape = self.bundle.manifest.input.shape();
        let Outputs { logits, features } = self.bundle.inference.outputs(&found.image);
        let Classification { label, verdict, .. } = self.bundle.classification(&logits, &features);
        let changed =
            Tensor::<4>::from_data(TensorData::new(found.image.clone(), image.dims()), &image.device());
        let label_of = batch.decided.labels(&[number], image);
        let carried =
            maps::contributions(self.model, [image, &changed], &label_of, batch.decided.objective.as_ref());
        let (region, region_share, half_area) = maps::region(&carried, shape.width);
        let pictures = [
            encode_values(&scaled_change(values, &found.image), shape),
            encode_values(&maps::shades(&carried), ImageShape { channels: 1, ..shape }),
            encode_values(&found.image, shape),
        ];
        let Smallest { epsilon, found_by, .. } = *found;
        (Change { epsilon, found_by, label, verdict, region, region_share, half_area }, pictures)
    }
}

/// The training images in the network's features.
struct Neighbours<'a> {
    images: &'a Images,
    classes: &'a [String],
    /// `[images, features]`, each in units of its standard deviation.
    features: Vec<f32>,
    scales: Vec<f32>,
}

impl<'a> Neighbours<'a> {
    fn new(bundle: &Bundle, data: &'a Dataset) -> Self {
        let images = data.train.as_ref();
        let mut features = bundle.inference.outputs_of(images, 0..images.len()).features;
        let width = (features.len() / images.len().max(1)).max(1);
        let scale = |feature: usize| {
            let values = || features.iter().skip(feature).step_by(width);
            let mean = values().sum::<f32>() / images.len() as f32;
            let variance = values().map(|value| (value - mean).powi(2)).sum::<f32>() / images.len() as f32;
            // A feature that never moves says nothing.
            if variance > 1e-12 { variance.sqrt().recip() } else { 0.0 }
        };
        let scales: Vec<f32> = (0..width).map(scale).collect();
        features
            .chunks_mut(width)
            .flat_map(|row| row.iter_mut().zip(&scales))
            .for_each(|(value, scale)| *value *= scale);
        Self { images, classes: &data.classes, features, scales }
    }

    fn of(&self, features: &[f32]) -> Vec<Neighbour> {
        let scaled: Vec<f32> =
            features.iter().zip(&self.scales).map(|(value, scale)| value * scale).collect();
        let distance = |row: &[f32]| {
            row.iter().zip(&scaled).map(|(one, other)| (one - other).powi(2)).sum::<f32>().sqrt()
        };
        let mut all: Vec<(f32, usize)> =
            self.features.chunks(self.scales.len()).map(distance).zip(0..).collect();
        all.sort_by(|(one, a), (other, b)| one.total_cmp(other).then(a.cmp(b)));
        let neighbour = |(distance, index): (f32, usize)| Neighbour {
            path: self
                .images
                .files
                .get(index)
                .map_or_else(|| format!("training image {index}"), |file| printable(file)),
            label: self.classes[self.images.labels[index] as usize].clone(),
            distance,
            image: encode_png(self.images.image(index), self.images.shape),
        };
        all.into_iter().take(NEIGHBOURS).map(neighbour).collect()
    }
}
