//! The base attack inside training: from a batch to adversarial examples and the three logits of the loss.

use burn::module::Module;
use burn::tensor::Tensor;

use crate::attack::{Budget, CrossEntropy, fgsm, pgd};
use crate::data::loader::Batch;
use crate::kernel::converge_loss::{Gate, GateKind, Logits};
use crate::kernel::gather_augment::Draw;
use crate::model::Classifier;
use crate::profile::{Passes, phase};
use crate::random::Key;
use crate::run::config::{Augment, Config, Method, Preset};

/// Pixels by which crops shift; they pad with zeros.
const CROP_PAD: u32 = 4;

/// What a batch is drawn like under this configuration.
pub fn draw(config: &Config, key: Key) -> Draw {
    Draw {
        key,
        range: if config.method == Method::None { 0.0 } else { config.epsilon.get() },
        pad: if config.augment == Augment::None { 0 } else { CROP_PAD },
        flip: config.augment == Augment::CropFlip,
    }
}

/// The forward passes of one training step. BatchNorm is in training mode in all of them, so its running statistics
/// see the start, the adversarial and the benign images, as in the published method.
pub fn logits(config: &Config, model: &Classifier, batch: &Batch, gate: &Gate) -> Logits {
    let tracked =
        |name, images: Tensor<4>| phase(name, Passes::Recorded, || model.forward(Tensor::from_inner(images)));
    // The attack needs gradients for its input alone.
    let weights_fixed = model.clone().no_grad();
    let epsilon = config.epsilon.get();
    let (adversarial, start) = match config.method {
        Method::None => (tracked("forward", batch.images.clone()), None),
        Method::FgsmRs => {
            // The released code does not project; the box still holds.
            let radius = if config.preset == Preset::Released { f32::MAX } else { epsilon };
            let (adversarial, start) = phase("attack", Passes::InputGradient, || {
                fgsm::one_step(&weights_fixed, batch, config.alpha(), radius)
            });
            (tracked("forward", adversarial), Some(start))
        }
        Method::Pgd(steps) => {
            let budget = Budget { epsilon, step: config.alpha() };
            let (adversarial, start) = phase("attack", Passes::InputGradient, || {
                pgd::descend(&weights_fixed, batch, budget, steps, &CrossEntropy, false)
            });
            (tracked("forward", adversarial), Some(start))
        }
    };
    let benign = match (gate.kind, config.method) {
        // Without a constraint there is no benign pass, and clean training has made it already.
        (GateKind::None, _) | (_, Method::None) => adversarial.clone(),
        _ => {
            let images = if config.preset == Preset::Released { &batch.start } else { &batch.images };
            // A gate that cannot fire needs the loss for its means, but no graph.
            if gate.active {
                tracked("benign forward", images.clone())
            } else {
                phase("benign forward", Passes::Forward, || {
                    weights_fixed.forward(Tensor::from_inner(images.clone()))
                })
            }
        }
    };
    let start = start.unwrap_or_else(|| adversarial.clone().inner());
    Logits { adversarial, benign, start }
}
