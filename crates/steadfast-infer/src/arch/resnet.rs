//! ResNets: a stem, then four stages of one or two basic blocks (He et al., 2016).

use alloc::format;

use super::{Arch, Architecture, ModelConfig};
use crate::graph::{Graph, ValueId};

/// ResNet-10 of a quarter of its width (0.3 million parameters), for PCs on the line.
pub const MOBILE_RESNET: Arch = Arch(&Architecture {
    name: "mobile-resnet",
    about: "ResNet-10 of a quarter of its width (0.3 million parameters), for PCs on the line",
    default_width: 16,
    graph: |config| graph(config, 1),
});

/// ResNet-18 with one block per stage instead of two.
pub const RESNET10: Arch = Arch(&Architecture {
    name: "resnet10",
    about: "ResNet-18 with one block per stage instead of two",
    default_width: 64,
    graph: |config| graph(config, 1),
});

/// ResNet-18.
pub const RESNET18: Arch = Arch(&Architecture {
    name: "resnet18",
    about: "ResNet-18",
    default_width: 64,
    graph: |config| graph(config, 2),
});

fn graph(config: &ModelConfig, blocks: usize) -> Graph {
    let mut graph = Graph::new(config.channels);
    let mut x = config.stem.apply(&mut graph, config, true);
    for stage in 0..4 {
        for block in 0..blocks {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let name = format!("layer{}.{block}", stage + 1);
            x = basic_block(&mut graph, &name, x, config.width << stage, stride);
        }
    }
    graph.classify("linear", x, config.classes);
    graph
}

/// Two convolutions and a shortcut, which is a 1×1 convolution with BatchNorm where the shape changes.
fn basic_block(graph: &mut Graph, name: &str, input: ValueId, outputs: usize, stride: usize) -> ValueId {
    let x = graph.conv(&format!("{name}.conv1"), input, outputs, 3, stride);
    let x = graph.batch_norm(&format!("{name}.bn1"), x);
    let x = graph.relu(x);
    let x = graph.conv(&format!("{name}.conv2"), x, outputs, 3, 1);
    let x = graph.batch_norm(&format!("{name}.bn2"), x);
    let shortcut = if stride != 1 || graph.channels(input) != outputs {
        let shortcut = graph.conv(&format!("{name}.shortcut.0"), input, outputs, 1, stride);
        graph.batch_norm(&format!("{name}.shortcut.1"), shortcut)
    } else {
        input
    };
    let x = graph.add(x, shortcut);
    graph.relu(x)
}
