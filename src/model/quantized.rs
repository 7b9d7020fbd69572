//! A network in integers or with shortened weights, that can be attacked.

use burn::tensor::{Tensor, TensorData};
use steadfast_infer::compile::Compiled;

use super::state_dict::read_values;
use super::{Classifier, Forward, Subject};

/// A compiled network beside the float32 network that it was made of, on the CPU.
///
/// Its answers are those of the compiled network. Rounding has no gradient, so attacks follow the gradient of the float32
/// network at the answers of the compiled one (straight-through; Athalye, Carlini and Wagner, *Obfuscated gradients give a false
/// sense of security*, 2018, call it BPDA).
pub struct QuantizedClassifier {
    /// What is measured.
    pub compiled: Compiled,
    /// What it was made of.
    pub original: Classifier,
}

impl Subject for QuantizedClassifier {
    fn plain(&self) -> Box<dyn Forward + '_> {
        Box::new(Plain(&self.compiled))
    }

    fn attacked(&self) -> Box<dyn Forward + '_> {
        Box::new(StraightThrough { compiled: Plain(&self.compiled), original: self.original.frozen() })
    }
}

struct Plain<'a>(&'a Compiled);

impl Forward for Plain<'_> {
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let ([batch, ..], device) = (images.dims(), images.device());
        let logits = self.0.logits(&read_values(images).data);
        let classes = logits.len() / batch;
        Tensor::from_data(TensorData::new(logits, [batch, classes]), &device)
    }
}

struct StraightThrough<'a> {
    compiled: Plain<'a>,
    original: Classifier,
}

impl Forward for StraightThrough<'_> {
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let logits = self.compiled.forward(images.clone().inner());
        let original = self.original.forward(images);
        let difference = logits - original.clone().inner();
        original + Tensor::from_inner(difference)
    }
}
