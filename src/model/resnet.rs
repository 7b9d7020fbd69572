//! ResNets: a stem, then four stages of one or two basic blocks (He et al., 2016).

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::nn::{BatchNorm, Linear};
use burn::tensor::Device;

use super::ModelConfig;
use super::layer::{Engine, batch_norm, conv, linear};
use super::stem::StemLayers;

/// Residual network of basic blocks.
#[derive(Module, Debug)]
pub struct ResNet {
    stem: StemLayers,
    layer1: Vec<BasicBlock>,
    layer2: Vec<BasicBlock>,
    layer3: Vec<BasicBlock>,
    layer4: Vec<BasicBlock>,
    linear: Linear,
}

/// Two convolutions and a shortcut.
#[derive(Module, Debug)]
struct BasicBlock {
    conv1: Conv2d,
    bn1: BatchNorm,
    conv2: Conv2d,
    bn2: BatchNorm,
    shortcut: Option<Shortcut>,
}

/// A 1×1 convolution with BatchNorm, where the shape changes.
#[derive(Module, Debug)]
struct Shortcut {
    conv: Conv2d,
    bn: BatchNorm,
}

impl ResNet {
    pub(super) fn new(config: &ModelConfig, blocks: usize, device: &Device) -> Self {
        let w = config.width;
        let stage = |input, output, stride| {
            let first = BasicBlock::new(input, output, stride, device);
            let others = (1..blocks).map(|_| BasicBlock::new(output, output, 1, device));
            std::iter::once(first).chain(others).collect()
        };
        Self {
            stem: StemLayers::new(config, true, device),
            layer1: stage(w, w, 1),
            layer2: stage(w, 2 * w, 2),
            layer3: stage(2 * w, 4 * w, 2),
            layer4: stage(4 * w, 8 * w, 2),
            linear: linear(8 * w, config.classes, device),
        }
    }

    pub(super) fn run<E: Engine>(&self, engine: &mut E, images: E::Features) -> E::Answer {
        let stem = self.stem.run(engine, images);
        let blocks = [&self.layer1, &self.layer2, &self.layer3, &self.layer4].into_iter().flatten();
        let features = blocks.fold(stem, |x, block| block.run(engine, x));
        engine.classify(&self.linear, features)
    }
}

impl BasicBlock {
    fn new(input: usize, output: usize, stride: usize, device: &Device) -> Self {
        Self {
            conv1: conv(input, output, 3, stride, device),
            bn1: batch_norm(output, device),
            conv2: conv(output, output, 3, 1, device),
            bn2: batch_norm(output, device),
            shortcut: (stride != 1 || input != output).then(|| Shortcut {
                conv: conv(input, output, 1, stride, device),
                bn: batch_norm(output, device),
            }),
        }
    }

    fn run<E: Engine>(&self, engine: &mut E, x: E::Features) -> E::Features {
        let residual = match &self.shortcut {
            Some(Shortcut { conv, bn }) => {
                let x = engine.convolve(conv, x.clone());
                engine.normalise(bn, x, None, false)
            }
            None => x.clone(),
        };
        let x = engine.convolve(&self.conv1, x);
        let x = engine.normalise(&self.bn1, x, None, true);
        let x = engine.convolve(&self.conv2, x);
        engine.normalise(&self.bn2, x, Some(residual), true)
    }
}
