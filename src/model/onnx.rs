//! Classifiers of other programs as ONNX: those whose operators a [`Graph`] has, such as ResNets of torchvision.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use prost::Message;
use steadfast_infer::graph::{BATCH_NORM_EPSILON, Graph, ValueId};

use super::state_dict::{StateDict, Values};
use crate::bail;
use crate::error::{At, Result};
use crate::files::{self, printable};
use crate::onnx::{FLOAT, INT64, Model, Node, Size, Tensor, ValueInfo};

/// A network that was read.
pub struct OnnxClassifier {
    /// Its operations.
    pub graph: Graph,
    /// Their tensors.
    pub weights: StateDict,
    /// Rows and columns of its images, where the file says so.
    pub size: [Option<usize>; 2],
    /// Number of classes.
    pub classes: usize,
}

/// Reads a float32 classifier of images `[batch, channels, height, width]` in [0, 1].
///
/// # Errors
/// The file is damaged, or holds an operator or a setting that a [`Graph`] does not have; it is named.
pub fn read(path: &Path) -> Result<OnnxClassifier> {
    of_bytes(&files::read(path)?, path)
}

/// Of the contents of a file; `path` is named, and files of constants are looked for beside it.
///
/// # Errors
/// As for [`read`].
pub fn of_bytes(bytes: &[u8], path: &Path) -> Result<OnnxClassifier> {
    let model = Model::decode(bytes).at("read", path)?;
    let Some(graph) = model.graph else { bail!("{}: no ONNX model", printable(path)) };
    let mut reader = Reader {
        graph: Graph::new(0),
        weights: StateDict::new(),
        values: HashMap::new(),
        names: BTreeSet::new(),
        classes: 0,
    };
    for tensor in &graph.initializer {
        reader.values.insert(tensor.name.clone(), Value::Constant(constant(tensor, path)?));
    }
    // Old files list constants among the inputs.
    let mut inputs = graph.input.iter().filter(|input| !reader.values.contains_key(&input.name));
    let (Some(input), None) = (inputs.next(), inputs.next()) else {
        bail!("{}: it should take one input, the images", printable(path));
    };
    let [channels, height, width] = image_shape(input).at("use", path)?;
    let Some(channels) = channels else {
        bail!("{}: how many channels it takes is not said", printable(path))
    };
    reader.graph = Graph::new(channels);
    reader.values.insert(input.name.clone(), Value::Features(0));
    for node in &graph.node {
        let place =
            format!("{} ({})", node.op_type, if node.name.is_empty() { "no name" } else { &node.name });
        reader
            .node(node, path)
            .map_err(|error| crate::error::Error::new(format!("{}: {place}: {error}", printable(path))))?;
    }
    let answer = graph.output.first().and_then(|output| reader.values.get(&output.name));
    if graph.output.len() != 1 || !matches!(answer, Some(Value::Logits)) {
        bail!("{}: it should give one output, the logits of a linear layer", printable(path));
    }
    let Reader { graph, weights, classes, .. } = reader;
    Ok(OnnxClassifier { graph, weights, size: [height, width], classes })
}

/// What a name stands for.
#[derive(Clone)]
enum Value {
    Constant(Constant),
    /// Features with rows and columns.
    Features(ValueId),
    /// The means of features.
    Pooled(ValueId),
    Logits,
}

#[derive(Clone)]
struct Constant {
    shape: Vec<usize>,
    is_float: bool,
    floats: Vec<f32>,
    integers: Vec<i64>,
}

struct Reader {
    graph: Graph,
    weights: StateDict,
    values: HashMap<String, Value>,
    /// Of the layers so far.
    names: BTreeSet<String>,
    classes: usize,
}

impl Reader {
    fn node(&mut self, node: &Node, path: &Path) -> Result<()> {
        if !matches!(node.domain.as_str(), "" | "ai.onnx") {
            bail!("operators of {} are not known here", node.domain);
        }
        let value = match node.op_type.as_str() {
            "Constant" => {
                let tensor = node.attribute.iter().find_map(|attribute| attribute.t.as_ref());
                let Some(tensor) = tensor else { bail!("a constant of another kind than a tensor") };
                Value::Constant(constant(tensor, path)?)
            }
            "Identity" | "Dropout" => self.value(node, 0)?.clone(),
            "Conv" => self.conv(node)?,
            "BatchNormalization" => self.batch_norm(node)?,
            "Relu" => Value::Features(self.graph.relu(self.features(node, 0)?)),
            "Add" | "Sub" | "Mul" | "Div" => self.arithmetic(node)?,
            "MaxPool" => {
                only(node, "kernel_shape", &[3, 3])?;
                only(node, "strides", &[2, 2])?;
                only(node, "pads", &[1, 1, 1, 1])?;
                default(node, "dilations", &[1, 1])?;
                if number(node, "ceil_mode", 0) != 0 {
                    bail!("ceil_mode");
                }
                Value::Features(self.graph.max_pool(self.features(node, 0)?))
            }
            "GlobalAveragePool" => Value::Pooled(self.features(node, 0)?),
            "ReduceMean" => {
                let mut axes = match node.input.get(1) {
                    Some(_) => self.integers(node, 1)?,
                    None => list(node, "axes").unwrap_or_default(),
                };
                axes.iter_mut().for_each(|axis| *axis += if *axis < 0 { 4 } else { 0 });
                if axes != [2, 3] {
                    bail!("over other axes than rows and columns");
                }
                Value::Pooled(self.features(node, 0)?)
            }
            "Flatten" | "Reshape" | "Squeeze" => match self.value(node, 0)? {
                Value::Pooled(of) => Value::Pooled(*of),
                _ => bail!("of something else than the means of features"),
            },
            "Gemm" => self.linear(node)?,
            _ => bail!(
                "this operator is not among those that can be attacked here: Conv, BatchNormalization, Relu, Add, Sub, Mul, Div, MaxPool, GlobalAveragePool, ReduceMean, Flatten, Reshape, Squeeze, Gemm, Identity, Dropout, Constant"
            ),
        };
        let Some(name) = node.output.first() else { bail!("it gives nothing") };
        self.values.insert(name.clone(), value);
        Ok(())
    }

    fn conv(&mut self, node: &Node) -> Result<Value> {
        let from = self.features(node, 0)?;
        let kernel = self.floats(node, 1)?;
        let [outputs, inputs, rows, columns] = kernel.shape[..] else {
            bail!("its weights have not four dimensions")
        };
        let (channels, groups) = (self.graph.channels(from), number(node, "group", 1));
        let depthwise = groups > 1 && groups == channels as i64 && outputs == channels && inputs == 1;
        if !depthwise && (groups != 1 || inputs != channels) {
            bail!(
                "{groups} groups for {channels} channels and {outputs} outputs; only 1 and one for each channel are known here"
            );
        }
        let stride = match list(node, "strides").as_deref() {
            None => 1,
            Some(&[rows, columns]) if rows == columns && rows > 0 => rows as usize,
            Some(other) => bail!("strides {other:?}; only equal ones are known here"),
        };
        if rows != columns || rows == 0 || outputs == 0 {
            bail!("its weights are of the shape {:?}", kernel.shape);
        }
        let padding = (rows / 2) as i64;
        default(node, "pads", &[padding; 4])?;
        if padding > 0 && list(node, "pads").is_none() {
            bail!("no padding; only half the kernel is known here");
        }
        default(node, "dilations", &[1, 1])?;
        let name = self.name(node, 1);
        let value = match depthwise {
            true => self.graph.depthwise_conv(&name, from, rows, stride),
            false => self.graph.conv(&name, from, outputs, rows, stride),
        };
        self.put(&format!("{name}.weight"), kernel.shape, kernel.floats);
        if node.input.len() < 3 {
            return Ok(Value::Features(value));
        }
        let bias = self.floats(node, 2)?.floats;
        self.affine(value, &format!("{name}.bias"), vec![1.0; outputs], bias)
    }

    fn batch_norm(&mut self, node: &Node) -> Result<Value> {
        let from = self.features(node, 0)?;
        let mut tensors = Vec::new();
        for input in 1..5 {
            tensors.push(self.floats(node, input)?.floats);
        }
        let epsilon = node.attribute.iter().find(|attribute| attribute.name == "epsilon");
        // What it adds to the variance here is fixed.
        let more = epsilon.map_or(BATCH_NORM_EPSILON, |epsilon| epsilon.f) - BATCH_NORM_EPSILON;
        tensors[3].iter_mut().for_each(|variance| *variance += more);
        let name = self.name(node, 1);
        let value = self.graph.batch_norm(&name, from);
        for (suffix, data) in ["weight", "bias", "running_mean", "running_var"].into_iter().zip(tensors) {
            if data.len() != self.graph.channels(from) {
                bail!("its tensors have not one value per channel");
            }
            self.put(&format!("{name}.{suffix}"), vec![data.len()], data);
        }
        Ok(Value::Features(value))
    }

    /// A sum of features, or a factor or an offset per channel.
    fn arithmetic(&mut self, node: &Node) -> Result<Value> {
        let (one, other) = (self.value(node, 0)?.clone(), self.value(node, 1)?.clone());
        let (from, constant, swapped) = match (one, other) {
            (Value::Features(one), Value::Features(other)) if node.op_type == "Add" => {
                return Ok(Value::Features(self.graph.add(one, other)));
            }
            (Value::Features(from), Value::Constant(constant)) if constant.is_float => {
                (from, constant, false)
            }
            (Value::Constant(constant), Value::Features(from)) if constant.is_float => (from, constant, true),
            _ => bail!("of other values than features and constants"),
        };
        let channels = self.graph.channels(from);
        let count = constant.floats.len();
        let per_channel = constant.shape.ends_with(&[channels, 1, 1]) && count == channels;
        if !(count == 1 || per_channel) {
            bail!("with a constant that has not one value per channel");
        }
        let values: Vec<f32> = (0..channels).map(|channel| constant.floats[channel % count]).collect();
        let each = |of: fn(f32) -> f32| values.iter().map(|&value| of(value)).collect::<Vec<f32>>();
        let (scale, shift) = match (node.op_type.as_str(), swapped) {
            ("Add", _) => (vec![1.0; channels], values),
            ("Sub", false) => (vec![1.0; channels], each(|value| -value)),
            ("Sub", true) => (vec![-1.0; channels], values),
            ("Mul", _) => (values, vec![0.0; channels]),
            ("Div", false) => (each(|value| 1.0 / value), vec![0.0; channels]),
            _ => bail!("a constant divided by features"),
        };
        let name = self.name(node, usize::MAX);
        self.affine(from, &name, scale, shift)
    }

    /// A factor and an offset per channel: a BatchNorm that adds up to a variance of 1.
    fn affine(&mut self, from: ValueId, name: &str, scale: Vec<f32>, shift: Vec<f32>) -> Result<Value> {
        let channels = self.graph.channels(from);
        if shift.len() != channels {
            bail!("a bias that has not one value per channel");
        }
        let value = self.graph.batch_norm(name, from);
        self.put(&format!("{name}.weight"), vec![channels], scale);
        self.put(&format!("{name}.bias"), vec![channels], shift);
        self.put(&format!("{name}.running_mean"), vec![channels], vec![0.0; channels]);
        self.put(&format!("{name}.running_var"), vec![channels], vec![1.0 - BATCH_NORM_EPSILON; channels]);
        Ok(Value::Features(value))
    }

    fn linear(&mut self, node: &Node) -> Result<Value> {
        let Value::Pooled(from) = *self.value(node, 0)? else {
            bail!("of something else than the means of features");
        };
        for name in ["alpha", "beta"] {
            if node.attribute.iter().any(|attribute| attribute.name == name && attribute.f != 1.0) {
                bail!("{name} is not 1");
            }
        }
        let Constant { shape, floats, .. } = self.floats(node, 1)?;
        let [rows, columns] = shape[..] else { bail!("its weights have not two dimensions") };
        let (outputs, inputs, weights) = match number(node, "transB", 0) {
            0 => {
                let transposed = (0..rows * columns).map(|i| floats[i % rows * columns + i / rows]).collect();
                (columns, rows, transposed)
            }
            _ => (rows, columns, floats),
        };
        if number(node, "transA", 0) != 0 || inputs != self.graph.channels(from) {
            bail!("its weights do not fit the features");
        }
        let bias = match node.input.len() {
            2 => vec![0.0; outputs],
            _ => self.floats(node, 2)?.floats,
        };
        let name = self.name(node, 1);
        self.graph.classify(&name, from, outputs);
        self.put(&format!("{name}.weight"), vec![outputs, inputs], weights);
        self.put(&format!("{name}.bias"), vec![bias.len()], bias);
        self.classes = outputs;
        Ok(Value::Logits)
    }

    fn put(&mut self, name: &str, shape: Vec<usize>, data: Vec<f32>) {
        self.weights.insert(name.to_string(), Values { shape, data });
    }

    /// The name of a layer: that of its weights, where they have one.
    fn name(&mut self, node: &Node, weights: usize) -> String {
        let given = node.input.get(weights).map_or("", |name| name.strip_suffix(".weight").unwrap_or(name));
        let mut name = if given.is_empty() { "layer".to_string() } else { given.to_string() };
        while !self.names.insert(name.clone()) {
            name += "_";
        }
        name
    }

    fn value(&self, node: &Node, input: usize) -> Result<&Value> {
        match node.input.get(input).and_then(|name| self.values.get(name)) {
            Some(value) => Ok(value),
            None => bail!("its input {} is not known", input + 1),
        }
    }

    fn features(&self, node: &Node, input: usize) -> Result<ValueId> {
        match self.value(node, input)? {
            Value::Features(value) => Ok(*value),
            _ => bail!("its input {} is no features of an image", input + 1),
        }
    }

    /// An input that is a constant of float32.
    fn floats(&self, node: &Node, input: usize) -> Result<Constant> {
        match self.value(node, input)? {
            Value::Constant(constant) if constant.is_float => Ok(constant.clone()),
            _ => bail!("its input {} is no constant of float32", input + 1),
        }
    }

    fn integers(&self, node: &Node, input: usize) -> Result<Vec<i64>> {
        match self.value(node, input)? {
            Value::Constant(constant) => Ok(constant.integers.clone()),
            _ => bail!("its input {} is no constant", input + 1),
        }
    }
}

fn number(node: &Node, name: &str, otherwise: i64) -> i64 {
    node.attribute.iter().find(|attribute| attribute.name == name).map_or(otherwise, |attribute| attribute.i)
}

fn list(node: &Node, name: &str) -> Option<Vec<i64>> {
    let found = node.attribute.iter().find(|attribute| attribute.name == name);
    found.map(|attribute| attribute.ints.clone())
}

/// Whether a setting is the one that is known.
fn only(node: &Node, name: &str, known: &[i64]) -> Result<()> {
    match list(node, name) {
        Some(given) if given == known => Ok(()),
        given => bail!("{name} {:?}; only {known:?} is known here", given.unwrap_or_default()),
    }
}

/// Whether a setting is the one that is known, or left out.
fn default(node: &Node, name: &str, known: &[i64]) -> Result<()> {
    if list(node, name).is_some() { only(node, name, known) } else { Ok(()) }
}

/// Channels, rows and columns of the images, as far as they are fixed.
fn image_shape(input: &ValueInfo) -> Result<[Option<usize>; 3]> {
    let tensor = input.r#type.as_ref().and_then(|kind| kind.tensor.as_ref());
    let Some(tensor) = tensor.filter(|tensor| tensor.elem_type == FLOAT) else {
        bail!("its input {} is not float32; of a bundle's ONNX files, take network.onnx", input.name);
    };
    let sizes = tensor.shape.iter().flat_map(|shape| &shape.dim).map(|dimension| match dimension.size {
        Some(Size::Value(size)) => usize::try_from(size).ok().filter(|&size| size > 0),
        _ => None,
    });
    match sizes.collect::<Vec<_>>()[..] {
        [_, channels, height, width] => Ok([channels, height, width]),
        _ => bail!("its input {} is no batch of images", input.name),
    }
}

fn constant(tensor: &Tensor, path: &Path) -> Result<Constant> {
    let mut shape = Vec::new();
    for &size in &tensor.dims {
        let Ok(size) = usize::try_from(size) else {
            bail!("{}: {} has a size below 0", printable(path), tensor.name)
        };
        shape.push(size);
    }
    let raw = match tensor.external_data.is_empty() {
        true => tensor.raw_data.clone(),
        false => outside(tensor, path)?,
    };
    let (mut floats, mut integers) = (tensor.float_data.clone(), tensor.int64_data.clone());
    match tensor.data_type {
        FLOAT => floats.extend(raw.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes))),
        INT64 => integers.extend(raw.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes))),
        // Something that only other operators read.
        _ => return Ok(Constant { shape, is_float: false, floats: Vec::new(), integers }),
    }
    let count = shape.iter().try_fold(1_usize, |count, &size| count.checked_mul(size));
    if count != Some(if tensor.data_type == FLOAT { floats.len() } else { integers.len() }) {
        bail!("{}: {} holds another number of values than its shape says", printable(path), tensor.name);
    }
    Ok(Constant { shape, is_float: tensor.data_type == FLOAT, floats, integers })
}

/// The values of a tensor that lie in a file beside the model's.
fn outside(tensor: &Tensor, path: &Path) -> Result<Vec<u8>> {
    let entry =
        |key: &str| tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| &entry.value);
    let location = entry("location").map(Path::new).and_then(Path::file_name).unwrap_or_default();
    let file = path.with_file_name(location);
    let bytes = files::read(&file)?;
    let number = |key: &str| entry(key).and_then(|value| value.parse::<usize>().ok());
    let start = number("offset").unwrap_or(0);
    let end = number("length").map_or(Some(bytes.len()), |length| start.checked_add(length));
    match end.and_then(|end| bytes.get(start..end)) {
        Some(bytes) => Ok(bytes.to_vec()),
        None => bail!("{}: shorter than {} says", printable(&file), printable(path)),
    }
}
