//! What attacks maximise: losses of logits `[batch, classes]`, one value per example.

use burn::tensor::{Bool, Int, Tensor};

use crate::kernel::cross_entropy::cross_entropy;

/// Added to a logit to take it out of a maximum.
pub const OUT: f32 = -1e9;
/// Added to what divides.
const TINY: f32 = 1e-12;

/// What an attack maximises, and when it has done enough.
pub trait Objective {
    /// The value `[batch]` of each example.
    fn values(&self, logits: Tensor<2>, labels: &Tensor<1, Int>) -> Tensor<1>;

    /// Which examples `[batch]` already are where the attack wants them; by default: a wrong class.
    fn reached(&self, logits: Tensor<2>, labels: &Tensor<1, Int>) -> Tensor<1, Bool> {
        logits.argmax(1).squeeze_dim::<1>(1).not_equal(labels.clone())
    }
}

/// Hard-label cross-entropy: any wrong class will do.
pub struct CrossEntropy;

impl Objective for CrossEntropy {
    fn values(&self, logits: Tensor<2>, labels: &Tensor<1, Int>) -> Tensor<1> {
        cross_entropy(logits, labels, 1.0)
    }
}

/// Cross-entropy against soft labels: `factor` on the true class, the rest spread evenly over the others.
pub struct SoftCrossEntropy {
    /// Share of the true class.
    pub factor: f32,
}

impl Objective for SoftCrossEntropy {
    fn values(&self, logits: Tensor<2>, labels: &Tensor<1, Int>) -> Tensor<1> {
        cross_entropy(logits, labels, self.factor)
    }
}

/// The margin `max z_i - z_y` over the wrong classes i (the C&W loss; Carlini and Wagner, 2017).
pub struct Margin;

impl Objective for Margin {
    fn values(&self, logits: Tensor<2>, labels: &Tensor<1, Int>) -> Tensor<1> {
        let [_, classes] = logits.dims();
        let truth = labels.clone().one_hot::<2>(classes).float() * OUT;
        (logits.clone() + truth).max_dim(1).squeeze_dim::<1>(1) - at(logits, labels)
    }
}

/// Difference of logits ratio (Croce and Hein, 2020): the margin over `z_π1 - z_π3`. With two classes there is no third
/// logit; the margin alone takes its place.
pub struct Dlr;

impl Objective for Dlr {
    fn values(&self, logits: Tensor<2>, labels: &Tensor<1, Int>) -> Tensor<1> {
        let margin = Margin.values(logits.clone(), labels);
        if logits.dims()[1] < 3 {
            return margin;
        }
        let [first, _, third, _] = largest(logits);
        margin / (first - third + TINY)
    }
}

/// `z_t - z_y`: positive beyond the boundary to class t.
pub struct Boundary {
    /// The class t of each example `[batch]`.
    pub targets: Tensor<1, Int>,
}

impl Objective for Boundary {
    fn values(&self, logits: Tensor<2>, labels: &Tensor<1, Int>) -> Tensor<1> {
        let targets = move_to(&self.targets, labels);
        at(logits.clone(), &targets) - at(logits, labels)
    }
}

/// Targeted DLR: `z_t - z_y` over `z_π1 - (z_π3 + z_π4)/2`. With fewer than four classes the difference alone takes its
/// place.
pub struct Targeted {
    /// The class t of each example `[batch]`.
    pub targets: Tensor<1, Int>,
}

impl Targeted {
    /// The `rank`-th most likely class of each example, counted from 0, by its logits.
    pub fn ranked(logits: Tensor<2>, rank: usize) -> Self {
        let mut rest = logits;
        for _ in 0..rank {
            rest = without_largest(rest);
        }
        Self { targets: rest.argmax(1).squeeze_dim(1) }
    }
}

impl Objective for Targeted {
    fn values(&self, logits: Tensor<2>, labels: &Tensor<1, Int>) -> Tensor<1> {
        let boundary = Boundary { targets: self.targets.clone() };
        let difference = boundary.values(logits.clone(), labels);
        if logits.dims()[1] < 4 {
            return difference;
        }
        let [first, _, third, fourth] = largest(logits);
        difference / (first - (third + fourth) * 0.5 + TINY)
    }
}

/// On the device of `like`, which may be the one with autodiff.
fn move_to(values: &Tensor<1, Int>, like: &Tensor<1, Int>) -> Tensor<1, Int> {
    if values.device() == like.device() { values.clone() } else { Tensor::from_inner(values.clone()) }
}

/// The entry of each row that `indices` names.
fn at(rows: Tensor<2>, indices: &Tensor<1, Int>) -> Tensor<1> {
    rows.gather(1, indices.clone().unsqueeze_dim::<2>(1)).squeeze_dim(1)
}

/// The four largest logits, largest first; the smallest again where there are only three classes. Differentiable.
fn largest(logits: Tensor<2>) -> [Tensor<1>; 4] {
    let [_, classes] = logits.dims();
    let mut rest = logits.clone().detach();
    std::array::from_fn(|rank| {
        let place = rest.clone().argmax(1);
        if rank + 1 < classes {
            rest = without(rest.clone(), place.clone());
        }
        logits.clone().gather(1, place).squeeze_dim::<1>(1)
    })
}

fn without_largest(logits: Tensor<2>) -> Tensor<2> {
    let place = logits.clone().argmax(1);
    without(logits, place)
}

/// One entry `[batch, 1]` of each row taken out of maxima.
fn without(rows: Tensor<2>, place: Tensor<2, Int>) -> Tensor<2> {
    let shape = rows.dims();
    let classes = Tensor::<1, Int>::arange(0..shape[1] as i64, &rows.device()).unsqueeze::<2>().expand(shape);
    rows.mask_fill(classes.equal(place.expand(shape)), OUT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn values_of_a_small_case() {
        let device = Device::cpu().burn;
        let logits =
            Tensor::<2>::from_data([[3.0f32, 1.0, 2.5, -1.0, 0.0], [3.0, 1.0, 2.5, -1.0, 0.0]], &device);
        let labels = Tensor::<1, Int>::from_data([0, 1], &device);
        let read = |values: Tensor<1>| values.into_data().try_into_vec::<f32>().unwrap();
        assert_eq!(read(Margin.values(logits.clone(), &labels)), [-0.5, 2.0]);
        // z_π1 - z_π3 = 2.
        assert_eq!(read(Dlr.values(logits.clone(), &labels)), [-0.25, 1.0]);
        // The third most likely class is 1; z_π1 - (z_π3 + z_π4) / 2 = 2.5.
        let targeted = Targeted::ranked(logits.clone(), 2);
        assert_eq!(targeted.targets.clone().into_data().iter::<i64>().collect::<Vec<_>>(), [1, 1]);
        assert_eq!(read(targeted.values(logits.clone(), &labels)), [-0.8, 0.0]);
        let reached: Vec<bool> = Margin.reached(logits.clone(), &labels).into_data().iter::<bool>().collect();
        assert_eq!(reached, [false, true]);
        // With two classes the margin, with three the difference.
        let few = logits.clone().narrow(1, 0, 2);
        assert_eq!(read(Dlr.values(few.clone(), &labels)), read(Margin.values(few, &labels)));
        let few = logits.narrow(1, 0, 3);
        assert_eq!(read(Targeted::ranked(few.clone(), 1).values(few, &labels)), [-0.5, 1.5]);
    }
}
