//! A bundle that answers: a queue of requests, one thread that computes them in batches, and the bundle itself, which may be
//! replaced while it answers.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};

use axum::body::Bytes;
use rayon::prelude::*;
use steadfast_infer::{Outputs, SUMS, sha256};
use tokio::sync::{mpsc, oneshot};

use super::locked;
use crate::bundle::Bundle;
use crate::data::image::preprocess;
use crate::device::Device;
use crate::drift;
use crate::error::Result;
use crate::observer;

/// Images that are computed together, at most.
const BATCH: usize = 64;
/// Hexadecimal digits of a checksum that name a version.
const VERSION: usize = 12;
/// Parts that are compared with those of the validation, at most and at least: of fewer the distance says nothing.
const RECENT: [usize; 2] = [500, 50];

/// A bundle that answers.
pub struct Model {
    /// Its name in addresses.
    pub name: String,
    path: PathBuf,
    device: Device,
    loaded: RwLock<Arc<Loaded>>,
    queue: mpsc::Sender<Job>,
}

/// A bundle with its version.
pub struct Loaded {
    /// The bundle.
    pub bundle: Bundle,
    /// The beginning of the checksum of its checksums.
    pub version: String,
    /// The distances of the validation part, as parts of the threshold.
    validation: Vec<f32>,
    /// Those of the last parts.
    recent: Mutex<VecDeque<f32>>,
}

/// What is to be classified.
pub enum Input {
    /// Files: PNG, JPEG, BMP, TIFF or WebP.
    Files(Vec<Bytes>),
    /// Images `[n, channels, height, width]` in [0, 1], flat.
    Values(Vec<f32>),
}

/// What came of an [`Input`].
pub struct Answer {
    /// By which bundle.
    pub loaded: Arc<Loaded>,
    /// What the network saw, `[n, channels, height, width]`, flat.
    pub images: Vec<f32>,
    /// What it gave.
    pub outputs: Outputs,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Refusal {
    /// The queue is full.
    Busy,
    /// The input is no image that can be read.
    Unreadable(String),
    /// Computing failed.
    Failed(String),
}

struct Job {
    loaded: Arc<Loaded>,
    input: Input,
    reply: oneshot::Sender<std::result::Result<Answer, Refusal>>,
}

impl Model {
    /// Opens the bundle and starts its thread. At most `queue` requests wait.
    ///
    /// # Errors
    /// As for [`Bundle::open`].
    pub fn start(path: &Path, device: &Device, queue: usize) -> Result<Arc<Self>> {
        let loaded = RwLock::new(Arc::new(Loaded::open(path, device)?));
        let (sender, receiver) = mpsc::channel(queue);
        std::thread::Builder::new()
            .name("steadfast-model".to_string())
            .spawn(move || work(receiver))
            .map_err(|error| crate::Error::new(format!("no thread for {}: {error}", path.display())))?;
        let (name, path, device) = (name_of(path), path.to_path_buf(), device.clone());
        Ok(Arc::new(Self { name, path, device, loaded, queue: sender }))
    }

    /// The bundle as it is now.
    pub fn loaded(&self) -> Arc<Loaded> {
        self.loaded.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Waits for the answer to an input, together with those of others.
    ///
    /// # Errors
    /// Too many are waiting, the image cannot be read, or computing failed.
    pub async fn answer(&self, loaded: Arc<Loaded>, input: Input) -> std::result::Result<Answer, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.queue.try_send(Job { loaded, input, reply }).map_err(|_| Refusal::Busy)?;
        answer.await.unwrap_or_else(|_| Err(Refusal::Failed("the thread of the model ended".to_string())))
    }

    /// Takes what is on the disk, if it is another bundle than the one that answers; `None` where it is the same, or the one that
    /// was `refused` before.
    ///
    /// # Errors
    /// It is refused, and the old one goes on answering; with its version.
    pub fn reload(&self, refused: &str) -> Option<std::result::Result<String, (String, String)>> {
        let version = version_at(&self.path)?;
        if version == self.loaded().version || version == refused {
            return None;
        }
        Some(match Loaded::open(&self.path, &self.device) {
            Ok(loaded) => {
                let version = loaded.version.clone();
                *self.loaded.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Arc::new(loaded);
                Ok(version)
            }
            Err(error) => Err((version, error.with_flags().to_string())),
        })
    }
}

impl Loaded {
    fn open(path: &Path, device: &Device) -> Result<Self> {
        // Before the files: a bundle that is replaced meanwhile is looked at again.
        let version = version_at(path).unwrap_or_default();
        let bundle = Bundle::open(path, device)?;
        Ok(Self { validation: bundle.validation_distances(), bundle, version, recent: Mutex::default() })
    }

    /// Keeps the distance of a part.
    pub fn seen(&self, distance: f32) {
        let mut recent = locked(&self.recent);
        recent.push_back(distance);
        if recent.len() > RECENT[0] {
            recent.pop_front();
        }
    }

    /// How far the last parts are from the validation part (Kolmogorov and Smirnov's distance); `None` before there are enough,
    /// and where the bundle holds no distances.
    pub fn drift(&self) -> Option<f64> {
        let recent: Vec<f32> = locked(&self.recent).iter().copied().collect();
        (recent.len() >= RECENT[1]).then(|| drift::statistic(&recent, &self.validation))
    }
}

fn version_at(path: &Path) -> Option<String> {
    let sums = std::fs::read(path.join(SUMS)).ok()?;
    Some(sha256(&sums)[..VERSION].to_string())
}

/// The last part of a path, or where that is a link `current`, the one before it.
fn name_of(path: &Path) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    match name(&absolute) {
        Some(last) if last != "current" => last,
        _ => absolute.parent().and_then(name).unwrap_or_else(|| "model".to_string()),
    }
}

/// Computes what is queued until nobody can queue anything any more: whatever waits, together.
fn work(mut queue: mpsc::Receiver<Job>) {
    while let Some(first) = queue.blocking_recv() {
        let mut jobs = vec![first];
        while jobs.len() < BATCH {
            let Ok(job) = queue.try_recv() else { break };
            jobs.push(job);
        }
        while !jobs.is_empty() {
            // A bundle may be replaced between two requests.
            let same = |job: &Job| Arc::ptr_eq(&job.loaded, &jobs[0].loaded);
            let count = jobs.iter().take_while(|job| same(job)).count();
            compute(jobs.drain(..count).collect());
        }
    }
}

fn compute(jobs: Vec<Job>) {
    let Some(loaded) = jobs.first().map(|job| job.loaded.clone()) else { return };
    let input = &loaded.bundle.manifest.input;
    let (shape, bit_depth) = (input.shape(), input.bit_depth);
    let file = |bytes: &Bytes| preprocess(bytes, Path::new("the image"), shape, bit_depth);
    let read = |job: Job| {
        let images = match job.input {
            Input::Files(files) => files
                .par_iter()
                .map(file)
                .collect::<Result<Vec<Vec<f32>>>>()
                .map(|images| images.concat())
                .map_err(|error| Refusal::Unreadable(error.with_flags().to_string())),
            Input::Values(values) => Ok(values),
        };
        (images, job.reply)
    };
    let inputs: Vec<_> = jobs.into_par_iter().map(read).collect();
    let all: Vec<f32> = inputs.iter().flat_map(|(images, _)| images).flatten().copied().collect();
    let outputs = catch_unwind(AssertUnwindSafe(|| loaded.bundle.inference.outputs(&all)));
    if outputs.is_err() {
        observer::warn("computing failed; these requests are answered with an error".to_string());
    }
    let classes = loaded.bundle.manifest.labels.len();
    let mut each = outputs.as_ref().ok().map(|outputs| outputs.of_images(classes));
    for (images, reply) in inputs {
        let answer = images.and_then(|images| {
            let each = each.as_mut().ok_or_else(|| Refusal::Failed("computing failed".to_string()))?;
            let mut outputs = Outputs::default();
            for (logits, features) in each.take(images.len() / shape.len()) {
                outputs.logits.extend(logits);
                outputs.features.extend(features);
            }
            Ok(Answer { loaded: loaded.clone(), images, outputs })
        });
        // Who asked may have gone.
        let _ = reply.send(answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_called_as_their_folders() {
        for (path, name) in [
            ("exports/parts", "parts"),
            ("/a/parts/current", "parts"),
            ("/current", "model"),
            ("x/v3/", "v3"),
        ] {
            assert_eq!(name_of(Path::new(path)), name, "{path}");
        }
    }
}
