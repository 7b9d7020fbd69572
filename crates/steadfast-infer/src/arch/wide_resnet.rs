//! WideResNet-34-10 (Zagoruyko and Komodakis, *Wide residual networks*, 2016) as adversarial training uses it: three
//! groups of five pre-activation blocks of widths 10w, 20w, 40w, a last BatchNorm, no dropout.

use alloc::format;

use super::preact_resnet::preact_block;
use super::{Arch, Architecture, ModelConfig};
use crate::graph::Graph;

/// Depth 34: two convolutions per block, three groups, stem, shortcuts and classifier make the rest.
const BLOCKS: usize = 5;
const WIDENING: usize = 10;

/// WideResNet-34-10; its groups have 10, 20 and 40 times the width.
pub const WIDE_RESNET34_10: Arch = Arch(&Architecture {
    name: "wide-resnet34-10",
    about: "WideResNet-34-10; its groups have 10, 20 and 40 times the width",
    default_width: 16,
    graph,
});

fn graph(config: &ModelConfig) -> Graph {
    let mut graph = Graph::new(config.channels);
    let mut x = config.stem.apply(&mut graph, config, false);
    for group in 0..3 {
        for block in 0..BLOCKS {
            let stride = if group > 0 && block == 0 { 2 } else { 1 };
            let name = format!("block{}.layer.{block}", group + 1);
            x = preact_block(
                &mut graph,
                &name,
                "convShortcut",
                x,
                (WIDENING * config.width) << group,
                stride,
            );
        }
    }
    let x = graph.batch_norm("bn1", x);
    let x = graph.relu(x);
    graph.classify("fc", x, config.classes);
    graph
}
