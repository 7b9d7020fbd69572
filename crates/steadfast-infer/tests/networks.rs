//! Compiled networks against the graph computed node by node, and the reference bundle from bytes. Without feature `simd`
//! the scalar kernels are tested, with it those of steadfast-cpu.

use std::collections::BTreeSet;
use std::path::Path;

use steadfast_infer::graph::{BATCH_NORM_EPSILON, Graph, Op, Role};
use steadfast_infer::{
    ARCHITECTURES, Bundle, Error, ImageShape, ModelConfig, Network, StateDict, Stem, Values, largest,
    largest_difference,
};

/// Numbers in ±1 that repeat (a linear congruential generator).
struct Numbers(u32);

impl Numbers {
    fn take(&mut self, count: usize) -> Vec<f32> {
        let mut next = || {
            self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (self.0 >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }
}

/// Weights under which no layer explodes or dies out.
fn weights(graph: &Graph, numbers: &mut Numbers) -> StateDict {
    let one = |tensor: &steadfast_infer::graph::TensorInfo| {
        let count = tensor.shape.iter().product::<usize>();
        let fan_in = tensor.shape[1..].iter().product::<usize>().max(1) as f32;
        let drawn = numbers.take(count);
        let data = match (tensor.role, tensor.shape.len()) {
            (_, 2..) => drawn.iter().map(|value| value * (3.0 / fan_in).sqrt()).collect(),
            (Role::Parameter, _) if tensor.name.ends_with("weight") => {
                drawn.iter().map(|v| 1.0 + v / 4.0).collect()
            }
            (Role::Statistic, _) if tensor.name.ends_with("var") => {
                drawn.iter().map(|v| 1.0 + v / 2.0).collect()
            }
            _ => drawn.iter().map(|value| value / 4.0).collect(),
        };
        (tensor.name.clone(), Values { shape: tensor.shape.clone(), data })
    };
    graph.tensors().iter().map(one).collect()
}

/// The logits of one image, every node computed by its definition, with channels first and in float64.
fn node_by_node(graph: &Graph, weights: &StateDict, image: &[f32], size: [usize; 2]) -> Vec<f32> {
    let shapes = graph.shapes(size);
    let mut values: Vec<Vec<f64>> = Vec::new();
    for (id, node) in graph.nodes().iter().enumerate() {
        let tensor = |suffix: &str| &weights[&format!("{}.{suffix}", node.name)].data;
        let input = node.inputs.first().map(|&input| (&values[input], shapes[input]));
        let [rows, columns, channels] = shapes[id];
        let at = |values: &[f64], [height, width, _]: [usize; 3], c: usize, y: isize, x: isize| {
            let inside = (0..height as isize).contains(&y) && (0..width as isize).contains(&x);
            inside.then(|| values[(c * height + y as usize) * width + x as usize])
        };
        let each = |value: &dyn Fn(usize, usize, usize) -> f64| -> Vec<f64> {
            let places =
                (0..channels).flat_map(|c| (0..rows).flat_map(move |y| (0..columns).map(move |x| (c, y, x))));
            places.map(|(c, y, x)| value(c, y, x)).collect()
        };
        let result = match (node.op, input) {
            (Op::Conv { inputs, kernel, stride, padding, .. }, Some((input, shape))) => each(&|c, y, x| {
                let mut sum = 0.0;
                for i in 0..inputs {
                    for tap in 0..kernel * kernel {
                        let y = (y * stride + tap / kernel) as isize - padding as isize;
                        let x = (x * stride + tap % kernel) as isize - padding as isize;
                        let weight = tensor("weight")[(c * inputs + i) * kernel * kernel + tap];
                        sum += at(input, shape, i, y, x).unwrap_or(0.0) * f64::from(weight);
                    }
                }
                sum
            }),
            (Op::BatchNorm { .. }, Some((input, _))) => {
                let area = rows * columns;
                let of = |suffix: &str, c: usize| f64::from(tensor(suffix)[c]);
                let normalised = |(i, value): (usize, &f64)| {
                    let c = i / area;
                    let deviation = (of("running_var", c) + f64::from(BATCH_NORM_EPSILON)).sqrt();
                    (value - of("running_mean", c)) / deviation * of("weight", c) + of("bias", c)
                };
                input.iter().enumerate().map(normalised).collect()
            }
            (Op::Relu, Some((input, _))) => input.iter().map(|value| value.max(0.0)).collect(),
            (Op::Add, Some((input, _))) => {
                input.iter().zip(&values[node.inputs[1]]).map(|(a, b)| a + b).collect()
            }
            (Op::MaxPool, Some((input, shape))) => each(&|c, y, x| {
                let window = (0..9).filter_map(|tap| {
                    at(input, shape, c, (2 * y + tap / 3) as isize - 1, (2 * x + tap % 3) as isize - 1)
                });
                window.max_by(f64::total_cmp).unwrap()
            }),
            (Op::GlobalPool, Some((input, [height, width, _]))) => {
                let area = height * width;
                input.chunks(area).map(|plane| plane.iter().sum::<f64>() / area as f64).collect()
            }
            (Op::Linear { inputs, .. }, Some((input, _))) => (0..channels)
                .map(|o| {
                    let row = tensor("weight")[o * inputs..][..inputs].iter();
                    row.zip(input).map(|(w, x)| f64::from(*w) * x).sum::<f64>() + f64::from(tensor("bias")[o])
                })
                .collect(),
            _ => image.iter().map(|&value| value.into()).collect(),
        };
        values.push(result);
    }
    values.pop().unwrap().into_iter().map(|value| value as f32).collect()
}

#[test]
fn compiled_networks_compute_their_graph() {
    let stems = [(Stem::Cifar, 3, [9, 12]), (Stem::Half, 1, [10, 13]), (Stem::Imagenet, 1, [33, 38])];
    // Miri interprets every addition: two tiny networks have to do.
    let tiny = [(Stem::Half, 1, [5, 6])];
    let (architectures, stems) =
        if cfg!(miri) { (&ARCHITECTURES[..2], &tiny[..]) } else { (ARCHITECTURES, &stems[..]) };
    for (index, &arch) in architectures.iter().enumerate() {
        for &(stem, channels, size) in stems {
            let mut numbers = Numbers(23 + index as u32);
            let config = ModelConfig {
                arch,
                width: if cfg!(miri) || arch.name.starts_with("wide") { 1 } else { 3 },
                channels,
                classes: 5,
                stem,
                normalize: false,
            };
            let graph = config.graph();
            let weights = weights(&graph, &mut numbers);
            let shape = ImageShape { channels, height: size[0], width: size[1] };
            let images: Vec<f32> = numbers.take(3 * shape.len()).iter().map(|v| 0.5 + v / 2.0).collect();
            let expected: Vec<f32> = images
                .chunks(shape.len())
                .flat_map(|image| node_by_node(&graph, &weights, image, size))
                .collect();
            let network = Network::new(&graph, weights, shape).unwrap();
            let seen = network.logits(&images);
            let scale = largest(expected.iter().map(|logit| logit.abs()));
            let distance = largest_difference(&seen, &expected) / scale;
            assert!(distance < 2e-5, "{arch} {stem:?}: {distance}, logits up to {scale}");
            let distinct: BTreeSet<String> = expected.iter().map(|logit| format!("{logit:.3}")).collect();
            assert!(distinct.len() > 10, "{arch}: the logits say nothing: {expected:?}");
        }
    }
}

/// Weights that are not those of the network are named.
#[test]
fn other_weights_are_refused() {
    let config = ModelConfig {
        arch: ARCHITECTURES[0],
        width: 2,
        channels: 1,
        classes: 3,
        stem: Stem::Cifar,
        normalize: false,
    };
    let graph = config.graph();
    let weights = weights(&graph, &mut Numbers(1));
    let shape = ImageShape { channels: 1, height: 8, width: 8 };
    let refused = |change: &dyn Fn(&mut StateDict)| {
        let mut changed = weights.clone();
        change(&mut changed);
        Network::new(&graph, changed, shape).unwrap_err().to_string()
    };
    assert!(refused(&|w| drop(w.remove("bn2.bias"))).contains("bn2.bias is missing"));
    assert!(
        refused(&|w| w.get_mut("bn2.bias").unwrap().shape = vec![1])
            .contains("bn2.bias has shape [1], expected [4]")
    );
    assert!(
        refused(&|w| drop(w.insert("more".into(), w["bn2.bias"].clone()))).contains("more is not part of it")
    );
}

#[test]
#[cfg_attr(miri, ignore = "hours")]
fn the_reference_bundle_is_read_from_bytes_and_gives_its_golden_logits() {
    let folder = Path::new("../../exports/reference");
    let mut file =
        |name: &str| std::fs::read(folder.join(name)).map_err(|error| Error::new(error.to_string()));
    let bundle = Bundle::read(&mut file).unwrap();
    let network = bundle.network().unwrap();
    assert_eq!(network.classes(), bundle.manifest.labels.len());
    let decision = bundle.manifest.decision();
    let logits = network.logits(&bundle.golden.inputs);
    let passes: Vec<bool> = logits.chunks(network.classes()).map(|logits| decision.passes(logits)).collect();
    assert!(passes.contains(&true) && passes.contains(&false), "{passes:?}");

    let mut damaged = |name: &str| {
        let mut bytes = file(name)?;
        if name == "model.safetensors" {
            *bytes.last_mut().unwrap() ^= 1;
        }
        Ok(bytes)
    };
    let error = Bundle::read(&mut damaged).unwrap_err().to_string();
    assert!(error.contains("model.safetensors: its checksum is wrong"), "{error}");
}
