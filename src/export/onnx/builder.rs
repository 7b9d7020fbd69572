//! An ONNX graph as it is written, node by node.

use prost::Message;
use steadfast_infer::to_bytes;

use crate::onnx::{
    Attribute, BOOL, Dimension, Entry, FLOAT, Graph, INT8, INT32, INT64, Model, Node, OperatorSet, Shape,
    Size, Tensor, TensorType, Type, ValueInfo,
};

/// The oldest version that has every operator here, and newer files are refused in the field.
const OPERATORS: i64 = 13;
const FORMAT: i64 = 8;
/// What batches are called whose size is free.
const BATCH: &str = "batch";

/// A graph in the making. Values are known by their names.
#[derive(Default)]
pub struct Builder {
    graph: Graph,
}

/// A setting of an operator.
pub enum Setting<'a> {
    /// One number.
    One(i64),
    /// Several.
    Several(&'a [usize]),
}

impl Builder {
    /// What goes in: a batch of this type and shape.
    pub fn input(&mut self, name: &str, kind: i32, shape: &[usize]) -> String {
        self.graph.input.push(value(name, kind, shape));
        name.to_string()
    }

    /// What comes out: a value of this name.
    pub fn output(&mut self, name: &str, kind: i32, shape: &[usize]) {
        self.graph.output.push(value(name, kind, shape));
    }

    /// A constant.
    pub fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) -> String {
        self.constant(name, FLOAT, shape, to_bytes(values))
    }

    /// A list of indices.
    pub fn indices(&mut self, name: &str, values: &[usize]) -> String {
        let bytes = values.iter().flat_map(|&value| (value as i64).to_le_bytes()).collect();
        self.constant(name, INT64, &[values.len()], bytes)
    }

    /// Integers of 8 bits.
    pub fn int8(&mut self, name: &str, shape: &[usize], values: &[i8]) -> String {
        self.constant(name, INT8, shape, values.iter().map(|value| value.to_le_bytes()[0]).collect())
    }

    /// Integers of 32 bits.
    pub fn int32(&mut self, name: &str, shape: &[usize], values: &[i32]) -> String {
        self.constant(name, INT32, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// A list of yes and no.
    pub fn flags(&mut self, name: &str, values: impl Iterator<Item = bool>) -> String {
        let bytes: Vec<u8> = values.map(u8::from).collect();
        self.constant(name, BOOL, &[bytes.len()], bytes)
    }

    /// A constant of any type, from its bytes.
    pub fn constant(&mut self, name: &str, data_type: i32, shape: &[usize], raw_data: Vec<u8>) -> String {
        let dims = shape.iter().map(|&size| size as i64).collect();
        self.graph.initializer.push(Tensor {
            dims,
            data_type,
            name: name.to_string(),
            raw_data,
            ..Tensor::default()
        });
        name.to_string()
    }

    /// An operation; its value has the name of the node.
    pub fn node(
        &mut self,
        operator: &str,
        name: &str,
        from: &[&str],
        settings: &[(&str, Setting)],
    ) -> String {
        let attribute = |(name, setting): &(&str, Setting)| match setting {
            Setting::One(i) => Attribute { name: name.to_string(), i: *i, kind: 2, ..Attribute::default() },
            Setting::Several(sizes) => {
                let ints = sizes.iter().map(|&size| size as i64).collect();
                Attribute { name: name.to_string(), ints, kind: 7, ..Attribute::default() }
            }
        };
        self.graph.node.push(Node {
            input: from.iter().map(|name| name.to_string()).collect(),
            output: vec![name.to_string()],
            name: name.to_string(),
            op_type: operator.to_string(),
            attribute: settings.iter().map(attribute).collect(),
            domain: String::new(),
        });
        name.to_string()
    }

    /// The file.
    pub fn finish(mut self, name: &str, metadata: &[(&str, String)]) -> Vec<u8> {
        self.graph.name = name.to_string();
        let entry = |(key, value): &(&str, String)| Entry { key: key.to_string(), value: value.clone() };
        let model = Model {
            ir_version: FORMAT,
            producer_name: "steadfast".to_string(),
            producer_version: env!("CARGO_PKG_VERSION").to_string(),
            graph: Some(self.graph),
            opset_import: vec![OperatorSet { version: OPERATORS }],
            metadata_props: metadata.iter().map(entry).collect(),
        };
        model.encode_to_vec()
    }
}

/// A batch of a free number of values of this shape.
fn value(name: &str, elem_type: i32, shape: &[usize]) -> ValueInfo {
    let sizes = shape.iter().map(|&size| Size::Value(size as i64));
    let sizes = std::iter::once(Size::Name(BATCH.to_string())).chain(sizes);
    let shape = Shape { dim: sizes.map(|size| Dimension { size: Some(size) }).collect() };
    let tensor = TensorType { elem_type, shape: Some(shape) };
    ValueInfo { name: name.to_string(), r#type: Some(Type { tensor: Some(tensor) }) }
}
