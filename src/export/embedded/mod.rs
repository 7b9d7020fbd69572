//! `embedded/rust`, a crate without `std`, and `embedded/c`, a library in C99: a network with its constants, preprocessing,
//! decision and self-test, for machines without an operating system.

mod c;
mod rust;

use steadfast_infer::compile::{Compiled, Precision};
use steadfast_infer::fold::{Layer, LayerOp};
use steadfast_infer::micro::{Arena, Constants, Model, Shape, draw_frame};
use steadfast_infer::{GOLDEN_COUNT, ImageShape};

use super::{File, Frame, Source};
use crate::bail;
use crate::error::Result;

/// Bytes of golden inputs that are written along; two at least.
const GOLDEN_BYTES: usize = 16 * 1024;
/// What the code takes beside the constants: rounded up from what GCC 12 made of it for a Cortex-M4F at -O2.
const CODE_BYTES: usize = 4 * 1024;
/// What a layer takes in the table.
const LAYER_BYTES: usize = 128;

/// A processor that the time of an image is estimated for.
struct Core {
    /// Its name and clock.
    name: &'static str,
    megahertz: f64,
    /// Instructions for a multiply-accumulate, and for a value that a layer gives, in int8, in float32 and with float16 weights:
    /// fitted to what was counted in emulation of a network of large and one of small layers, see docs/deployment.md.
    instructions: [[f64; 2]; 3],
    /// Cycles that an instruction takes on average: assumed.
    cycles: f64,
}

const CORTEX_M: [[f64; 2]; 3] = [[2.25, 119.0], [3.0, 68.0], [4.8, 68.0]];
const CORTEX_A: [[f64; 2]; 3] = [[2.61, 59.0], [0.96, 32.0], [1.07, 32.0]];

const CORES: [Core; 3] = [
    Core { name: "Cortex-M4F at 168 MHz", megahertz: 168.0, instructions: CORTEX_M, cycles: 1.5 },
    Core { name: "Cortex-M7 at 480 MHz", megahertz: 480.0, instructions: CORTEX_M, cycles: 0.8 },
    Core { name: "Cortex-A53 at 1.2 GHz", megahertz: 1200.0, instructions: CORTEX_A, cycles: 0.8 },
];

/// Bytes `[rows, columns, channels]` and their logits.
type GoldenInput = (Vec<u8>, Vec<f32>);

/// A network for machines without an operating system.
pub struct Embedded {
    compiled: Compiled,
    /// Rows, columns and channels of a frame.
    frame: Shape,
    golden: Vec<GoldenInput>,
    /// The logits of the frame that is drawn by rule.
    frame_logits: Vec<f32>,
    /// What it needs.
    pub cost: Cost,
}

/// What a network needs on a machine without an operating system.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Bytes of memory for its values, without the frame.
    pub arena: usize,
    /// Bytes of constants and, roughly, of code.
    pub flash: usize,
    /// Multiplications with a weight, for one image.
    pub multiply_accumulates: usize,
    /// Values that its layers give, for one image.
    values: usize,
    /// In what most of them are computed: the place among [`Core::instructions`].
    precision: usize,
}

/// What a network may need at most, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Of memory.
    pub arena: Option<usize>,
    /// Of flash.
    pub flash: Option<usize>,
}

/// Both packages.
pub fn files(source: &Source) -> Vec<File> {
    let Some(embedded) = source.embedded else { return Vec::new() };
    let mut files = rust::files(embedded, source.manifest);
    files.extend(c::files(embedded, source.manifest));
    files
}

impl Embedded {
    /// Of folded layers in a precision, for images of a shape and frames of a size, with these golden inputs.
    pub fn new(
        layers: &[Layer],
        precision: &Precision,
        shape: ImageShape,
        golden: &[f32],
        frame: Frame,
    ) -> Self {
        let compiled = Compiled::new(layers, shape, precision);
        let model = compiled.model();
        let count = (GOLDEN_BYTES / shape.len()).clamp(2, GOLDEN_COUNT);
        let pixels = shape.channels_last(golden);
        let golden = pixels.chunks_exact(shape.len()).take(count).map(|pixels| {
            let bytes: Vec<u8> = pixels.iter().map(|value| (value * 255.0).round() as u8).collect();
            let logits = logits(&model, &bytes, model.input);
            (bytes, logits)
        });
        let golden: Vec<GoldenInput> = golden.collect();
        let frame = [frame.height, frame.width, frame.channels.unwrap_or(shape.channels)];
        let mut drawn = vec![0; frame.iter().product()];
        draw_frame(&mut drawn, frame);
        let frame_logits = logits(&model, &drawn, frame);
        let cost = Cost::new(&compiled, frame, layers, &golden);
        Self { frame, golden, frame_logits, cost, compiled }
    }

    /// float32 values of the arena.
    fn floats(&self) -> usize {
        self.compiled.model().floats_for(self.frame)
    }
}

impl Cost {
    fn new(compiled: &Compiled, frame: Shape, layers: &[Layer], golden: &[GoldenInput]) -> Self {
        let model = compiled.model();
        let Constants { floats, halves, int8, int32, int64 } = model.constants;
        let constants = 4 * floats.len() + 2 * halves.len() + int8.len() + 4 * int32.len() + 8 * int64.len();
        let golden = golden.len() * (model.input.iter().product::<usize>() + 4 * model.classes);
        let products = |layer: &Layer| match &layer.op {
            LayerOp::Conv { conv, weights, .. } => weights.len() * conv.output[0] * conv.output[1],
            LayerOp::Linear { weights, .. } => weights.len(),
            _ => 0,
        };
        Self {
            arena: 4 * model.floats_for(frame) + model.bytes,
            flash: constants + golden + model.layers.len() * LAYER_BYTES + CODE_BYTES,
            multiply_accumulates: layers.iter().map(products).sum(),
            values: layers.iter().map(|layer| layer.shape.iter().product::<usize>()).sum(),
            precision: match (int8.len() > floats.len(), halves.is_empty()) {
                (true, _) => 0,
                (false, true) => 1,
                (false, false) => 2,
            },
        }
    }

    /// How long an image takes, by processor, in milliseconds: instructions that were counted in emulation at a number of cycles
    /// that is assumed.
    pub fn milliseconds(&self) -> impl Iterator<Item = (&'static str, f64)> {
        CORES.iter().map(|core| {
            let [product, value] = core.instructions[self.precision];
            let instructions = product * self.multiply_accumulates as f64 + value * self.values as f64;
            (core.name, instructions * core.cycles / core.megahertz / 1000.0)
        })
    }

    /// Whether it is within some limits.
    ///
    /// # Errors
    /// It is not; what could be done is said.
    pub fn check(&self, limits: &Limits) -> Result<()> {
        let advice =
            "try --quantize int8, a smaller --image-size, a smaller --width or another --arch in training";
        for (flag, limit, needed) in
            [("--arena-limit", limits.arena, self.arena), ("--flash-limit", limits.flash, self.flash)]
        {
            if let Some(limit) = limit.filter(|&limit| needed > limit) {
                bail!("{flag} {limit}: the network needs {needed} bytes; {advice}");
            }
        }
        Ok(())
    }
}

fn logits(model: &Model<'_>, bytes: &[u8], shape: Shape) -> Vec<f32> {
    let mut floats = vec![0.0; model.floats_for(shape)];
    let mut int8 = vec![0; model.bytes];
    let mut logits = vec![0.0; model.classes];
    let mut arena = Arena { floats: &mut floats, bytes: &mut int8 };
    model.classify(bytes, shape, &mut arena, &mut logits).expect("everything has its size");
    logits
}

/// Numbers as source text, some in a line.
fn listed<T>(values: &[T], text: impl Fn(&T) -> String) -> String {
    let lines: Vec<String> = values
        .chunks(16)
        .map(|line| format!("    {},", line.iter().map(&text).collect::<Vec<_>>().join(", ")))
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use steadfast_infer::compile::Quantization;
    use steadfast_infer::fold::fold;

    use super::*;
    use crate::bundle::manifest::Manifest;
    use crate::data::synthetic;
    use crate::device::Device;
    use crate::model::state_dict::state_dict;
    use crate::model::{Classifier, ModelConfig, Stem};
    use crate::random::Key;

    /// In every precision, and in a mixture, C computes the bits that Rust does: every operation, with frames that are resized
    /// and become colour.
    #[test]
    fn c_gives_the_bits_of_rust_in_every_precision() {
        if Command::new("gcc").arg("--version").output().is_err() {
            eprintln!("not tried, for want of gcc");
            return;
        }
        let text = std::fs::read_to_string("exports/reference/manifest.json").unwrap();
        let manifest: Manifest = serde_json::from_str(&text).unwrap();
        for arch in ["preact-resnet18", "micro-cnn"] {
            c_gives_the_bits_of_rust(arch, &manifest);
        }
    }

    fn c_gives_the_bits_of_rust(arch: &str, manifest: &Manifest) {
        let config = ModelConfig {
            arch: arch.parse().unwrap(),
            width: 3,
            channels: 3,
            classes: 4,
            stem: Stem::Imagenet,
            normalize: true,
        };
        let shape = ImageShape { channels: 3, height: 37, width: 26 };
        let model = Classifier::new(&config, Key::new(5), &Device::cpu().burn);
        let layers = fold(&config.graph(), state_dict(&model), shape).unwrap();
        let drawn = synthetic::images(Key::new(6), 40, 24);
        let frames: Vec<u8> = (0..24).flat_map(|index| drawn.image(index).to_vec()).collect();
        let golden: Vec<f32> = frames
            .iter()
            .take(16 * shape.len())
            .map(|&byte| steadfast_infer::BYTE * f32::from(byte))
            .collect();
        let mut ranges = vec![[0.0_f32; 2]; layers.len() + 1];
        Compiled::new(&layers, shape, &Precision::Float).observe(&golden, |value, numbers| {
            for number in numbers {
                ranges[value] = [ranges[value][0].min(*number), ranges[value][1].max(*number)];
            }
        });
        let int8 = |float: fn(usize) -> bool| {
            let float = (0..layers.len()).map(float).collect();
            Precision::Int8(Quantization { ranges: ranges.clone(), float })
        };
        for precision in [Precision::Float, Precision::Half, int8(|_| false), int8(|layer| layer % 3 == 1)] {
            let frame = Frame { width: 40, height: 40, channels: Some(1) };
            let embedded = Embedded::new(&layers, &precision, shape, &golden, frame);
            let folder = tempfile::tempdir().unwrap();
            for (name, bytes) in c::files(&embedded, manifest) {
                std::fs::write(folder.path().join(name.rsplit('/').next().unwrap()), bytes).unwrap();
            }
            std::fs::write(folder.path().join("frames.bin"), &frames).unwrap();
            let example = std::path::absolute("examples/embedded/main.c").unwrap();
            let mut gcc = Command::new("gcc");
            gcc.args(["-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]);
            gcc.args(["-fno-sanitize-recover", "-I.", "steadfast.c", "-lm", "-o", "program"]).arg(example);
            let output = gcc.current_dir(folder.path()).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let output = Command::new("./program").current_dir(folder.path()).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
            let lines: Vec<&str> = said.lines().skip(1).collect();
            assert_eq!(lines.len(), 24, "{said}");
            for (frame, line) in frames.chunks(40 * 40).zip(lines) {
                let seen: Vec<f32> = line.split(' ').skip(2).map(|word| word.parse().unwrap()).collect();
                assert_eq!(seen, logits(&embedded.compiled.model(), frame, [40, 40, 1]), "{precision:?}");
            }
        }
    }
}
