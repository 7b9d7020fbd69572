//! The folder of a run: its configuration, facts, log and checkpoints.

pub mod checkpoint;
pub mod choices;
pub mod config;
mod defaults;
pub mod evaluation;
pub mod flags;
pub mod log;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use steadfast_infer::{all_bits, are_all_bits};

use crate::bail;
use crate::data::duplicates::{self, ImageHash};
use crate::data::{Dataset, ImageShape, Images, ModelInput};
use crate::device::Device;
use crate::error::{At, Result};
use crate::evaluate::Decision;
use crate::files::{self, to_json};
use crate::model::{Classifier, ModelConfig, Stem};
use checkpoint::Checkpoint;
use config::Config;

/// Facts of a run that its configuration does not say; saved as `run.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Version of this program.
    pub version: String,
    /// The network.
    pub model: ModelConfig,
    /// Shape of every image.
    pub image: ImageShape,
    /// How many bits the values of 16-bit images take; absent where it is all 16.
    #[serde(default = "all_bits", skip_serializing_if = "are_all_bits")]
    pub bit_depth: u32,
    /// Class names in label order.
    pub classes: Vec<String>,
    /// Indices of the good classes.
    pub good: Vec<usize>,
    /// Format of the data set.
    pub format: String,
    /// SHA-256 of the decoded data set, splits included.
    pub data_fingerprint: String,
    /// Images in the training, validation and test part.
    pub images: [usize; 3],
    /// Device that trained.
    pub device: String,
    /// Files left out, with the reason.
    pub skipped: Vec<String>,
}

/// The file of a run by which the images of its training are recognised.
const TRAINED_ON: &str = "trained-on.bin";

/// A run on disk.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its folder.
    pub path: PathBuf,
    /// Its configuration.
    pub config: Config,
    /// Its facts.
    pub facts: Facts,
}

/// Which checkpoint of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Which {
    /// The epoch with the highest balanced accuracy on the validation part, under PGD-10 where it was trained against attacks.
    #[default]
    Best,
    /// The last epoch.
    Last,
}

impl Which {
    /// `best` or `last`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Best => "best",
            Self::Last => "last",
        }
    }
}

impl Facts {
    /// Facts of training `config` on `data`.
    pub fn new(config: &Config, data: &Dataset, device: &Device) -> Result<Self> {
        let image = data.shape();
        let good = data.good_indices(&config.good)?;
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").to_string(),
            model: ModelConfig {
                arch: config.arch,
                width: config.width(),
                channels: image.channels,
                classes: data.classes.len(),
                stem: config.stem.unwrap_or_else(|| Stem::for_images(image)),
                normalize: false,
            },
            image,
            bit_depth: data.bit_depth,
            classes: data.classes.clone(),
            good,
            format: data.format.to_string(),
            data_fingerprint: data.fingerprint(),
            images: [data.train.len(), data.val.len(), data.test.len()],
            device: device.to_string(),
            skipped: data.skipped.clone(),
        })
    }

    /// What its model takes.
    pub fn input(&self) -> ModelInput {
        ModelInput { classes: self.classes.clone(), shape: self.image, bit_depth: self.bit_depth }
    }
}

impl Run {
    /// Whether the folder holds a run.
    pub fn is_at(path: &Path) -> bool {
        path.join("run.json").exists()
    }

    /// Refuses a folder that holds a run.
    ///
    /// # Errors
    /// It does.
    pub fn refuse_another(path: &Path) -> Result<()> {
        if Self::is_at(path) {
            bail!(
                "--out {}: holds a run already; continue it with --resume or choose another folder",
                path.display()
            );
        }
        Ok(())
    }

    /// Makes the folder of a new run, which must not hold one yet; `images` are those of its training.
    pub fn create(path: &Path, config: &Config, facts: Facts, images: &Images) -> Result<Self> {
        let run = Self { path: path.to_path_buf(), config: config.clone(), facts };
        Self::refuse_another(path)?;
        std::fs::create_dir_all(path).at("create", path)?;
        // What makes it a run comes last: one that is killed before begins anew.
        duplicates::write(&duplicates::hashes(images), &run.file(TRAINED_ON))?;
        files::write_atomically(&run.file("config.toml"), config.to_toml().as_bytes())?;
        files::write_atomically(&run.file("run.json"), to_json(&run.facts).as_bytes())?;
        Ok(run)
    }

    /// Opens a run.
    ///
    /// # Errors
    /// The folder holds none.
    pub fn open(path: &Path) -> Result<Self> {
        let facts = path.join("run.json");
        if !facts.exists() {
            bail!("{}: not a run of `steadfast train` (no run.json in it)", path.display());
        }
        let config = Config::read(&path.join("config.toml"))?;
        let facts = serde_json::from_slice(&files::read(&facts)?).at("read", &facts)?;
        Ok(Self { path: path.to_path_buf(), config, facts })
    }

    /// By what the images of its training are recognised; nothing where an older version trained.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn trained_on(&self) -> Result<Vec<ImageHash>> {
        duplicates::read(&self.file(TRAINED_ON))
    }

    /// A file of the run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where a checkpoint is.
    pub fn checkpoint_file(&self, which: Which) -> PathBuf {
        self.file(&format!("{}.safetensors", which.name()))
    }

    /// Reads a checkpoint.
    pub fn checkpoint(&self, which: Which) -> Result<Checkpoint> {
        let path = self.checkpoint_file(which);
        if !path.exists() {
            bail!("{}: the run has no such checkpoint yet; train at least one epoch", path.display());
        }
        self.read_checkpoint(&path)
    }

    /// How a checkpoint is chosen, in words.
    pub fn selected_by(&self, which: Which) -> &'static str {
        match (which, self.config.method.is_adversarial()) {
            (Which::Best, true) => {
                "highest balanced accuracy under PGD-10 on the validation part; the test part was not used"
            }
            (Which::Best, false) => {
                "highest balanced accuracy on the validation part; the test part was not used"
            }
            (Which::Last, _) => "the last epoch",
        }
    }

    /// Reads a checkpoint of this run under another name.
    ///
    /// # Errors
    /// The file is missing, damaged, or holds another network.
    pub fn read_checkpoint(&self, path: &Path) -> Result<Checkpoint> {
        let checkpoint = Checkpoint::read(path)?;
        checkpoint.check(&self.facts.model.graph(), self.config.freeze > 0, path)?;
        Ok(checkpoint)
    }

    /// The network with a checkpoint's weights, on the autodiff twin of `device`.
    pub fn model(&self, checkpoint: &Checkpoint, device: &Device) -> Result<Classifier> {
        Classifier::from_weights(&self.facts.model, checkpoint.model.clone(), &device.burn.clone().autodiff())
    }

    /// How its logits become a verdict.
    pub fn decision(&self) -> Decision {
        Decision::of_classes(self.facts.good.clone())
    }
}
