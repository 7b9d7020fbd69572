//! What a base method is: from a batch to the examples that are learned; and the steps that several of them share.

use burn::tensor::{Device, Tensor};

use crate::attack::{Budget, CrossEntropy, pgd};
use crate::batch::Batch;
use crate::kernel::gather_augment::Draw;
use crate::model::Forward;
use crate::model::state_dict::{StateDict, read_values, to_tensor};
use crate::random::Key;

/// A batch, and what a base method may use while it attacks it. No gradient reaches the weights of either network;
/// BatchNorm takes the statistics of the batch.
pub struct AttackInput<'a> {
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
    /// ε in this step, in pixel units of [0, 1].
    pub epsilon: f32,
    /// α in this step, in pixel units of [0, 1].
    pub alpha: f32,
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
    fn attack(&mut self, input: &AttackInput) -> Attacked;

    /// A term of the loss besides cross-entropy and constraint, differentiable in the weights of `model`; `logits` are
    /// those of the examples. Its value is of no interest, its gradient is.
    fn regularizer(
        &mut self,
        _model: &dyn Forward,
        _input: &AttackInput,
        _attacked: &Attacked,
        _logits: &Tensor<2>,
    ) -> Option<Tensor<1>> {
        None
    }

    /// β, where the method trains by `L(x) + β·KL(f(x) ‖ f(x'))` instead of `L(x')`.
    fn trade_off(&self) -> Option<f32> {
        None
    }

    /// Whether [`BaseMethod::learned`] wants to be called.
    fn wants_gradient(&self) -> bool {
        false
    }

    /// Takes the gradient for the examples, from the backward pass that trained the weights.
    fn learned(&mut self, _input: &AttackInput, _attacked: Attacked, _gradient: Tensor<4>) {}

    /// What has to be saved, by name.
    fn state(&self) -> StateDict {
        StateDict::new()
    }

    /// Continues from what was saved.
    fn load(&mut self, _state: StateDict, _device: &Device) {}
}

/// One step of α from `start` along the sign of the gradient of the hard-label cross-entropy, projected on the
/// `epsilon`-ball round the images. Where the input asks for K > 1 steps they are shorter, 1.5·α / K.
pub(super) fn step_from(input: &AttackInput, start: Tensor<4>, epsilon: f32) -> Attacked {
    let Batch { images, labels, .. } = input.batch;
    let step = if input.steps > 1 { 1.5 * input.alpha / input.steps as f32 } else { input.alpha };
    let batch = Batch { images: images.clone(), start: start.clone(), labels: labels.clone() };
    let budget = Budget { step, ..Budget::new(epsilon) };
    let (images, logits) = pgd::pgd_steps(input.model, &batch, budget, input.steps, &CrossEntropy, false);
    Attacked { images, start, start_logits: Some(logits) }
}

/// `clip_box(x + δ)`.
pub(super) fn displaced(images: &Tensor<4>, perturbation: Tensor<4>) -> Tensor<4> {
    (images.clone() + perturbation).clamp(0.0, 1.0)
}

const LAST: &str = "last";

/// The perturbation that goes on from batch to batch, as it is saved.
pub(super) fn saved(last: &Option<Tensor<4>>) -> StateDict {
    last.iter().map(|last| (LAST.to_string(), read_values(last.clone()))).collect()
}

/// What [`saved`] gave, on its device.
pub(super) fn resumed(mut state: StateDict, device: &Device) -> Option<Tensor<4>> {
    state.remove(LAST).map(|values| to_tensor(values, device))
}
