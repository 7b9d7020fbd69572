//! For microcontrollers: a stem and three stages of two depthwise separable blocks (Howard et al., *MobileNets: efficient convolutional neural
//! networks for mobile vision applications*, 2017), those that keep their shape with a shortcut round them.

use alloc::format;

use super::{Arch, Architecture, ModelConfig};
use crate::graph::Graph;

/// The smallest in memory and in multiplications.
pub const MICRO_CNN: Arch = Arch(&Architecture {
    name: "micro-cnn",
    about: "Depthwise separable convolutions: 40,000 parameters, for microcontrollers",
    default_width: 16,
    graph,
});

fn graph(config: &ModelConfig) -> Graph {
    let mut graph = Graph::new(config.channels);
    let mut x = config.stem.apply(&mut graph, config, true);
    for block in 0..6 {
        let (outputs, stride) = (config.width << (block / 2 + 1), 2 - block % 2);
        let name = format!("layer{}.{}", block / 2 + 1, block % 2);
        let input = x;
        x = graph.depthwise_conv(&format!("{name}.depthwise"), x, 3, stride);
        x = graph.batch_norm(&format!("{name}.bn1"), x);
        x = graph.relu(x);
        x = graph.conv(&format!("{name}.pointwise"), x, outputs, 1, 1);
        x = graph.batch_norm(&format!("{name}.bn2"), x);
        if stride == 1 {
            x = graph.add(x, input);
        }
        x = graph.relu(x);
    }
    graph.classify("linear", x, config.classes);
    graph
}
