//! A start that is not random: the weights of another network of the same architecture, with a new last layer.

use std::collections::BTreeMap;
use std::path::Path;

use steadfast_infer::graph::{Graph, Op};

use crate::bail;
use crate::error::Result;
use crate::files;
use crate::model::foreign::{self, Foreign};
use crate::model::state_dict::{StateDict, Values};

/// What `--init` calls the weights that the program brings along.
pub const TEXTURES: &str = "textures";

/// A mobile-resnet and a micro-cnn of width 16 with the stem `half` for grey images, trained against attacks of 8/255 on drawn
/// textures (exports/backbones/README.md says how).
static TEXTURES_WEIGHTS: [&[u8]; 2] = [
    include_bytes!("../../exports/backbones/textures.safetensors"),
    include_bytes!("../../exports/backbones/textures-micro-cnn.safetensors"),
];

/// The weights of a network with those of `path` in place of its own, but for the last layer unless `keep_head` says so.
///
/// # Errors
/// A file that cannot be read, a tensor that is missing or has another shape.
pub fn initial(path: &Path, graph: &Graph, mut own: StateDict, keep_head: bool) -> Result<StateDict> {
    let (head, first) = (head(graph), first_convolution(graph));
    let mut given = match path == Path::new(TEXTURES) {
        true => {
            let [resnet, micro] = TEXTURES_WEIGHTS.map(|bytes| named(bytes, path));
            let (resnet, micro) = (resnet?, micro?);
            let fits = own.keys().all(|name| name.starts_with(&head) || micro.contains_key(name));
            if fits { micro } else { resnet }
        }
        false => named(&files::read(path)?, path)?,
    };
    for (name, values) in &mut own {
        if !keep_head && name.starts_with(&head) {
            continue;
        }
        let Some(mut new) = given.remove(name) else {
            bail!("--init {}: {name} is not in it; choose its --arch and --stem", path.display());
        };
        if *name == first {
            new = with_channels(new, values.shape[1]);
        }
        if new.shape != values.shape {
            bail!(
                "--init {}: {name} has shape {:?}, expected {:?}; choose its --arch, --width and --stem",
                path.display(),
                new.shape,
                values.shape
            );
        }
        *values = new;
    }
    Ok(own)
}

/// The tensors of a file in our names. The normalisation of its images is folded into the first convolution and the BatchNorm
/// behind it, which is exact but for the border, where such networks pad with their mean.
fn named(bytes: &[u8], path: &Path) -> Result<StateDict> {
    let Foreign { mut weights, normalisation } = foreign::of_bytes(bytes, path)?;
    if let Some([mean, deviation]) = normalisation {
        fold_normalisation(&mut weights, &mean, &deviation);
    }
    Ok(weights)
}

fn fold_normalisation(weights: &mut StateDict, mean: &[f32], deviation: &[f32]) {
    let Some(kernel) = weights.get_mut("conv1.weight").filter(|kernel| kernel.shape[1] == mean.len()) else {
        return;
    };
    let taps: usize = kernel.shape[2..].iter().product();
    let mut offsets = Vec::new();
    for output in kernel.data.chunks_mut(mean.len() * taps) {
        let mut offset = 0.0;
        for ((plane, mean), deviation) in output.chunks_mut(taps).zip(mean).zip(deviation) {
            plane.iter_mut().for_each(|weight| *weight /= deviation);
            offset += plane.iter().sum::<f32>() * mean;
        }
        offsets.push(offset);
    }
    if let Some(running) = weights.get_mut("bn1.running_mean") {
        running.data.iter_mut().zip(offsets).for_each(|(mean, offset)| *mean += offset);
    }
}

/// A first convolution for another number of channels: of a grey image as of one with equal channels, and the other way
/// round.
fn with_channels(kernel: Values, channels: usize) -> Values {
    let [outputs, inputs, rows, columns] = kernel.shape[..] else { return kernel };
    if inputs == channels || (inputs != 1 && channels != 1) {
        return kernel;
    }
    let taps = rows * columns;
    let share = 1.0 / channels as f32;
    let data = kernel.data.chunks(inputs * taps).flat_map(|output| {
        let sum = (0..taps).map(move |tap| output.iter().skip(tap).step_by(taps).sum::<f32>() * share);
        std::iter::repeat_n(sum.collect::<Vec<_>>(), channels).flatten()
    });
    Values { data: data.collect(), shape: vec![outputs, channels, rows, columns] }
}

/// Beginning of the names of the last layer's tensors.
fn head(graph: &Graph) -> String {
    let last = graph.nodes().iter().rev().find(|node| matches!(node.op, Op::Linear { .. }));
    format!("{}.", last.expect("a network ends in a linear layer").name)
}

fn first_convolution(graph: &Graph) -> String {
    let first = graph.nodes().iter().find(|node| matches!(node.op, Op::Conv { .. }));
    format!("{}.weight", first.expect("a network begins with a convolution").name)
}

/// The share of the learning rate of every parameter before the last layer: none in the first `freeze` stages, `backbone`
/// in the others.
pub fn rates(graph: &Graph, freeze: usize, backbone: f64) -> BTreeMap<String, f64> {
    let head = head(graph);
    let mut stages: Vec<String> = Vec::new();
    let mut rates = BTreeMap::new();
    for tensor in graph.tensors().into_iter().filter(|tensor| !tensor.name.starts_with(&head)) {
        // bn1 belongs to conv1, bn2 to conv2: a stage is a convolution of its own, or a group of blocks.
        let stage = tensor.name.split('.').next().unwrap_or_default().replace("bn", "conv");
        if !stages.contains(&stage) {
            stages.push(stage);
        }
        let rate = if stages.len() <= freeze { 0.0 } else { backbone };
        if rate != 1.0 {
            rates.insert(tensor.name, rate);
        }
    }
    rates
}

#[cfg(test)]
mod tests {
    use steadfast_infer::arch::RESNET18;

    use super::*;
    use crate::model::{ModelConfig, Stem};

    const CONFIG: ModelConfig = ModelConfig {
        arch: RESNET18,
        width: 2,
        channels: 1,
        classes: 3,
        stem: Stem::Imagenet,
        normalize: false,
    };

    /// Tensors of a network, each filled with numbers of its own.
    fn state(config: &ModelConfig, offset: f32) -> StateDict {
        let tensors = config.graph().tensors().into_iter().enumerate();
        let filled = |(index, tensor): (usize, steadfast_infer::graph::TensorInfo)| {
            let count = tensor.shape.iter().product::<usize>();
            let data = (0..count).map(|i| offset + index as f32 + i as f32 / count as f32).collect();
            (tensor.name, Values { shape: tensor.shape, data })
        };
        tensors.map(filled).collect()
    }

    fn write(path: &Path, weights: &StateDict) {
        use safetensors::tensor::{Dtype, TensorView, serialize};

        let bytes: Vec<_> = weights.values().map(Values::to_bytes).collect();
        let views = weights.iter().zip(&bytes).map(|((name, values), bytes)| {
            (name.as_str(), TensorView::new(Dtype::F32, values.shape.clone(), bytes).unwrap())
        });
        std::fs::write(path, serialize(views, None).unwrap()).unwrap();
    }

    #[test]
    fn weights_in_the_names_of_torchvision_are_taken_but_for_the_last_layer() {
        let root = tempfile::tempdir().unwrap();
        let (own, given) =
            (state(&CONFIG, 0.0), state(&ModelConfig { classes: 1000, channels: 3, ..CONFIG }, 0.5));
        let foreign = |(name, values): (&String, &Values)| {
            let name = name.replace(".shortcut.", ".downsample.").replace("linear.", "fc.");
            (format!("module.{name}"), values.clone())
        };
        let path = root.path().join("weights.safetensors");
        write(&path, &given.iter().map(foreign).collect());
        let taken = initial(&path, &CONFIG.graph(), own.clone(), false).unwrap();
        assert_eq!(taken["linear.weight"], own["linear.weight"]);
        let error = initial(&path, &CONFIG.graph(), own.clone(), true).unwrap_err().to_string();
        assert!(error.contains("linear.bias has shape [1000], expected [3]"), "{error}");
        assert_eq!(taken["layer4.1.conv2.weight"], given["layer4.1.conv2.weight"]);
        assert_eq!(taken["layer2.0.shortcut.0.weight"], given["layer2.0.shortcut.0.weight"]);
        assert_eq!(taken["bn1.running_var"], given["bn1.running_var"]);
        assert_eq!(taken["conv1.weight"].shape, own["conv1.weight"].shape);
        write(&path, &own.iter().filter(|(name, _)| *name != "bn1.bias").map(foreign).collect());
        let error = initial(&path, &CONFIG.graph(), own.clone(), false).unwrap_err().to_string();
        assert!(error.contains("bn1.bias is not in it"), "{error}");
        write(&path, &state(&ModelConfig { width: 3, ..CONFIG }, 0.0));
        let error = initial(&path, &CONFIG.graph(), own, false).unwrap_err().to_string();
        assert!(error.contains("expected [2]") && error.contains("width"), "{error}");
    }

    #[test]
    fn the_normalisation_of_images_is_folded_into_the_first_layers() {
        let mut weights = StateDict::new();
        let kernel = [0.5, -1.0, 2.0];
        weights.insert("conv1.weight".to_string(), Values { shape: vec![1, 3, 1, 1], data: kernel.to_vec() });
        weights.insert("bn1.running_mean".to_string(), Values { shape: vec![1], data: vec![0.25] });
        let image = [0.2, 0.5, 0.7];
        let (mean, deviation) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        let expected: f32 =
            (0..3).map(|i| kernel[i] * (image[i] - mean[i]) / deviation[i]).sum::<f32>() - 0.25;
        fold_normalisation(&mut weights, &mean, &deviation);
        let seen: f32 = (0..3).map(|i| weights["conv1.weight"].data[i] * image[i]).sum::<f32>();
        let seen = seen - weights["bn1.running_mean"].data[0];
        assert!((seen - expected).abs() < 1e-5, "{seen} for {expected}");
        // A grey image is a colour image of equal channels.
        let grey = with_channels(weights["conv1.weight"].clone(), 1);
        let sum: f32 = weights["conv1.weight"].data.iter().sum();
        assert!((grey.data[0] - sum).abs() < 1e-5 && grey.shape == [1, 1, 1, 1]);
        let colour = with_channels(grey, 3);
        assert!((colour.data.iter().sum::<f32>() - sum).abs() < 1e-5 && colour.shape == [1, 3, 1, 1]);
    }

    #[test]
    fn stages_are_frozen_in_order_and_the_last_layer_never() {
        let graph = CONFIG.graph();
        assert!(rates(&graph, 0, 1.0).is_empty());
        let two = rates(&graph, 2, 1.0);
        assert!(two.contains_key("conv1.weight") && two.contains_key("bn1.bias"));
        assert!(
            two.keys().all(|name| !name.starts_with("layer2")) && two.contains_key("layer1.1.bn2.weight")
        );
        let slow = rates(&graph, 1, 0.1);
        assert_eq!((slow["conv1.weight"], slow["layer4.0.conv1.weight"]), (0.0, 0.1));
        assert!(rates(&graph, 99, 1.0).keys().all(|name| !name.starts_with("linear")));
    }
}
