//! `model.onnx`: from a frame of the camera to logits, probabilities and the verdict. `network.onnx`: the network alone, from
//! floats to logits. BatchNorm is folded; both are ONNX of operator set 13.

mod builder;

use builder::{Builder, Setting};

use steadfast_infer::compile::{Precision, QuantizedWeights, Scale, to_half};
use steadfast_infer::fold::{Layer, LayerOp};
use steadfast_infer::micro::Taps;
use steadfast_infer::{BYTE, Decision, ImageShape};

use super::weights;
use super::{File, Frame, Source};
use crate::bundle::manifest::{Manifest, Threshold};
use crate::files::sha256;
use crate::onnx::{self, BOOL, FLOAT, FLOAT16, UINT8};

/// The files, where they were asked for; of a quantised network too, where there is one.
pub fn files(source: &Source) -> Vec<File> {
    let Some(frame) = source.onnx else { return Vec::new() };
    let mut files = Vec::from(both(source, frame, &Precision::Float, ""));
    match source.precision {
        Precision::Float => {}
        Precision::Half => files.extend(both(source, frame, source.precision, ".float16")),
        Precision::Int8(_) => files.extend(both(source, frame, source.precision, ".int8")),
    }
    files
}

fn both(source: &Source, frame: Frame, precision: &Precision, suffix: &str) -> [File; 2] {
    let weights = sha256(&weights::serialised(source.weights));
    let (decision, threshold) = match (precision, &source.manifest.quantized) {
        (Precision::Half | Precision::Int8(_), Some(quantized)) => {
            (source.manifest.quantized_decision(), quantized.decision)
        }
        _ => (source.manifest.decision(), source.manifest.decision),
    };
    let metadata = metadata(source.manifest, threshold, &weights);
    let of = |name: &str, builder: Builder| {
        (format!("{name}{suffix}.onnx"), builder.finish("steadfast", &metadata))
    };
    [
        of("model", with_preprocessing(source, frame, precision, &decision)),
        of("network", alone(source, precision)),
    ]
}

/// What a user of the file has to know, as JSON.
fn metadata(
    manifest: &Manifest,
    decision: Option<Threshold>,
    weights_sha256: &str,
) -> Vec<(&'static str, String)> {
    let json = |value: &dyn Fn() -> serde_json::Result<String>| value().expect("plain data serialises");
    vec![
        ("schema", manifest.schema.clone()),
        ("labels", json(&|| serde_json::to_string(&manifest.labels))),
        ("good", json(&|| serde_json::to_string(&manifest.good))),
        ("decision", json(&|| serde_json::to_string(&decision))),
        ("threat_model", json(&|| serde_json::to_string(&manifest.threat_model))),
        ("input", json(&|| serde_json::to_string(&manifest.input))),
        ("weights_sha256", weights_sha256.to_string()),
    ]
}

fn alone(source: &Source, precision: &Precision) -> Builder {
    let mut builder = Builder::default();
    let ImageShape { channels, height, width } = source.image;
    let input = builder.input("image", FLOAT, &[channels, height, width]);
    network(&mut builder, source, input, precision);
    builder.output("logits", FLOAT, &[source.manifest.labels.len()]);
    builder
}

fn with_preprocessing(source: &Source, frame: Frame, precision: &Precision, decision: &Decision) -> Builder {
    let mut builder = Builder::default();
    let classes = source.manifest.labels.len();
    let channels = frame.channels.unwrap_or(source.image.channels);
    let input = builder.input("frame", UINT8, &[frame.height, frame.width, channels]);
    let input = preprocessing(&mut builder, input, (frame, channels), source.image);
    network(&mut builder, source, input, precision);
    builder.output("logits", FLOAT, &[classes]);
    builder.node("Softmax", "probabilities", &["logits"], &[("axis", Setting::One(1))]);
    builder.output("probabilities", FLOAT, &[classes]);
    if !decision.good.is_empty() {
        verdict(&mut builder, decision, classes);
        builder.output("passes", BOOL, &[]);
    }
    builder
}

/// From bytes `[batch, height, width, channels]` to the network's input, as docs/bundle.md has it. Resizing is two products
/// with constant matrices: runtimes disagree about ONNX's own operator.
fn preprocessing(builder: &mut Builder, frame: String, from: (Frame, usize), to: ImageShape) -> String {
    let (Frame { width, height, .. }, channels) = from;
    let mut value = builder.node("Cast", "frame.float", &[&frame], &[("to", Setting::One(FLOAT.into()))]);
    let order = Setting::Several(&[0, 3, 1, 2]);
    value = builder.node("Transpose", "frame.planes", &[&value], &[("perm", order)]);
    if [height, width] != [to.height, to.width] {
        let rows = builder.floats("resize.rows", &[to.height, height], &triangle(height, to.height));
        value = builder.node("MatMul", "resize.vertical", &[&rows, &value], &[]);
        let columns = transposed(&triangle(width, to.width), to.width);
        let columns = builder.floats("resize.columns", &[width, to.width], &columns);
        value = builder.node("MatMul", "resize.horizontal", &[&value, &columns], &[]);
        value = rounded(builder, "resize", &value);
    }
    match (channels, to.channels) {
        (3, 1) => {
            // Exact in float32: no sum reaches 2^24.
            let luma = builder.floats("luma.weights", &[1, 3, 1, 1], &[19595.0, 38470.0, 7471.0]);
            value = builder.node("Conv", "luma.sum", &[&value, &luma], &[]);
            let unit = builder.floats("luma.unit", &[], &[1.0 / 65536.0]);
            value = builder.node("Mul", "luma.value", &[&value, &unit], &[]);
            value = rounded(builder, "luma", &value);
        }
        (1, 3) => {
            value = builder.node("Concat", "colour", &[&value, &value, &value], &[("axis", Setting::One(1))])
        }
        _ => {}
    }
    let byte = builder.floats("byte", &[], &[BYTE]);
    builder.node("Mul", "image", &[&value, &byte], &[])
}

/// Values that are not negative, halves upwards.
fn rounded(builder: &mut Builder, name: &str, value: &str) -> String {
    let half = builder.floats(&format!("{name}.half"), &[], &[0.5]);
    let raised = builder.node("Add", &format!("{name}.raised"), &[value, &half], &[]);
    builder.node("Floor", &format!("{name}.rounded"), &[&raised], &[])
}

/// The weights `[to, from]` by which `to` pixels are made of `from`.
fn triangle(from: usize, to: usize) -> Vec<f32> {
    let row = |output: usize| {
        let taps = Taps::new(output, from, to);
        (0..from).map(move |input| if taps.range().contains(&input) { taps.weight(input) } else { 0.0 })
    };
    (0..to).flat_map(row).collect()
}

fn transposed(values: &[f32], rows: usize) -> Vec<f32> {
    let columns = values.len() / rows;
    (0..values.len()).map(|i| values[i % rows * columns + i / rows]).collect()
}

/// The layers, from `image` to `logits`; nodes and tensors are called as PyTorch's modules.
fn network(builder: &mut Builder, source: &Source, image: String, precision: &Precision) {
    let graph = source.manifest.model.graph();
    let mut values = Values { of: vec![[Some(image), None]], scales: Vec::new() };
    let int8 = match precision {
        Precision::Int8(quantization) => {
            values.scales = quantization.scales(source.layers);
            quantization.float.iter().map(|float| !float).collect()
        }
        _ => vec![false; source.layers.len()],
    };
    for (index, layer) in source.layers.iter().enumerate() {
        let module = match graph.nodes()[layer.node].name.as_str() {
            "" => format!("step{}", index + 1),
            name => name.to_string(),
        };
        let last = index + 1 == source.layers.len();
        let name =
            |operation: &str| if last { "logits".to_string() } else { format!("{module}.{operation}") };
        // The mean is part of the last layer.
        let int8 = int8[if layer.op == LayerOp::GlobalPool { index + 1 } else { index }];
        let input = values.get(builder, layer.input, int8);
        let kept = match (precision, int8) {
            (Precision::Half, _) => Kept::Half,
            (_, true) => Kept::Int8(values.scales[layer.input]),
            _ => Kept::Float,
        };
        let mut value = operation(builder, layer, &module, &name("out"), &input, kept);
        if let Some(residual) = layer.residual {
            let residual = values.get(builder, residual, int8);
            value = builder.node("Add", &name("sum"), &[&value, &residual], &[]);
        }
        if layer.relu {
            value = builder.node("Relu", &name("relu"), &[&value], &[]);
        }
        let rounded = int8 && !matches!(layer.op, LayerOp::GlobalPool | LayerOp::Linear { .. });
        // What a layer of int8 gives is read in integers alone.
        values.of.push([Some(value.clone()), (int8 && !rounded).then_some(value)]);
        if rounded {
            let quantised = values.get(builder, index + 1, true);
            values.of[index + 1][0] = Some(quantised);
        }
    }
}

/// The names of values, as they are and through int8.
struct Values {
    of: Vec<[Option<String>; 2]>,
    scales: Vec<Scale>,
}

impl Values {
    fn get(&mut self, builder: &mut Builder, value: usize, int8: bool) -> String {
        if let Some(name) = &self.of[value][usize::from(int8)] {
            return name.clone();
        }
        let name = self.of[value][0].clone().expect("every value is computed before it is read");
        let Scale { scale, zero } = self.scales[value];
        let scale = builder.floats(&format!("{name}.scale"), &[], &[scale as f32]);
        let zero = builder.int8(&format!("{name}.zero"), &[], &[zero as i8]);
        let quantised = builder.node("QuantizeLinear", &format!("{name}.int8"), &[&name, &scale, &zero], &[]);
        let parameters = [quantised.as_str(), &scale, &zero];
        let back = builder.node("DequantizeLinear", &format!("{name}.float"), &parameters, &[]);
        self.of[value][1] = Some(back.clone());
        back
    }
}

/// How the weights of a layer are kept.
#[derive(Clone, Copy)]
enum Kept {
    Float,
    Half,
    /// In int8, for an input of this scale.
    Int8(Scale),
}

/// Weights as a value of float32.
fn weights_of(builder: &mut Builder, name: &str, shape: &[usize], weights: &[f32], kept: Kept) -> String {
    match kept {
        Kept::Half => {
            let halves = weights.iter().flat_map(|&weight| to_half(weight).to_le_bytes()).collect();
            let halves = builder.constant(&format!("{name}.float16"), FLOAT16, shape, halves);
            builder.node("Cast", name, &[&halves], &[("to", Setting::One(FLOAT.into()))])
        }
        _ => builder.floats(name, shape, weights),
    }
}

/// Integers with a scale for every one of an axis, as a value of float32.
fn dequantized(builder: &mut Builder, name: &str, integers: String, scales: &[f64], axis: i64) -> String {
    let scales: Vec<f32> = scales.iter().map(|&scale| scale as f32).collect();
    let scales = builder.floats(&format!("{name}.scale"), &[scales.len()], &scales);
    builder.node("DequantizeLinear", name, &[&integers, &scales], &[("axis", Setting::One(axis))])
}

fn operation(
    builder: &mut Builder,
    layer: &Layer,
    module: &str,
    name: &str,
    input: &str,
    kept: Kept,
) -> String {
    let tensor = |suffix: &str| format!("{module}.{suffix}");
    match &layer.op {
        LayerOp::Conv { conv, weights, bias } => {
            let ([.., outputs], kernel) = (conv.output, conv.kernel);
            let shape = [outputs, conv.inputs_per_output(), kernel, kernel];
            let [weight, of_bias] = ["weight", "bias"].map(tensor);
            let (weights, bias) = match kept {
                Kept::Int8(from) => {
                    let QuantizedWeights { int8, bias, scales } = QuantizedWeights::new(weights, bias, from);
                    let int8 = builder.int8(&format!("{weight}.int8"), &shape, &int8);
                    let bias = builder.int32(&format!("{of_bias}.int32"), &[outputs], &bias);
                    let products: Vec<f64> = scales.iter().map(|scale| scale * from.scale).collect();
                    (
                        dequantized(builder, &weight, int8, &scales, 0),
                        dequantized(builder, &of_bias, bias, &products, 0),
                    )
                }
                _ => (
                    weights_of(builder, &weight, &shape, weights, kept),
                    builder.floats(&of_bias, &[outputs], bias),
                ),
            };
            let settings = [
                ("kernel_shape", Setting::Several(&[kernel; 2])),
                ("strides", Setting::Several(&[conv.stride; 2])),
                ("pads", Setting::Several(&[conv.padding; 4])),
                ("group", Setting::One(if conv.depthwise { outputs as i64 } else { 1 })),
            ];
            builder.node("Conv", name, &[input, &weights, &bias], &settings)
        }
        LayerOp::Affine { scale, shift } => {
            if scale.iter().all(|&scale| scale == 1.0) && shift.iter().all(|&shift| shift == 0.0) {
                return input.to_string();
            }
            let shape = [scale.len(), 1, 1];
            let scale = builder.floats(&tensor("scale"), &shape, scale);
            let shift = builder.floats(&tensor("shift"), &shape, shift);
            let product = builder.node("Mul", &tensor("product"), &[input, &scale], &[]);
            builder.node("Add", name, &[&product, &shift], &[])
        }
        LayerOp::MaxPool(_) => {
            let settings = [
                ("kernel_shape", Setting::Several(&[3; 2])),
                ("strides", Setting::Several(&[2; 2])),
                ("pads", Setting::Several(&[1; 4])),
            ];
            builder.node("MaxPool", name, &[input], &settings)
        }
        LayerOp::GlobalPool => {
            let pooled = builder.node("GlobalAveragePool", &tensor("pooled"), &[input], &[]);
            builder.node("Flatten", name, &[&pooled], &[("axis", Setting::One(1))])
        }
        LayerOp::Linear { weights, bias } => {
            let shape = [weights.len() / bias.len(), bias.len()];
            let weight = tensor("weight");
            let weights = match kept {
                Kept::Int8(_) => {
                    let QuantizedWeights { int8, scales, .. } =
                        QuantizedWeights::by_columns(weights, bias.len());
                    let int8 = builder.int8(&format!("{weight}.int8"), &shape, &int8);
                    dequantized(builder, &weight, int8, &scales, 1)
                }
                _ => weights_of(builder, &weight, &shape, weights, kept),
            };
            let bias = builder.floats(&tensor("bias"), &[bias.len()], bias);
            builder.node("Gemm", name, &[input, &weights, &bias], &[])
        }
    }
}

/// Whether the part passes, as [`Decision::passes`] has it.
fn verdict(builder: &mut Builder, decision: &Decision, classes: usize) {
    let is_good = |class| decision.good.contains(&class);
    let answer = match decision.threshold {
        None => {
            let best = [("axis", Setting::One(1)), ("keepdims", Setting::One(0))];
            let class = builder.node("ArgMax", "class", &["logits"], &best);
            let table = builder.flags("class.good", (0..classes).map(is_good));
            builder.node("Gather", "verdict", &[&table, &class], &[])
        }
        Some(threshold) => {
            let mut highest = |name: &str, good: bool| {
                let wanted: Vec<usize> = (0..classes).filter(|&class| is_good(class) == good).collect();
                let wanted = builder.indices(&format!("{name}.classes"), &wanted);
                let axis = [("axis", Setting::One(1))];
                let logits = builder.node("Gather", &format!("{name}.logits"), &["logits", &wanted], &axis);
                let over = [("axes", Setting::Several(&[1])), ("keepdims", Setting::One(0))];
                builder.node("ReduceMax", &format!("{name}.highest"), &[&logits], &over)
            };
            let (good, defect) = (highest("good", true), highest("defect", false));
            let margin = builder.node("Sub", "margin", &[&good, &defect], &[]);
            let least = builder.floats("margin.least", &[], &[threshold]);
            builder.node("GreaterOrEqual", "verdict", &[&margin, &least], &[])
        }
    };
    // Logits that are not finite never pass.
    let nan = builder.node("IsNaN", "logits.nan", &["logits"], &[]);
    let infinite = builder.node("IsInf", "logits.infinite", &["logits"], &[]);
    let either = builder.node("Or", "logits.broken", &[&nan, &infinite], &[]);
    let count = builder.node("Cast", "broken.count", &[&either], &[("to", Setting::One(onnx::INT32.into()))]);
    let over = [("axes", Setting::Several(&[1])), ("keepdims", Setting::One(0))];
    let any = builder.node("ReduceMax", "broken.any", &[&count], &over);
    let zero = builder.int32("zero", &[], &[0]);
    let finite = builder.node("Equal", "finite", &[&any, &zero], &[]);
    builder.node("And", "passes", &[&answer, &finite], &[]);
}
