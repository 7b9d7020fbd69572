//! Pre-activation ResNet-18 with the CIFAR stem (He et al., *Identity mappings in deep residual networks*, 2016), with
//! a BatchNorm before pooling, as the robust-overfitting code uses it.

use alloc::format;

use super::{Arch, Architecture, ModelConfig};
use crate::graph::{Graph, ValueId};

/// Pre-activation ResNet-18 with a last BatchNorm.
pub const PREACT_RESNET18: Arch = Arch(&Architecture {
    name: "preact-resnet18",
    about: "Pre-activation ResNet-18 with a last BatchNorm",
    default_width: 64,
    graph,
});

fn graph(config: &ModelConfig) -> Graph {
    let mut graph = Graph::new(config.channels);
    let mut x = config.stem.apply(&mut graph, config, false);
    for stage in 0..4 {
        for block in 0..2 {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let name = format!("layer{}.{block}", stage + 1);
            x = preact_block(&mut graph, &name, "shortcut.0", x, config.width << stage, stride);
        }
    }
    let x = graph.batch_norm("bn", x);
    let x = graph.relu(x);
    graph.classify("linear", x, config.classes);
    graph
}

/// BatchNorm, ReLU, convolution, twice; the shortcut starts after the first ReLU, and is a 1×1 convolution called `shortcut`
/// where the shape changes.
pub(super) fn preact_block(
    graph: &mut Graph,
    name: &str,
    shortcut: &str,
    input: ValueId,
    outputs: usize,
    stride: usize,
) -> ValueId {
    let x = graph.batch_norm(&format!("{name}.bn1"), input);
    let activated = graph.relu(x);
    let x = graph.conv(&format!("{name}.conv1"), activated, outputs, 3, stride);
    let x = graph.batch_norm(&format!("{name}.bn2"), x);
    let x = graph.relu(x);
    let x = graph.conv(&format!("{name}.conv2"), x, outputs, 3, 1);
    let residual = if stride != 1 || graph.channels(input) != outputs {
        graph.conv(&format!("{name}.{shortcut}"), activated, outputs, 1, stride)
    } else {
        input
    };
    graph.add(x, residual)
}
