//! `model.onnx`: from a frame of the camera to logits, probabilities and the verdict. `network.onnx`: the network alone, from
//! floats to logits. BatchNorm is folded; both are ONNX of operator set 13.

mod builder;
mod proto;

use std::str::FromStr;

use builder::{Builder, Setting};
use proto::{BOOL, FLOAT, INT32, UINT8};
use steadfast_infer::network::{Layer, LayerOp, fold};
use steadfast_infer::{BYTE, Decision, ImageShape};

use super::weights;
use super::{File, Source};
use crate::bundle::manifest::Manifest;
use crate::files::sha256;

/// The frames that a camera gives: bytes `[height, width, channels]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Columns of pixels.
    pub width: usize,
    /// Rows of pixels.
    pub height: usize,
    /// 1 (grey) or 3 (red, green, blue); `None`: as many as the network takes.
    pub channels: Option<usize>,
}

impl FromStr for Frame {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Vec<Option<usize>> = text.split(['x', '×']).map(|number| number.parse().ok()).collect();
        let side = 1..=usize::from(u16::MAX);
        match numbers[..] {
            [Some(width), Some(height)] if side.contains(&width) && side.contains(&height) => {
                Ok(Self { width, height, channels: None })
            }
            [Some(width), Some(height), Some(channels @ (1 | 3))]
                if side.contains(&width) && side.contains(&height) =>
            {
                Ok(Self { width, height, channels: Some(channels) })
            }
            _ => Err(format!("`{text}` is no size of a frame, such as 640x480, 640x480x1 or 640x480x3")),
        }
    }
}

/// Both files, where they were asked for.
pub fn files(source: &Source) -> Vec<File> {
    let Some(frame) = source.onnx else { return Vec::new() };
    let metadata = metadata(source.manifest, &sha256(&weights::serialised(source.weights)));
    let layers = fold(&source.manifest.model.graph(), source.weights.clone(), source.image)
        .expect("the weights were checked when the golden answers were made");
    let of = |name: &str, bytes| (name.to_string(), bytes);
    vec![
        of("model.onnx", with_preprocessing(source, frame, &layers).finish("steadfast", &metadata)),
        of("network.onnx", alone(source, &layers).finish("steadfast", &metadata)),
    ]
}

/// What a user of the file has to know, as JSON.
fn metadata(manifest: &Manifest, weights_sha256: &str) -> Vec<(&'static str, String)> {
    let json = |value: &dyn Fn() -> serde_json::Result<String>| value().expect("plain data serialises");
    vec![
        ("schema", manifest.schema.clone()),
        ("labels", json(&|| serde_json::to_string(&manifest.labels))),
        ("good", json(&|| serde_json::to_string(&manifest.good))),
        ("decision", json(&|| serde_json::to_string(&manifest.decision))),
        ("threat_model", json(&|| serde_json::to_string(&manifest.threat_model))),
        ("input", json(&|| serde_json::to_string(&manifest.input))),
        ("weights_sha256", weights_sha256.to_string()),
    ]
}

fn alone(source: &Source, layers: &[Layer]) -> Builder {
    let mut builder = Builder::default();
    let ImageShape { channels, height, width } = source.image;
    let input = builder.input("image", FLOAT, &[channels, height, width]);
    network(&mut builder, source, layers, input);
    builder.output("logits", FLOAT, &[source.manifest.labels.len()]);
    builder
}

fn with_preprocessing(source: &Source, frame: Frame, layers: &[Layer]) -> Builder {
    let mut builder = Builder::default();
    let classes = source.manifest.labels.len();
    let channels = frame.channels.unwrap_or(source.image.channels);
    let input = builder.input("frame", UINT8, &[frame.height, frame.width, channels]);
    let input = preprocessing(&mut builder, input, (frame, channels), source.image);
    network(&mut builder, source, layers, input);
    builder.output("logits", FLOAT, &[classes]);
    builder.node("Softmax", "probabilities", &["logits"], &[("axis", Setting::One(1))]);
    builder.output("probabilities", FLOAT, &[classes]);
    let Manifest { labels, good, decision, .. } = source.manifest;
    let decision = Decision {
        good: (0..classes).filter(|&class| good.contains(&labels[class])).collect(),
        threshold: decision.as_ref().map(|decision| decision.margin),
    };
    if !decision.good.is_empty() {
        verdict(&mut builder, &decision, classes);
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
    let ratio = from as f32 / to as f32;
    let scale = ratio.max(1.0);
    let row = |i: usize| {
        let centre = (i as f32 + 0.5) * ratio;
        let first = (centre - scale).floor().max(0.0) as usize;
        let end = ((centre + scale).ceil() as usize).min(from);
        let weight = move |j: usize| match (first..end).contains(&j) {
            true => (1.0 - ((j as f32 + 0.5 - centre) / scale).abs()).max(0.0),
            false => 0.0,
        };
        let sum: f32 = (first..end).map(weight).sum();
        (0..from).map(move |j| weight(j) / sum)
    };
    (0..to).flat_map(row).collect()
}

fn transposed(values: &[f32], rows: usize) -> Vec<f32> {
    let columns = values.len() / rows;
    (0..values.len()).map(|i| values[i % rows * columns + i / rows]).collect()
}

/// The layers, from `image` to `logits`; nodes and tensors are called as PyTorch's modules.
fn network(builder: &mut Builder, source: &Source, layers: &[Layer], image: String) {
    let graph = source.manifest.model.graph();
    let mut values = vec![image];
    for (index, layer) in layers.iter().enumerate() {
        let module = match graph.nodes()[layer.node].name.as_str() {
            "" => format!("step{}", index + 1),
            name => name.to_string(),
        };
        let last = index + 1 == layers.len();
        let name =
            |operation: &str| if last { "logits".to_string() } else { format!("{module}.{operation}") };
        let mut value = operation(builder, layer, &module, &name("out"), &values[layer.input]);
        if let Some(residual) = layer.residual {
            value = builder.node("Add", &name("sum"), &[&value, &values[residual]], &[]);
        }
        if layer.relu {
            value = builder.node("Relu", &name("relu"), &[&value], &[]);
        }
        values.push(value);
    }
}

fn operation(builder: &mut Builder, layer: &Layer, module: &str, name: &str, input: &str) -> String {
    let tensor = |suffix: &str| format!("{module}.{suffix}");
    match &layer.op {
        LayerOp::Conv { conv, weights, bias } => {
            let ([.., inputs], [.., outputs], kernel) = (conv.input, conv.output, conv.kernel);
            let weights = builder.floats(&tensor("weight"), &[outputs, inputs, kernel, kernel], weights);
            let bias = builder.floats(&tensor("bias"), &[outputs], bias);
            let settings = [
                ("kernel_shape", Setting::Several(&[kernel; 2])),
                ("strides", Setting::Several(&[conv.stride; 2])),
                ("pads", Setting::Several(&[conv.padding; 4])),
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
            let outputs = bias.len();
            let weights = builder.floats(&tensor("weight"), &[weights.len() / outputs, outputs], weights);
            let bias = builder.floats(&tensor("bias"), &[outputs], bias);
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
    let count = builder.node("Cast", "broken.count", &[&either], &[("to", Setting::One(INT32.into()))]);
    let over = [("axes", Setting::Several(&[1])), ("keepdims", Setting::One(0))];
    let any = builder.node("ReduceMax", "broken.any", &[&count], &over);
    let zero = builder.constant("zero", INT32, &[], 0i32.to_le_bytes().to_vec());
    let finite = builder.node("Equal", "finite", &[&any, &zero], &[]);
    builder.node("And", "passes", &[&answer, &finite], &[]);
}
