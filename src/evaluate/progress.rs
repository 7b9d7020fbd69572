//! What an evaluation has found so far, in memory and in a file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burn::tensor::{Int, Tensor, TensorData};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde::{Deserialize, Serialize};

use super::figures::{Conditioned, Outcome, Part, Point};
use crate::bail;
use crate::device::Device;
use crate::error::{At, Error, Result};
use crate::files;
use crate::model::state_dict::{Values, read_values, to_tensor};
use crate::observer;

/// Time between two saves.
const EVERY: Duration = Duration::from_secs(10);
const METADATA: &str = "steadfast-evaluation";
const ENDED: &str = "ended";
const ENDING: &str = "ending";

/// Where an evaluation keeps what it has found so far.
pub struct ProgressFile {
    /// The file.
    pub path: PathBuf,
    /// What was asked, in words: a file of another task is not gone on with.
    pub task: String,
}

impl ProgressFile {
    /// Removes the file: what it was about is written elsewhere.
    pub fn forget(&self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Where an evaluation stands.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Outcomes on the images as they are; empty until an attack needs them.
    pub clean: Vec<Outcome>,
    /// The suites that are finished.
    pub finished: Vec<AttackResult>,
    /// The one that is not.
    pub current: RoundState,
    /// Points of the curve so far.
    pub curve: Vec<Point>,
    /// Conditions so far.
    pub conditions: Vec<Conditioned>,
}

/// What a suite found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AttackResult {
    /// The worst outcome of each example; absent before the first.
    pub outcomes: Vec<Option<Outcome>>,
    /// What each attack left standing.
    pub parts: Vec<Part>,
    /// Seconds so far.
    pub seconds: f64,
    /// Length of the longest perturbation.
    pub longest: f32,
    /// Whether a pixel was no number between 0 and 1.
    pub outside: bool,
}

/// A suite on its way.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RoundState {
    /// What it found so far.
    pub finding: AttackResult,
    /// Which attack of the suite, and which round of that.
    pub attack: usize,
    /// Round.
    pub round: u32,
    /// The examples of the round; empty between rounds.
    pub standing: Vec<u32>,
    /// How many of them are done.
    pub done: usize,
    /// Where the round before ended, for attacks that go on from there. Kept beside the rest.
    #[serde(skip)]
    pub ended: CarriedImages,
    /// Where this one has ended so far.
    #[serde(skip)]
    pub ending: CarriedImages,
}

/// Images of examples, batch by batch in rising order, on the device.
#[derive(Debug, Clone, Default)]
pub struct CarriedImages(Vec<(Vec<u32>, Tensor<4>)>);

impl CarriedImages {
    /// Adds a batch; rows beyond its examples are left out.
    pub fn push(&mut self, examples: Vec<u32>, images: Tensor<4>) {
        let count = examples.len();
        self.0.push((examples, images.narrow(0, 0, count)));
    }

    /// The images of some of the examples, in rising order; the last may come again.
    pub fn take(&self, wanted: &[u32]) -> Tensor<4> {
        let pieces = self.0.iter().filter_map(|(examples, images)| {
            let rows: Vec<i32> = wanted
                .iter()
                .filter_map(|example| examples.binary_search(example).ok())
                .map(|row| row as i32)
                .collect();
            let count = rows.len();
            let rows_on_device =
                Tensor::<1, Int>::from_data(TensorData::new(rows, [count]), &images.device());
            (count > 0).then(|| images.clone().select(0, rows_on_device))
        });
        Tensor::cat(pieces.collect(), 0)
    }

    fn examples(&self) -> Vec<u32> {
        self.0.iter().flat_map(|(examples, _)| examples).copied().collect()
    }

    /// Reads all of it back from the device.
    fn read(&self) -> Values {
        let parts: Vec<Values> = self.0.iter().map(|(_, images)| read_values(images.clone())).collect();
        let mut shape = parts.first().map_or(vec![0; 4], |part| part.shape.clone());
        shape[0] = parts.iter().map(|part| part.shape[0]).sum();
        Values { shape, data: parts.into_iter().flat_map(|part| part.data).collect() }
    }
}

/// Writes progress down now and then.
pub struct ProgressWriter<'a> {
    saved: Option<&'a ProgressFile>,
    next: Instant,
}

impl<'a> ProgressWriter<'a> {
    /// For a file, or for none.
    pub fn new(saved: Option<&'a ProgressFile>) -> Self {
        Self { saved, next: Instant::now() + EVERY }
    }

    /// What the file holds, if it is about the same task.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn read(&self, device: &Device) -> Result<Progress> {
        let Some(saved) = self.saved.filter(|saved| saved.path.exists()) else {
            return Ok(Progress::default());
        };
        let path = &saved.path;
        let (task, progress) = read(path, device).map_err(|error| {
            Error::new(format!(
                "{error}; it is no file of this version: remove it, and the evaluation starts anew"
            ))
        })?;
        if task != saved.task {
            bail!(
                "{}: holds the beginning of another evaluation; finish that one, remove the file, or name another with --progress",
                path.display()
            );
        }
        observer::note(format!("goes on from {}", path.display()));
        Ok(progress)
    }

    /// Writes it, if it is time to. Whether there is a file: without one, where the disk is full, the work goes on.
    pub fn keep(&mut self, progress: &Progress, now: bool) -> bool {
        let started = Instant::now();
        if let Some(saved) = self.saved
            && (now || started >= self.next)
        {
            if let Err(error) = write(&saved.path, &saved.task, progress) {
                observer::warn(format!("{error}: what was found so far is not kept"));
                self.saved = None;
            }
            // Images may be among it: writing takes no more than a twentieth of the time.
            self.next = Instant::now() + EVERY.max(20 * started.elapsed());
        }
        self.saved.is_some()
    }

    /// Says that the user stopped the work, and writes down what was found.
    pub fn interrupted(&mut self, attack: &str, progress: &Progress) -> Error {
        let kept = match self.keep(progress, true) {
            true => "what was found is kept, the same command goes on from it",
            false => "nothing was written",
        };
        Error::interrupted(format!("interrupted while measuring {attack}; {kept}"))
    }
}

fn read(path: &Path, device: &Device) -> Result<(String, Progress)> {
    let bytes = files::read(path)?;
    let (_, header) = SafeTensors::read_metadata(&bytes).at("read", path)?;
    let metadata = header.metadata().as_ref().and_then(|metadata| metadata.get(METADATA));
    let (task, mut progress, [ended, ending]): (String, Progress, [Vec<u32>; 2]) =
        serde_json::from_str(metadata.map_or("", String::as_str)).at("read", path)?;
    let file = SafeTensors::deserialize(&bytes).at("read", path)?;
    let current = &mut progress.current;
    for (carried, examples, name) in
        [(&mut current.ended, ended, ENDED), (&mut current.ending, ending, ENDING)]
    {
        let images = Values::read(&file, name).at("read", path)?;
        if !examples.is_empty() {
            if images.shape.len() != 4 || images.shape[0] != examples.len() {
                bail!("{}: damaged: it holds other images than it says; remove it", path.display());
            }
            carried.push(examples, to_tensor(images, &device.burn));
        }
    }
    Ok((task, progress))
}

fn write(path: &Path, task: &str, progress: &Progress) -> Result<()> {
    let carried = [&progress.current.ended, &progress.current.ending];
    let text = serde_json::to_string(&(task, progress, carried.map(CarriedImages::examples)))
        .expect("plain data serialises");
    let values = carried.map(CarriedImages::read);
    let bytes = values.each_ref().map(Values::to_bytes);
    let view = |i: usize| {
        let shape = values[i].shape.clone();
        TensorView::new(Dtype::F32, shape, &bytes[i]).expect("shape and bytes agree")
    };
    let metadata = HashMap::from([(METADATA.to_string(), text)]);
    let views = [(ENDED, view(0)), (ENDING, view(1))];
    files::write_atomically(path, &serialize(views, Some(metadata)).at("serialise", path)?)
}
