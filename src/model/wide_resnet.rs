//! WideResNet-34-10 (Zagoruyko and Komodakis, *Wide residual networks*, 2016) as adversarial training uses it: three
//! groups of five pre-activation blocks of widths 10w, 20w, 40w, a last BatchNorm, no dropout.

use burn::module::Module;
use burn::nn::{BatchNorm, Linear};
use burn::tensor::Device;

use super::ModelConfig;
use super::layer::{Engine, batch_norm, linear};
use super::preact_resnet::PreActBlock;
use super::stem::StemLayers;

/// Depth 34: two convolutions per block, three groups, stem, shortcuts and classifier make the rest.
const BLOCKS: usize = 5;
const WIDENING: usize = 10;

/// Wide residual network.
#[derive(Module, Debug)]
pub struct WideResNet {
    stem: StemLayers,
    block1: Group,
    block2: Group,
    block3: Group,
    bn1: BatchNorm,
    fc: Linear,
}

/// Blocks of one width, in the names of the common PyTorch code.
#[derive(Module, Debug)]
struct Group {
    layer: Vec<PreActBlock>,
}

impl WideResNet {
    pub(super) fn new(config: &ModelConfig, device: &Device) -> Self {
        let [w, wide] = [config.width, WIDENING * config.width];
        Self {
            stem: StemLayers::new(config, false, device),
            block1: Group { layer: PreActBlock::stage(BLOCKS, [w, wide], 1, device) },
            block2: Group { layer: PreActBlock::stage(BLOCKS, [wide, 2 * wide], 2, device) },
            block3: Group { layer: PreActBlock::stage(BLOCKS, [2 * wide, 4 * wide], 2, device) },
            bn1: batch_norm(4 * wide, device),
            fc: linear(4 * wide, config.classes, device),
        }
    }

    pub(super) fn run<E: Engine>(&self, engine: &mut E, images: E::Features) -> E::Answer {
        let stem = self.stem.run(engine, images);
        let blocks = [&self.block1, &self.block2, &self.block3].into_iter().flat_map(|group| &group.layer);
        let features = blocks.fold(stem, |x, block| block.run(engine, x));
        let features = engine.normalise(&self.bn1, features, None, true);
        engine.classify(&self.fc, features)
    }
}
