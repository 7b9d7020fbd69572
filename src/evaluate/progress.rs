//! What an evaluation has found so far, in memory and in a file.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde::{Deserialize, Serialize};

use super::figures::{Outcome, Part};
use super::{Conditioned, Point, Saved};
use crate::bail;
use crate::error::{At, Error, Result};
use crate::files;
use crate::model::state_dict::{from_view, to_bytes};
use crate::progress;

/// Time between two saves.
const EVERY: Duration = Duration::from_secs(10);
const METADATA: &str = "steadfast-evaluation";
const CARRIED: &str = "carried";

/// Where an evaluation stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Outcomes on the images as they are; empty until somebody wants them.
    pub clean: Vec<Outcome>,
    /// The suites that are finished.
    pub finished: Vec<Finding>,
    /// The one that is not.
    pub current: Current,
    /// Points of the curve so far.
    pub curve: Vec<Point>,
    /// Conditions so far.
    pub conditions: Vec<Conditioned>,
}

/// What a suite found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Finding {
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
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Current {
    /// What it found so far.
    pub finding: Finding,
    /// Which attack of the suite, and which round of that.
    pub attack: usize,
    /// Round.
    pub round: u32,
    /// The examples of the round; empty between rounds.
    pub standing: Vec<u32>,
    /// How many of them are done.
    pub done: usize,
    /// Where the last stage of an attack ended, example after example; empty where no attack goes on. Kept beside the rest.
    #[serde(skip)]
    pub carried: Vec<f32>,
}

/// Writes progress down now and then.
pub struct Keeper<'a> {
    saved: Option<&'a Saved>,
    next: Instant,
}

impl<'a> Keeper<'a> {
    /// For a file, or for none.
    pub fn new(saved: Option<&'a Saved>) -> Self {
        Self { saved, next: Instant::now() + EVERY }
    }

    /// What the file holds, if it is about the same task.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn read(&self) -> Result<Progress> {
        let Some(saved) = self.saved.filter(|saved| saved.path.exists()) else {
            return Ok(Progress::default());
        };
        let path = &saved.path;
        let (task, progress) = read(path).map_err(|error| {
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
        progress::note(&format!("goes on from {}", path.display()));
        Ok(progress)
    }

    /// Writes it, if it is time to. Whether there is a file.
    pub fn keep(&mut self, progress: &Progress, now: bool) -> Result<bool> {
        let Some(saved) = self.saved else { return Ok(false) };
        let started = Instant::now();
        if now || started >= self.next {
            write(&saved.path, &saved.task, progress)?;
            // Images may be among it: writing takes no more than a twentieth of the time.
            self.next = Instant::now() + EVERY.max(20 * started.elapsed());
        }
        Ok(true)
    }

    /// Says that the user stopped the work, and writes down what was found.
    pub fn interrupted(&mut self, attack: &str, progress: &Progress) -> Result<Error> {
        let kept = match self.keep(progress, true)? {
            true => "what was found is kept, the same command goes on from it",
            false => "nothing was written",
        };
        Ok(Error::interrupted(format!("interrupted while measuring {attack}; {kept}")))
    }
}

fn read(path: &Path) -> Result<(String, Progress)> {
    let bytes = files::read(path)?;
    let (_, header) = SafeTensors::read_metadata(&bytes).at("read", path)?;
    let metadata = header.metadata().as_ref().and_then(|metadata| metadata.get(METADATA));
    let (task, mut progress): (String, Progress) =
        serde_json::from_str(metadata.map_or("", String::as_str)).at("read", path)?;
    let file = SafeTensors::deserialize(&bytes).at("read", path)?;
    progress.current.carried = from_view(&file.tensor(CARRIED).at("read", path)?).data;
    Ok((task, progress))
}

fn write(path: &Path, task: &str, progress: &Progress) -> Result<()> {
    let text = serde_json::to_string(&(task, progress)).expect("plain data serialises");
    let carried = &progress.current.carried;
    let bytes = to_bytes(carried);
    let view = TensorView::new(Dtype::F32, vec![carried.len()], &bytes).expect("shape and bytes agree");
    let metadata = HashMap::from([(METADATA.to_string(), text)]);
    files::write_atomically(path, &serialize([(CARRIED, view)], Some(metadata)).at("serialise", path)?)
}
