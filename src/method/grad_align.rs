//! GradAlign: FGSM with a regulariser that aligns the input gradients inside the ball (Andriushchenko and Flammarion,
//! *Understanding and improving fast adversarial training*, 2020).

use burn::tensor::{Int, Tensor};

use super::base::{AttackInput, Attacked, BaseMethod};
use super::entry::{DefaultAlpha, Entry, Steps, start_in_ball};
use crate::attack::{CrossEntropy, Objective, input_gradient};
use crate::kernel::perturb::perturb;
use crate::model::Forward;
use crate::profile::{Passes, phase};

/// Largest displacement of a pixel in the central difference.
pub const DISPLACEMENT: f32 = 0.01;
/// A gradient shorter than this is none.
const SILENT: f32 = 1e-12;

pub(super) const ENTRY: Entry = Entry {
    name: "grad-align",
    steps: Steps::Fixed,
    start_range: start_in_ball,
    can_spread: false,
    alpha: DefaultAlpha::EPSILON,
    trades_off: false,
    auto_by_default: false,
    build: |config, _| {
        let weight = config.settings.align_weight.unwrap_or_else(|| default_weight(config.epsilon));
        Box::new(GradAlign::new(weight, DISPLACEMENT))
    },
};

/// FGSM, and `R = λ·mean(1 - cos(g₁, g₂))` with g₁ = ∇L(x) and g₂ = ∇L(x + η), η ~ U(-ε, ε), per example.
///
/// The gradient of R for the weights needs a mixed second derivative of L. With v = ∂R/∂g as a constant it is the
/// weights' gradient of ⟨v, ∇L⟩, a derivative of L along v, and so of `(L(x + h·v) - L(x - h·v)) / 2h`: first-order
/// autodiff is enough, for two forward and two backward passes at each of x and x + η.
///
/// The difference is the derivative of the input gradient averaged over the segment. Where the segment crosses no kink of
/// a ReLU that is the mixed derivative itself; a second backward pass sees no kinks at all.
pub struct GradAlign {
    weight: f32,
    displacement: f32,
    /// v at x and at x + η, of the batch just attacked.
    directions: Option<[Tensor<4>; 2]>,
}

impl GradAlign {
    /// With λ = `weight`, and the largest displacement of a pixel in the central difference.
    pub fn new(weight: f32, displacement: f32) -> Self {
        Self { weight, displacement, directions: None }
    }
}

impl BaseMethod for GradAlign {
    fn attack(&mut self, input: &AttackInput) -> Attacked {
        let (images, labels) = (&input.batch.images, &input.batch.labels);
        let (here, logits, _) = input_gradient(input.model, images.clone(), labels, &CrossEntropy);
        let (there, ..) = input_gradient(input.model, input.batch.start.clone(), labels, &CrossEntropy);
        self.directions = Some(directions(here.clone(), there, self.weight));
        let adversarial = perturb(images.clone(), images.clone(), here, input.alpha, input.epsilon);
        Attacked { images: adversarial, start: images.clone(), start_logits: Some(logits) }
    }

    fn regularizer(
        &mut self,
        model: &dyn Forward,
        input: &AttackInput,
        _: &Attacked,
        _: &Tensor<2>,
    ) -> Option<Tensor<1>> {
        let [here, there] = self.directions.take()?;
        let batch = input.batch;
        Some(phase("regularizer", Passes::Recorded, || {
            derivative(model, &batch.images, here, &batch.labels, self.displacement)
                + derivative(model, &batch.start, there, &batch.labels, self.displacement)
        }))
    }
}

/// λ where the user names none. Published for 8/255 (0.2) and growing log-linearly with ε; at budgets for which nothing is
/// published it stays at the 2 of 16/255.
fn default_weight(epsilon: f32) -> f32 {
    let published = 0.02 * 10f32.powf(epsilon * 255.0 / 8.0);
    published.min(2.0)
}

/// ∂R/∂g₁ and ∂R/∂g₂; zero where a gradient is.
fn directions(here: Tensor<4>, there: Tensor<4>, weight: f32) -> [Tensor<4>; 2] {
    let dims = here.dims();
    let per_example =
        |tensor: Tensor<4>| tensor.reshape([dims[0] as i32, -1]).sum_dim(1).reshape([dims[0], 1, 1, 1]);
    let length = |tensor: &Tensor<4>| per_example(tensor.clone().square()).sqrt();
    let (first, second) = (length(&here), length(&there));
    // An example without a gradient has no direction, and takes no part.
    let silent = first.clone().lower_elem(SILENT).bool_or(second.clone().lower_elem(SILENT));
    let (first, second) = (first.clamp_min(SILENT), second.clamp_min(SILENT));
    let (here, there) = (here / first.clone(), there / second.clone());
    let cosine = per_example(here.clone() * there.clone());
    let along = |own: Tensor<4>, other: Tensor<4>, length: Tensor<4>| {
        let along = (own * cosine.clone() - other) * (weight / dims[0] as f32) / length;
        along.mask_fill(silent.clone().expand(dims), 0.0)
    };
    [along(here.clone(), there.clone(), first), along(there, here, second)]
}

/// The derivative of the summed cross-entropy along a constant direction, differentiable in the weights.
fn derivative(
    model: &dyn Forward,
    at: &Tensor<4>,
    along: Tensor<4>,
    labels: &Tensor<1, Int>,
    displacement: f32,
) -> Tensor<1> {
    let size = along.clone().abs().max().clamp_min(f32::MIN_POSITIVE);
    let shift = along / size.clone().reshape([1, 1, 1, 1]) * displacement;
    let loss = |images: Tensor<4>| {
        CrossEntropy
            .values(model.forward(Tensor::from_inner(images)), &Tensor::from_inner(labels.clone()))
            .sum()
    };
    let difference = loss(at.clone() + shift.clone()) - loss(at.clone() - shift);
    difference * Tensor::from_inner(size / (2.0 * displacement))
}
