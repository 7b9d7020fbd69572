//! The base attacks inside training, one file each behind one trait: from a batch to the examples that are learned.
//! A further one is a file here, a line in [`build`], and its name in `run/method.rs`.

mod clean;
mod fgsm;
mod fgsm_bp;
mod fgsm_ep;
mod fgsm_mep;
mod fgsm_rs;
mod free;
pub mod grad_align;
mod n_fgsm;
mod pgd_k;
pub mod zero_grad;

use burn::tensor::{Device, Tensor};

use super::history::History;
use crate::attack::{Budget, CrossEntropy, pgd};
use crate::batch::Batch;
use crate::data::ImageShape;
use crate::kernel::gather_augment::Draw;
use crate::model::Forward;
use crate::model::state_dict::{StateDict, read_values, to_tensor};
use crate::random::Key;
use crate::run::config::{Augment, Balance, Config, Method, Preset};

/// Pixels by which crops shift; they pad with zeros.
const CROP_PAD: u32 = 4;

/// A batch, and what a base method may look at while it attacks it. No gradient reaches the weights of either network;
/// BatchNorm takes the statistics of the batch.
pub struct Scene<'a> {
    /// The network.
    pub model: &'a dyn Forward,
    /// Images, random starts and labels.
    pub batch: &'a Batch,
    /// Which images of the training part they are.
    pub examples: &'a [u32],
    /// How they were cropped and mirrored.
    pub draw: Draw,
    /// Attack steps to take where a method takes one.
    pub steps: u32,
}

/// What the attack on a batch gives; nothing in it has autodiff.
pub struct Attacked {
    /// x': the examples to learn `[batch, channels, height, width]`.
    pub images: Tensor<4>,
    /// Where the attack step began; x' itself where there was none.
    pub start: Tensor<4>,
    /// The logits there; absent where there was no step.
    pub start_logits: Option<Tensor<2>>,
}

/// A base method. What it remembers between steps is saved with every checkpoint.
pub trait BaseMethod: Send {
    /// How often a batch is learned from before the next one comes.
    fn replays(&self) -> u32 {
        1
    }

    /// Called before the first step of an epoch, and where a run resumes in the middle of one: then it is not `fresh`.
    fn begin_epoch(&mut self, _epoch: usize, _fresh: bool, _key: Key) {}

    /// The examples to learn.
    fn attack(&mut self, scene: &Scene) -> Attacked;

    /// A term of the loss besides cross-entropy and constraint, differentiable in the weights of `model`; `logits` are
    /// those of the examples. Its value is of no interest, its gradient is.
    fn regularizer(
        &mut self,
        _model: &dyn Forward,
        _scene: &Scene,
        _attacked: &Attacked,
        _logits: &Tensor<2>,
    ) -> Option<Tensor<1>> {
        None
    }

    /// Whether [`BaseMethod::learned`] wants to be called.
    fn wants_gradient(&self) -> bool {
        false
    }

    /// Takes the gradient for the examples, from the backward pass that trained the weights.
    fn learned(&mut self, _scene: &Scene, _attacked: Attacked, _gradient: Tensor<4>) {}

    /// What has to be saved, by name.
    fn state(&self) -> StateDict {
        StateDict::new()
    }

    /// Continues from what was saved.
    fn load(&mut self, _state: StateDict, _device: &Device) {}
}

/// The base method of a configuration, for a training part of `count` images.
pub fn build(
    config: &Config,
    count: usize,
    shape: ImageShape,
    device: &crate::device::Device,
) -> Box<dyn BaseMethod> {
    let (epsilon, alpha, settings) = (config.epsilon.get(), config.alpha(), &config.base);
    let repeats = config.balance == Balance::Sampling;
    let history = || History::new(count, shape, device, settings.align_history, repeats);
    match config.method {
        Method::None => Box::new(clean::Clean),
        Method::Fgsm => Box::new(fgsm::Fgsm { epsilon, alpha }),
        // The released code does not project; the box still holds.
        Method::FgsmRs if config.preset() == Preset::Released => Box::new(n_fgsm::NFgsm { alpha }),
        Method::FgsmRs => Box::new(fgsm_rs::FgsmRs { epsilon, alpha }),
        Method::NFgsm => Box::new(n_fgsm::NFgsm { alpha }),
        Method::FgsmEp => Box::new(fgsm_ep::FgsmEp { epsilon, alpha, history: history(), first: true }),
        Method::FgsmBp => Box::new(fgsm_bp::FgsmBp { epsilon, alpha, last: None }),
        Method::FgsmMep => Box::new(fgsm_mep::FgsmMep {
            epsilon,
            alpha,
            factor: config.label_factor,
            momentum: settings.history_momentum,
            interval: settings.reset_epochs,
            pairing: settings.pairing,
            starts: history(),
            moments: history(),
        }),
        Method::ZeroGrad => {
            Box::new(zero_grad::ZeroGrad { epsilon, alpha, quantile: settings.zero_quantile })
        }
        Method::GradAlign => Box::new(grad_align::GradAlign::new(
            epsilon,
            alpha,
            config.align_weight(),
            grad_align::DISPLACEMENT,
        )),
        Method::Free(replays) => Box::new(free::Free { epsilon, alpha, replays, last: None }),
        Method::Pgd(steps) => Box::new(pgd_k::Pgd { epsilon, alpha, steps }),
    }
}

/// What a batch is drawn like under this configuration.
pub fn draw(config: &Config, key: Key) -> Draw {
    let epsilon = config.epsilon.get();
    Draw {
        key,
        range: match config.method {
            Method::None | Method::Fgsm | Method::Free(_) | Method::FgsmMep => 0.0,
            Method::NFgsm => config.base.noise * epsilon,
            _ => epsilon,
        },
        pad: if config.augment == Augment::None { 0 } else { CROP_PAD },
        flip: config.augment == Augment::CropFlip,
    }
}

/// One step of `alpha` from `start` along the sign of the gradient of the hard-label cross-entropy, projected on the
/// `epsilon`-ball round the images. Where the scene asks for K > 1 steps they are shorter, 1.5·alpha / K.
fn step_from(scene: &Scene, start: Tensor<4>, alpha: f32, epsilon: f32) -> Attacked {
    let Batch { images, labels, .. } = scene.batch;
    let step = if scene.steps > 1 { 1.5 * alpha / scene.steps as f32 } else { alpha };
    let batch = Batch { images: images.clone(), start: start.clone(), labels: labels.clone() };
    let budget = Budget { step, ..Budget::new(epsilon) };
    let (images, logits) = pgd::descend(scene.model, &batch, budget, scene.steps, &CrossEntropy, false);
    Attacked { images, start, start_logits: Some(logits) }
}

/// `clip_box(x + δ)`.
fn displaced(images: &Tensor<4>, perturbation: Tensor<4>) -> Tensor<4> {
    (images.clone() + perturbation).clamp(0.0, 1.0)
}

const LAST: &str = "last";

/// The perturbation that goes on from batch to batch, as it is saved.
fn saved(last: &Option<Tensor<4>>) -> StateDict {
    last.iter().map(|last| (LAST.to_string(), read_values(last.clone()))).collect()
}

/// What [`saved`] gave, on its device.
fn resumed(mut state: StateDict, device: &Device) -> Option<Tensor<4>> {
    state.remove(LAST).map(|values| to_tensor(values, device))
}
