//! Compiled networks against the graph computed node by node, and the reference bundle from bytes. Without feature `simd`
//! the scalar kernels are tested, with it those of steadfast-cpu.

use std::collections::BTreeSet;
use std::path::Path;

use steadfast_infer::arch::{Arch, MICRO_CNN, MOBILE_RESNET};
use steadfast_infer::compile::{Compiled, Precision, Quantization};
use steadfast_infer::fold::fold;
use steadfast_infer::graph::{BATCH_NORM_EPSILON, Graph, Op, Role};
use steadfast_infer::micro::{self, float::from_half};
use steadfast_infer::{
    ARCHITECTURES, BYTE, Bundle, Error, ImageShape, ModelConfig, Network, StateDict, Stem, Values, largest,
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
            (Op::Conv { inputs, kernel, stride, padding, depthwise, .. }, Some((input, shape))) => {
                each(&|c, y, x| {
                    let mut sum = 0.0;
                    let of_output = if depthwise { 1 } else { inputs };
                    for i in 0..of_output {
                        for tap in 0..kernel * kernel {
                            let y = (y * stride + tap / kernel) as isize - padding as isize;
                            let x = (x * stride + tap % kernel) as isize - padding as isize;
                            let weight = tensor("weight")[(c * of_output + i) * kernel * kernel + tap];
                            let channel = if depthwise { c } else { i };
                            sum += at(input, shape, channel, y, x).unwrap_or(0.0) * f64::from(weight);
                        }
                    }
                    sum
                })
            }
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
            // Bytes, which int8 holds exactly.
            let images: Vec<f32> =
                numbers.take(3 * shape.len()).iter().map(|v| (127.5 + v * 127.5).round() * BYTE).collect();
            let expected: Vec<f32> = images
                .chunks(shape.len())
                .flat_map(|image| node_by_node(&graph, &weights, image, size))
                .collect();
            let layers = fold(&graph, weights.clone(), shape).unwrap();
            let network = Network::new(&graph, weights, shape).unwrap();
            let seen = network.logits(&images);
            let scale = largest(expected.iter().map(|logit| logit.abs()));
            let distance = largest_difference(&seen, &expected) / scale;
            assert!(distance < 2e-5, "{arch} {stem:?}: {distance}, logits up to {scale}");
            let float = Compiled::new(&layers, shape, &Precision::Float);
            let mut ranges = vec![[0.0_f32; 2]; layers.len() + 1];
            float.observe(&images, |value, numbers| {
                for &number in numbers {
                    ranges[value] = [ranges[value][0].min(number), ranges[value][1].max(number)];
                }
            });
            let int8 = |float: &dyn Fn(usize) -> bool| {
                let float = (0..layers.len()).map(float).collect();
                Precision::Int8(Quantization { ranges: ranges.clone(), float })
            };
            for (precision, tolerance) in [
                (Precision::Float, 2e-5),
                (Precision::Half, 3e-3),
                (int8(&|_| false), 0.1),
                (int8(&|layer| layer % 2 == 0), 0.1),
                (int8(&|layer| layer % 3 == 0), 0.1),
            ] {
                let seen = Compiled::new(&layers, shape, &precision).logits(&images);
                let distance = largest_difference(&seen, &expected) / scale;
                assert!(distance < tolerance, "{arch} {stem:?} {precision:?}: {distance}");
            }
            let distinct: BTreeSet<String> = expected.iter().map(|logit| format!("{logit:.3}")).collect();
            assert!(distinct.len() > 10, "{arch}: the logits say nothing: {expected:?}");
        }
    }
}

/// Two values of the first stage are alive at a time, and nothing else: a residual is added in its place.
#[test]
fn memory_is_what_the_largest_layer_needs() {
    for (stem, side, first_stage) in [(Stem::Cifar, 32, 32), (Stem::Half, 64, 32), (Stem::Cifar, 64, 64)] {
        let config =
            ModelConfig { arch: MOBILE_RESNET, width: 16, channels: 1, classes: 4, stem, normalize: false };
        let graph = config.graph();
        let shape = ImageShape { channels: 1, height: side, width: side };
        let layers = fold(&graph, weights(&graph, &mut Numbers(3)), shape).unwrap();
        let float = Compiled::new(&layers, shape, &Precision::Float);
        let quantization =
            Quantization { ranges: vec![[-1.0, 1.0]; layers.len() + 1], float: vec![false; layers.len()] };
        let int8 = Compiled::new(&layers, shape, &Precision::Int8(quantization));
        let two = 2 * 16 * first_stage * first_stage;
        assert_eq!((float.model().floats, float.model().bytes), (two, 0));
        assert_eq!((int8.model().floats, int8.model().bytes), (4, two));
        // A frame of 640 × 480 in colour is resized row by row.
        assert_eq!(int8.model().floats_for([480, 640, 3]), 640 * 3);
        // The pixels of the first stage, and behind a stride of 2 a quarter of them.
        let config = ModelConfig { arch: MICRO_CNN, ..config };
        let graph = config.graph();
        let layers = fold(&graph, weights(&graph, &mut Numbers(3)), shape).unwrap();
        let float = Compiled::new(&layers, shape, &Precision::Float);
        assert_eq!(float.model().floats, 16 * first_stage * first_stage * 5 / 4);
    }
}

/// Every layer of int8 by integers of 128 bits, from coordinates.
#[test]
fn int8_layers_round_once() {
    assert_eq!(convolutions_that_round_once(MOBILE_RESNET), 12);
    assert_eq!(convolutions_that_round_once(MICRO_CNN), 13);
}

fn convolutions_that_round_once(arch: Arch) -> usize {
    let config = ModelConfig { arch, width: 3, channels: 3, classes: 5, stem: Stem::Half, normalize: true };
    let graph = config.graph();
    let mut numbers = Numbers(7);
    let shape = ImageShape { channels: 3, height: 11, width: 8 };
    let layers = fold(&graph, weights(&graph, &mut numbers), shape).unwrap();
    let quantization =
        Quantization { ranges: vec![[-1.5, 1.0]; layers.len() + 1], float: vec![false; layers.len()] };
    let compiled = Compiled::new(&layers, shape, &Precision::Int8(quantization));
    let model = compiled.model();
    let (mut floats, mut bytes) = (vec![0.0; model.floats], vec![0; model.bytes]);
    bytes[model.input_start..]
        .iter_mut()
        .zip(numbers.take(shape.len()))
        .for_each(|(byte, value)| *byte = (value * 127.0) as i8);
    let mut convolutions = 0;
    for layer in model.layers {
        let before = bytes.clone();
        let mut arena = micro::Arena { floats: &mut floats, bytes: &mut bytes };
        model.step(layer, &mut arena);
        let micro::Op::ConvInt8 { shape, weights, bias, rescale } = layer.op else { continue };
        convolutions += 1;
        let (input, weights) = (&before[layer.input.range()], &model.constants.int8[weights.range()]);
        let [height, width, inputs] = shape.input;
        let [_, columns, outputs] = shape.output;
        let seen_by_one = shape.inputs_per_output();
        let of = |span: micro::Span, at: usize| i128::from(model.constants.int32[span.start + at]);
        for (at, &seen) in bytes[layer.output.range()].iter().enumerate() {
            let (y, x, o) = (at / outputs / columns, at / outputs % columns, at % outputs);
            let mut sum = of(bias, o);
            for (ky, kx, i) in (0..shape.kernel * shape.kernel * seen_by_one)
                .map(|k| (k / seen_by_one / shape.kernel, k / seen_by_one % shape.kernel, k % seen_by_one))
            {
                let [iy, ix] =
                    [y * shape.stride + ky, x * shape.stride + kx].map(|v| v.wrapping_sub(shape.padding));
                if iy < height && ix < width {
                    let tap = ky * shape.kernel + kx;
                    let group = o / micro::LANES * shape.kernel * shape.kernel + tap;
                    let weight = weights[(group * seen_by_one + i) * micro::LANES + o % micro::LANES];
                    let channel = if shape.depthwise { o } else { i };
                    let value = i128::from(input[(iy * width + ix) * inputs + channel]);
                    sum += (value - i128::from(rescale.input_zero)) * i128::from(weight);
                }
            }
            let mut product = sum * of(rescale.multipliers, o);
            if let Some(residual) = layer.residual {
                let value = i128::from(before[residual.start + at]) - i128::from(rescale.residual_zero);
                product += value * i128::from(rescale.residual);
            }
            // The nearest, halves upwards.
            let nearest = (2 * product + (1 << rescale.bits)).div_euclid(2 << rescale.bits);
            assert_eq!(
                i128::from(seen),
                (nearest + i128::from(rescale.zero)).clamp(-128, 127),
                "{shape:?} {at}"
            );
        }
    }
    convolutions
}

#[test]
fn every_float16_is_read() {
    for bits in 0..0x7c00_u16 {
        let (exponent, fraction) = (i32::from(bits >> 10), f32::from(bits & 0x3ff) / 1024.0);
        let value = if exponent == 0 {
            fraction * 2f32.powi(-14)
        } else {
            (1.0 + fraction) * 2f32.powi(exponent - 15)
        };
        assert_eq!(from_half(bits), value);
        assert_eq!(from_half(bits | 0x8000), -value);
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
