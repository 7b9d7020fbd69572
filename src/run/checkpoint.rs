//! One file per checkpoint: safetensors with the weights, the optimizer's state and the running sums, and one
//! metadata entry with the rest. Written beside and renamed, so the previous one survives whatever happens.

use std::collections::HashMap;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde::{Deserialize, Serialize};
use steadfast_infer::check_weights;
use steadfast_infer::graph::{Graph, Role};

use super::log::Check;
use crate::converge::Means;
use crate::error::{At, Error, Result};
use crate::evaluate::figures::Figures;
use crate::files;
use crate::model::state_dict::{StateDict, Values};

const METADATA: &str = "steadfast";
const MODEL: &str = "model.";
const LEARNER: &str = "learner.";
const VELOCITY: &str = "velocity.";
const SECOND_MOMENT: &str = "second_moment.";
const METHOD: &str = "method.";
const CENTRE: &str = "centre.";
const SUMS: &str = "state.sums";
const MEANS: &str = "state.means";

/// Where a run stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Parameters and BatchNorm statistics; with `--ema` their moving average.
    pub model: StateDict,
    /// With `--ema`, the parameters and statistics that training goes on from; empty without it, and in `best`.
    pub learner: StateDict,
    /// SGD's velocities or AdamW's first moments; empty in `best`, which is never resumed.
    pub velocity: StateDict,
    /// AdamW's second moments; empty with SGD and in `best`.
    pub second_moment: StateDict,
    /// What the base method remembers; empty in `best`.
    pub method: StateDict,
    /// The centre of the weights, flat, where the constraint has one; empty in `best`.
    pub centre: StateDict,
    /// The epoch's running sums so far.
    pub sums: Vec<f32>,
    /// Epoch means that the constraint remembers.
    pub means: Vec<Means>,
    /// The rest.
    pub state: State,
}

/// What a checkpoint says about itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Epochs completed.
    pub epoch: usize,
    /// Steps completed in the epoch after those.
    pub step: usize,
    /// Epochs that the centre is the mean of.
    #[serde(default)]
    pub centre_epochs: usize,
    /// What the guard remembers.
    #[serde(default)]
    pub watch: Watch,
    /// What the guard saw in the epoch so far.
    #[serde(default)]
    pub checks: Vec<Check>,
    /// How many attack steps the auto preset takes.
    #[serde(default)]
    pub auto: Auto,
    /// Attack steps of the epoch so far, summed over its training steps.
    #[serde(default)]
    pub attack_steps: u64,
    /// Lines of the log so far.
    pub log: Vec<String>,
    /// The best epoch so far, by balanced validation accuracy, under PGD-10 where it is trained against attacks.
    pub best: Option<Best>,
    /// Validation figures of the last completed epoch.
    pub validation: Vec<Figures>,
    /// Where the validation images stand between good and defect; without `--good` empty.
    pub margins: Vec<Margin>,
}

impl State {
    /// Why the network is of no use by its validation figures, if it is not: by clean images, and by those under attack where it
    /// was trained against attacks.
    pub fn useless(&self, attacked: bool, classes: &[String]) -> Option<String> {
        let mut rows = self.validation.iter().filter(|row| attacked || row.attack == "clean");
        rows.find_map(|row| row.useless(classes))
    }

    /// The classes of which it finds next to nothing by the clean validation images.
    pub fn not_found(&self) -> Vec<usize> {
        self.validation.first().map(Figures::not_found).unwrap_or_default()
    }

    /// Balanced accuracy of the validation part under an attack; 0 where it was not measured.
    pub fn balanced_accuracy(&self, attack: &str) -> f64 {
        self.validation.iter().find(|row| row.attack == attack).map_or(0.0, |row| row.balanced_accuracy)
    }

    /// Whether it is of no use, or does not find a class.
    pub fn is_doubtful(&self, attacked: bool) -> bool {
        self.useless(attacked, &[]).is_some() || !self.not_found().is_empty()
    }
}

/// What the guard remembers of earlier epochs; saved with every checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Watch {
    /// Highest accuracy under PGD-10 so far.
    pub peak: f64,
    /// Whether some epoch predicted more than one class.
    pub varied: bool,
    /// How often the run went back.
    pub rollbacks: u32,
    /// Why the last epoch counts as collapsed, if it does.
    pub collapsed: Option<String>,
}

/// How many attack steps there are, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Auto {
    /// Attack steps now.
    pub steps: u32,
    /// Running sums of the epoch at the last update: examples and abnormal ones.
    pub seen: [f64; 2],
    /// The same since the last verdict.
    pub pending: [f64; 2],
    /// Verdicts in a row with a low share.
    pub calm: u32,
    /// How many of them take a step back.
    pub patience: u32,
}

/// The best epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Its number.
    pub epoch: usize,
    /// Balanced accuracy under PGD-10, then clean, the other way round after training without attacks: the order in which
    /// epochs are compared. Balanced, since a model that calls everything good would win on most inspection data by plain accuracy.
    pub score: [f64; 2],
}

/// One clean validation image: `max z_good - max z_defect`, and whether the part is good.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Margin {
    /// The margin.
    pub margin: f32,
    /// Whether its label is a good class.
    pub good: bool,
}

impl Checkpoint {
    /// Writes it; on an error the file that was there stays.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut tensors = Vec::new();
        let mut add =
            |name: String, values: &Values| tensors.push((name, values.shape.clone(), values.to_bytes()));
        let parts = [
            (MODEL, &self.model),
            (LEARNER, &self.learner),
            (VELOCITY, &self.velocity),
            (SECOND_MOMENT, &self.second_moment),
            (METHOD, &self.method),
            (CENTRE, &self.centre),
        ];
        for (prefix, part) in parts {
            part.iter().for_each(|(name, values)| add(format!("{prefix}{name}"), values));
        }
        add(SUMS.to_string(), &Values { shape: vec![self.sums.len()], data: self.sums.clone() });
        let means: Vec<f32> = self.means.iter().flat_map(|means| [means.benign, means.adversarial]).collect();
        add(MEANS.to_string(), &Values { shape: vec![means.len()], data: means });
        let state = serde_json::to_string(&self.state).expect("plain data serialises");
        let views = tensors.iter().map(|(name, shape, bytes)| {
            (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("shape and bytes agree"))
        });
        let bytes =
            serialize(views, Some(HashMap::from([(METADATA.to_string(), state)]))).at("serialise", path)?;
        files::write_atomically(path, &bytes)
    }

    /// Reads one. Whether its tensors are those of a network is left to [`Checkpoint::check`].
    ///
    /// # Errors
    /// The file is missing, damaged, or no checkpoint of this program.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = files::read(path)?;
        Self::parse(&bytes).map_err(|cause| damaged(path, &cause))
    }

    fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        let not_safetensors = |error| format!("no safetensors file ({error})");
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(not_safetensors)?;
        let Some(state) = header.metadata().as_ref().and_then(|metadata| metadata.get(METADATA)) else {
            return Err("not a checkpoint of steadfast".to_string());
        };
        let state =
            serde_json::from_str(state).map_err(|error| format!("its state cannot be read ({error})"))?;
        let file = SafeTensors::deserialize(bytes).map_err(not_safetensors)?;
        let mut checkpoint = Self {
            model: StateDict::new(),
            learner: StateDict::new(),
            velocity: StateDict::new(),
            second_moment: StateDict::new(),
            method: StateDict::new(),
            centre: StateDict::new(),
            sums: Vec::new(),
            means: Vec::new(),
            state,
        };
        for (name, view) in file.iter() {
            let values = Values::of_view(name, &view).map_err(|error| error.to_string())?;
            if let Some(name) = name.strip_prefix(MODEL) {
                checkpoint.model.insert(name.to_string(), values);
            } else if let Some(name) = name.strip_prefix(LEARNER) {
                checkpoint.learner.insert(name.to_string(), values);
            } else if let Some(name) = name.strip_prefix(VELOCITY) {
                checkpoint.velocity.insert(name.to_string(), values);
            } else if let Some(name) = name.strip_prefix(SECOND_MOMENT) {
                checkpoint.second_moment.insert(name.to_string(), values);
            } else if let Some(name) = name.strip_prefix(METHOD) {
                checkpoint.method.insert(name.to_string(), values);
            } else if let Some(name) = name.strip_prefix(CENTRE) {
                checkpoint.centre.insert(name.to_string(), values);
            } else if name == SUMS {
                checkpoint.sums = values.data;
            } else if name == MEANS {
                if values.data.len() % 2 != 0 || values.data.len() > 4 {
                    return Err(format!(
                        "{} numbers in {MEANS}, expected two for each of at most two epochs",
                        values.data.len()
                    ));
                }
                let pair = |pair: &[f32]| Means { benign: pair[0], adversarial: pair[1] };
                checkpoint.means = values.data.chunks_exact(2).map(pair).collect();
            }
        }
        let expected = crate::kernel::converge_loss::SUMS;
        if checkpoint.sums.len() != expected {
            return Err(format!("{} running sums, expected {expected}", checkpoint.sums.len()));
        }
        Ok(checkpoint)
    }

    /// Refuses tensors that are not those of a network; `path` is where they were read. Layers that are `frozen` have no
    /// velocities.
    ///
    /// # Errors
    /// Weights, velocities or a centre of other names or shapes, or some of them missing.
    pub fn check(&self, graph: &Graph, frozen: bool, path: &Path) -> Result<()> {
        let weights = |part: &StateDict| check_weights(graph, part).map_err(|error| error.to_string());
        let check = || {
            weights(&self.model)?;
            if !self.learner.is_empty() {
                weights(&self.learner)?;
            }
            for (prefix, flat, some) in [
                (VELOCITY, &self.velocity, frozen),
                (SECOND_MOMENT, &self.second_moment, frozen),
                (CENTRE, &self.centre, false),
            ] {
                if !flat.is_empty() {
                    check_flat(graph, prefix, flat, some)?;
                }
            }
            Ok(())
        };
        check().map_err(|cause: String| damaged(path, &cause))
    }
}

/// Whether flat tensors are as long as the parameters of a network, and as many, unless there may be only `some`.
fn check_flat(graph: &Graph, prefix: &str, flat: &StateDict, some: bool) -> std::result::Result<(), String> {
    let parameters: Vec<_> =
        graph.tensors().into_iter().filter(|tensor| tensor.role == Role::Parameter).collect();
    for parameter in &parameters {
        let expected = parameter.shape.iter().product::<usize>();
        match flat.get(&parameter.name) {
            Some(values) if values.data.len() == expected => {}
            Some(values) => {
                let count = values.data.len();
                return Err(format!("{count} numbers in {prefix}{}, expected {expected}", parameter.name));
            }
            None if some => {}
            None => return Err(format!("{prefix}{} is missing", parameter.name)),
        }
    }
    match flat.keys().find(|name| parameters.iter().all(|parameter| parameter.name != **name)) {
        Some(name) => Err(format!("{prefix}{name} is no parameter of the network")),
        None => Ok(()),
    }
}

/// The error about a checkpoint that is not as this program wrote it.
pub fn damaged(path: &Path, cause: &str) -> Error {
    Error::damaged(format!("{}: damaged: {cause}; train again, or resume from a copy", path.display()))
}
