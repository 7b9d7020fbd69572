//! The crate.

use std::fmt::Write;

use steadfast_infer::GOLDEN_TOLERANCE;
use steadfast_infer::compile::SOURCES;
use steadfast_infer::micro::{Constants, Model, Op};

use super::super::File;
use super::{Embedded, listed};
use crate::bundle::manifest::Manifest;

/// The files of the crate.
pub fn files(embedded: &Embedded, manifest: &Manifest) -> Vec<File> {
    let of = |name: &str, text: &str| (format!("embedded/rust/{name}"), text.as_bytes().to_vec());
    let mut files = vec![
        of("Cargo.toml", include_str!("Cargo.toml.in")),
        of("src/lib.rs", include_str!("lib.rs.in")),
        of("src/model.rs", &model(embedded, manifest)),
    ];
    files.extend(SOURCES.iter().map(|(name, text)| of(&format!("src/micro/{name}"), text)));
    files
}

/// `model.rs`: the constants.
fn model(embedded: &Embedded, manifest: &Manifest) -> String {
    let Embedded { compiled, frame, golden, frame_logits, .. } = embedded;
    let (labels, decision) = (&manifest.labels, manifest.quantized_decision());
    let Model { input, input_start, int8_input, classes, floats, bytes, layers, constants } =
        compiled.model();
    let Constants { floats: constants, halves, int8, int32, int64 } = constants;
    let mut text = String::from("// The network: written by steadfast export, not to be changed.\n\n");
    let mut line = |arguments: std::fmt::Arguments| {
        // Writing to a string does not fail.
        let _ = text.write_fmt(arguments);
        text.push('\n');
    };
    line(format_args!("use crate::micro::Op::*;"));
    if layers.iter().any(|layer| matches!(layer.op, Op::Conv { .. } | Op::Linear { .. })) {
        line(format_args!("use crate::micro::Weights::*;"));
    }
    line(format_args!("use crate::micro::*;\n"));
    line(format_args!("/// Number of classes.\npub const CLASSES: usize = {classes};"));
    line(format_args!(
        "/// Their names, in the order of the logits.\npub const LABELS: [&str; CLASSES] = {labels:?};"
    ));
    line(format_args!("/// Rows, columns and channels of a frame.\npub const FRAME: Shape = {frame:?};"));
    line(format_args!("pub const FLOATS: usize = {};", embedded.floats()));
    line(format_args!("pub const BYTES: usize = {bytes};"));
    line(format_args!("pub const GOOD: [usize; {}] = {:?};", decision.good.len(), decision.good));
    line(format_args!("pub const THRESHOLD: Option<f32> = {:?};", decision.threshold));
    line(format_args!("pub const GOLDEN_TOLERANCE: f32 = {GOLDEN_TOLERANCE:?};"));
    let [inputs, logits]: [Vec<String>; 2] = [
        golden.iter().map(|(input, _)| format!("{input:?}")).collect(),
        golden.iter().map(|(_, logits)| format!("{logits:?}")).collect(),
    ];
    let len = input.iter().product::<usize>();
    line(format_args!(
        "pub static GOLDEN_INPUTS: [[u8; {len}]; {}] = [{}];",
        golden.len(),
        inputs.join(",\n")
    ));
    line(format_args!(
        "pub static GOLDEN_LOGITS: [[f32; CLASSES]; {}] = [{}];",
        golden.len(),
        logits.join(",\n")
    ));
    line(format_args!("pub static FRAME_LOGITS: [f32; CLASSES] = {frame_logits:?};"));
    line(format_args!("static LAYERS: [Layer; {}] = [", layers.len()));
    for layer in layers {
        line(format_args!("    {layer:?},"));
    }
    line(format_args!("];"));
    let mut list = |name: &str, kind: &str, len: usize, values: String| {
        line(format_args!("static {name}: [{kind}; {len}] = [\n{values}\n];"));
    };
    list("CONSTANT_FLOATS", "f32", constants.len(), listed(constants, |value| format!("{value:?}")));
    list("CONSTANT_HALVES", "u16", halves.len(), listed(halves, |value| format!("{value}")));
    list("CONSTANT_INT8", "i8", int8.len(), listed(int8, |value| format!("{value}")));
    list("CONSTANT_INT32", "i32", int32.len(), listed(int32, |value| format!("{value}")));
    list("CONSTANT_INT64", "i64", int64.len(), listed(int64, |value| format!("{value}")));
    line(format_args!(
        "pub static MODEL: Model<'static> = Model {{
    input: {input:?},
    input_start: {input_start},
    int8_input: {int8_input},
    classes: CLASSES,
    floats: {floats},
    bytes: BYTES,
    layers: &LAYERS,
    constants: Constants {{
        floats: &CONSTANT_FLOATS,
        halves: &CONSTANT_HALVES,
        int8: &CONSTANT_INT8,
        int32: &CONSTANT_INT32,
        int64: &CONSTANT_INT64,
    }},
}};"
    ));
    text
}
