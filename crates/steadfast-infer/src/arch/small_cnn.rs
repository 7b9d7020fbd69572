//! A stem and three 3×3 convolutions of widths w, 2w, 4w, 4w (strides of the last three: 2, 2, 1), each with BatchNorm
//! and ReLU, then average pooling and a linear layer.

use alloc::format;

use super::{Arch, Architecture, ModelConfig};
use crate::graph::Graph;

/// The smallest network here.
pub const SMALL_CNN: Arch = Arch(&Architecture {
    name: "small-cnn",
    about: "Four convolutions: trains in minutes on a CPU",
    default_width: 16,
    graph,
});

fn graph(config: &ModelConfig) -> Graph {
    let mut graph = Graph::new(config.channels);
    let mut x = config.stem.apply(&mut graph, config, true);
    for (layer, widening, stride) in [(2, 2, 2), (3, 4, 2), (4, 4, 1)] {
        x = graph.conv(&format!("conv{layer}"), x, widening * config.width, 3, stride);
        x = graph.batch_norm(&format!("bn{layer}"), x);
        x = graph.relu(x);
    }
    graph.classify("linear", x, config.classes);
    graph
}
