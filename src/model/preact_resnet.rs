//! Pre-activation ResNet-18 with the CIFAR stem (He et al., *Identity mappings in deep residual networks*, 2016), with
//! a BatchNorm before pooling, as the robust-overfitting code uses it.

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::nn::{BatchNorm, Linear};
use burn::tensor::Device;

use super::ModelConfig;
use super::layer::{Engine, batch_norm, conv, linear};
use super::stem::StemLayers;

/// Residual network whose blocks normalise before they convolve.
#[derive(Module, Debug)]
pub struct PreActResNet {
    stem: StemLayers,
    layer1: Vec<PreActBlock>,
    layer2: Vec<PreActBlock>,
    layer3: Vec<PreActBlock>,
    layer4: Vec<PreActBlock>,
    bn: BatchNorm,
    linear: Linear,
}

/// BatchNorm, ReLU, convolution, twice; the shortcut starts after the first ReLU.
#[derive(Module, Debug)]
pub struct PreActBlock {
    bn1: BatchNorm,
    conv1: Conv2d,
    bn2: BatchNorm,
    conv2: Conv2d,
    shortcut: Option<Shortcut>,
}

/// A 1×1 convolution, where the shape changes.
#[derive(Module, Debug)]
struct Shortcut {
    conv: Conv2d,
}

impl PreActResNet {
    pub(super) fn new(config: &ModelConfig, device: &Device) -> Self {
        let w = config.width;
        let stage = |input, output, stride| PreActBlock::stage(2, [input, output], stride, device);
        Self {
            stem: StemLayers::new(config, false, device),
            layer1: stage(w, w, 1),
            layer2: stage(w, 2 * w, 2),
            layer3: stage(2 * w, 4 * w, 2),
            layer4: stage(4 * w, 8 * w, 2),
            bn: batch_norm(8 * w, device),
            linear: linear(8 * w, config.classes, device),
        }
    }

    pub(super) fn run<E: Engine>(&self, engine: &mut E, images: E::Features) -> E::Answer {
        let stem = self.stem.run(engine, images);
        let blocks = [&self.layer1, &self.layer2, &self.layer3, &self.layer4].into_iter().flatten();
        let features = blocks.fold(stem, |x, block| block.run(engine, x));
        let features = engine.normalise(&self.bn, features, None, true);
        engine.classify(&self.linear, features)
    }
}

impl PreActBlock {
    /// Some blocks of one width; the first changes the shape.
    pub(super) fn stage(
        blocks: usize,
        [input, output]: [usize; 2],
        stride: usize,
        device: &Device,
    ) -> Vec<Self> {
        let first = Self::new(input, output, stride, device);
        std::iter::once(first).chain((1..blocks).map(|_| Self::new(output, output, 1, device))).collect()
    }

    fn new(input: usize, output: usize, stride: usize, device: &Device) -> Self {
        Self {
            bn1: batch_norm(input, device),
            conv1: conv(input, output, 3, stride, device),
            bn2: batch_norm(output, device),
            conv2: conv(output, output, 3, 1, device),
            shortcut: (stride != 1 || input != output)
                .then(|| Shortcut { conv: conv(input, output, 1, stride, device) }),
        }
    }

    pub(super) fn run<E: Engine>(&self, engine: &mut E, x: E::Features) -> E::Features {
        let activated = engine.normalise(&self.bn1, x.clone(), None, true);
        let residual = match &self.shortcut {
            Some(shortcut) => engine.convolve(&shortcut.conv, activated.clone()),
            None => x,
        };
        let x = engine.convolve(&self.conv1, activated);
        let x = engine.normalise(&self.bn2, x, None, true);
        let x = engine.convolve(&self.conv2, x);
        engine.add(x, residual)
    }
}
