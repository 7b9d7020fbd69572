//! The library in C99.

use std::fmt::Write;

use steadfast_infer::GOLDEN_TOLERANCE;
use steadfast_infer::micro::{Constants, ConvShape, Layer, Model, Op, Rescale, Shape, Span, Weights};

use super::super::File;
use super::{Embedded, listed};
use crate::bundle::manifest::Manifest;

/// `steadfast.h` and `steadfast.c`.
pub fn files(embedded: &Embedded, manifest: &Manifest) -> Vec<File> {
    let of = |name: &str, text: String| (format!("embedded/c/{name}"), text.into_bytes());
    vec![of("steadfast.h", header(embedded)), of("steadfast.c", source(embedded, manifest))]
}

fn header(embedded: &Embedded) -> String {
    let (model, [rows, columns, channels]) = (embedded.compiled.model(), embedded.frame);
    include_str!("steadfast.h.in")
        .replace(
            "@frame@",
            &format!(
                "#define STEADFAST_FRAME_ROWS {rows}\n#define STEADFAST_FRAME_COLUMNS {columns}\n#define STEADFAST_FRAME_CHANNELS {channels}"
            ),
        )
        .replace(
            "@arena@",
            &format!("#define STEADFAST_ARENA_BYTES {}", 4 * embedded.floats() + model.bytes),
        )
        .replace("@classes@", &format!("#define STEADFAST_CLASSES {}", model.classes))
}

const TYPES: &str = "typedef struct {
    float *floats;
    int8_t *bytes;
} arena;

typedef struct {
    size_t start, len;
} span;

typedef struct {
    size_t height, width, inputs, rows, columns, outputs, kernel, stride, padding;
    size_t inputs_per_output;
} conv_shape;

enum operation {
    CONV,
    AFFINE,
    MAX_POOL,
    GLOBAL_POOL,
    LINEAR,
    QUANTIZE,
    DEQUANTIZE,
    CONV_INT8,
    AFFINE_INT8,
    MAX_POOL_INT8,
    CLASSIFY_INT8
};

/* Spans are parts of the arena; weights, bias, multipliers and scale are where they begin among the constants. A residual of
 * length 0 is none. */
typedef struct {
    enum operation op;
    span input, output, residual;
    int relu;
    conv_shape shape;
    size_t channels, weights, bias, multipliers, scale;
    float factor;
    int32_t input_zero, zero, residual_zero;
    int64_t residual_multiplier;
    int bits;
} table_layer;
";

fn source(embedded: &Embedded, manifest: &Manifest) -> String {
    let Embedded { compiled, golden, frame_logits, .. } = embedded;
    let (labels, decision) = (&manifest.labels, manifest.quantized_decision());
    let Model {
        input: [rows, columns, channels], input_start, int8_input, classes, layers, constants, ..
    } = compiled.model();
    let Constants { floats, halves, int8, int32, int64 } = constants;
    let mut text = String::from(
        "/* A robust network: written by steadfast export, not to be changed. See steadfast.h. */\n\n#include \"steadfast.h\"\n\n#include <math.h>\n#include <string.h>\n\n",
    );
    let is = |wanted: fn(&Op) -> bool| u8::from(layers.iter().any(|layer| wanted(&layer.op)));
    let uses_int8 = is(is_int8);
    let uses_half = u8::from(!halves.is_empty());
    let uses_float = is(|op| !is_int8(op));
    let mut line = |arguments: std::fmt::Arguments| {
        // Writing to a string does not fail.
        let _ = text.write_fmt(arguments);
        text.push('\n');
    };
    for (name, value) in [
        ("INPUT_ROWS", rows),
        ("INPUT_COLUMNS", columns),
        ("INPUT_CHANNELS", channels),
        ("INT8_INPUT", usize::from(int8_input)),
        ("USES_FLOAT", uses_float.into()),
        ("USES_HALF", uses_half.into()),
        ("USES_INT8", uses_int8.into()),
        ("USES_DEPTHWISE", is(is_depthwise).into()),
        ("FLOATS", embedded.floats()),
        ("INPUT_START", input_start),
        ("RESIZE_START", compiled.model().resize_start(embedded.frame)),
        ("HAS_GOOD", usize::from(!decision.good.is_empty())),
        ("HAS_THRESHOLD", usize::from(decision.threshold.is_some())),
    ] {
        line(format_args!("#define {name} {value}"));
    }
    line(format_args!("#define THRESHOLD {}", float(decision.threshold.unwrap_or(0.0))));
    line(format_args!("#define GOLDEN_TOLERANCE {}\n", float(GOLDEN_TOLERANCE)));
    line(format_args!("{TYPES}"));
    let names: Vec<String> = labels.iter().map(|label| quoted(label)).collect();
    line(format_args!("const char *const steadfast_labels[STEADFAST_CLASSES] = {{{}}};\n", names.join(", ")));
    let good: Vec<&str> =
        (0..classes).map(|class| if decision.good.contains(&class) { "1" } else { "0" }).collect();
    line(format_args!("static const uint8_t is_good[STEADFAST_CLASSES] = {{{}}};\n", good.join(", ")));
    let [inputs, logits]: [Vec<String>; 2] = [
        golden
            .iter()
            .map(|(input, _)| format!("{{\n{}\n}}", listed(input, |byte| byte.to_string())))
            .collect(),
        golden.iter().map(|(_, logits)| format!("{{{}}}", floats_in_a_row(logits))).collect(),
    ];
    let (count, len) = (golden.len(), rows * columns * channels);
    line(format_args!("static const uint8_t golden_inputs[{count}][{len}] = {{{}}};\n", inputs.join(", ")));
    line(format_args!(
        "static const float golden_logits[{count}][STEADFAST_CLASSES] = {{\n    {},\n}};\n",
        logits.join(",\n    ")
    ));
    line(format_args!(
        "static const float frame_logits[STEADFAST_CLASSES] = {{{}}};\n",
        floats_in_a_row(frame_logits)
    ));
    let mut list = |name: &str, kind: &str, values: String| {
        if !values.is_empty() {
            line(format_args!("static const {kind} {name}[] = {{\n{values}\n}};\n"));
        }
    };
    list("floats", "float", listed(floats, |&value| float(value)));
    list("halves", "uint16_t", listed(halves, |value| value.to_string()));
    list("int8s", "int8_t", listed(int8, |value| value.to_string()));
    list("int32s", "int32_t", listed(int32, |value| value.to_string()));
    list("int64s", "int64_t", listed(int64, |value| format!("{value}LL")));
    line(format_args!("static const table_layer layers[] = {{"));
    for layer in layers {
        line(format_args!("    {{{}}},", fields(layer).join(", ")));
    }
    line(format_args!("}};\n"));
    text + include_str!("runtime.c")
}

fn is_int8(op: &Op) -> bool {
    matches!(op, Op::ConvInt8 { .. } | Op::AffineInt8 { .. } | Op::MaxPoolInt8(_) | Op::ClassifyInt8 { .. })
}

fn is_depthwise(op: &Op) -> bool {
    matches!(op, Op::Conv { shape, .. } | Op::ConvInt8 { shape, .. } if shape.depthwise)
}

/// The fields of a layer that are not zero.
fn fields(layer: &Layer) -> Vec<String> {
    let Layer { op, input, output, residual, relu } = layer;
    let span = |name: &str, Span { start, len }: &Span| format!(".{name} = {{{start}, {len}}}");
    let mut fields = vec![span("input", input), span("output", output)];
    fields.extend(residual.iter().map(|residual| span("residual", residual)));
    fields.extend(relu.then(|| ".relu = 1".to_string()));
    let name = match op {
        Op::Conv { shape, weights, bias } => {
            fields.extend([conv(shape), start("weights", weights_span(weights)), start("bias", bias)]);
            "CONV"
        }
        Op::Affine { scale, shift } => {
            fields.extend([count("channels", scale.len), start("weights", scale), start("bias", shift)]);
            "AFFINE"
        }
        Op::MaxPool(shape) => {
            fields.push(pool(shape));
            "MAX_POOL"
        }
        Op::GlobalPool { channels } => {
            fields.push(count("channels", *channels));
            "GLOBAL_POOL"
        }
        Op::Linear { weights, bias } => {
            fields.extend([start("weights", weights_span(weights)), start("bias", bias)]);
            "LINEAR"
        }
        Op::Quantize { inverse, zero } => {
            fields.extend([format!(".factor = {}", float(*inverse)), format!(".zero = {zero}")]);
            "QUANTIZE"
        }
        Op::Dequantize { scale, zero } => {
            fields.extend([format!(".factor = {}", float(*scale)), format!(".input_zero = {zero}")]);
            "DEQUANTIZE"
        }
        Op::ConvInt8 { shape, weights, bias, rescale } => {
            fields.extend([conv(shape), start("weights", weights), start("bias", bias)]);
            fields.extend(rescaling(rescale));
            "CONV_INT8"
        }
        Op::AffineInt8 { shift, rescale } => {
            fields.extend([count("channels", shift.len), start("bias", shift)]);
            fields.extend(rescaling(rescale));
            "AFFINE_INT8"
        }
        Op::MaxPoolInt8(shape) => {
            fields.push(pool(shape));
            "MAX_POOL_INT8"
        }
        Op::ClassifyInt8 { zero, weights, bias, scale } => {
            fields.push(count("channels", weights.len / bias.len));
            fields.extend([start("weights", weights), start("bias", bias), start("scale", scale)]);
            fields.push(format!(".input_zero = {zero}"));
            "CLASSIFY_INT8"
        }
    };
    fields.insert(0, format!(".op = {name}"));
    fields
}

fn weights_span(weights: &Weights) -> &Span {
    match weights {
        Weights::Floats(span) | Weights::Halves(span) => span,
    }
}

fn start(name: &str, span: &Span) -> String {
    count(name, span.start)
}

fn count(name: &str, count: usize) -> String {
    format!(".{name} = {count}")
}

fn conv(shape: &ConvShape) -> String {
    let ConvShape {
        input: [height, width, inputs],
        output: [rows, columns, outputs],
        kernel,
        stride,
        padding,
        ..
    } = shape;
    let inputs_per_output = shape.inputs_per_output();
    format!(
        ".shape = {{{height}, {width}, {inputs}, {rows}, {columns}, {outputs}, {kernel}, {stride}, {padding}, {inputs_per_output}}}"
    )
}

fn pool([height, width, channels]: &Shape) -> String {
    format!(".shape = {{.height = {height}, .width = {width}, .inputs = {channels}}}")
}

fn rescaling(rescale: &Rescale) -> [String; 6] {
    let Rescale { input_zero, zero, multipliers, bits, residual, residual_zero } = rescale;
    [
        start("multipliers", multipliers),
        format!(".bits = {bits}"),
        format!(".input_zero = {input_zero}"),
        format!(".zero = {zero}"),
        format!(".residual_multiplier = {residual}LL"),
        format!(".residual_zero = {residual_zero}"),
    ]
}

/// The shortest decimal number that is read back as the same float32.
fn float(value: f32) -> String {
    format!("{value:?}f")
}

fn floats_in_a_row(values: &[f32]) -> String {
    values.iter().map(|&value| float(value)).collect::<Vec<_>>().join(", ")
}

/// A string literal: what is not plain ASCII is written byte by byte, and no trigraph arises.
fn quoted(label: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b' ' | b'_' | b'-' | b'.' => char::from(byte).to_string(),
        _ => format!("\\{byte:03o}"),
    };
    format!("\"{}\"", label.bytes().map(byte).collect::<String>())
}
