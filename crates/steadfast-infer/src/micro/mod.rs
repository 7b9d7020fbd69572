//! Inference without an operating system: a network as a table of layers over constants and one arena, both laid out
//! beforehand. Nothing is allocated, nothing is unsafe, only `core` is used. The same files, with the constants of a network
//! beside them, are what `steadfast export --format embedded` writes; `steadfast.c` there computes the same.
//!
//! Features are `[rows, columns, channels]`. Sums are added in one order and without fused multiplication, so float32 gives
//! the same bits wherever the compiler keeps to IEEE 754; int8 is integers alone.

mod decide;
pub mod float;
pub mod int8;
mod resize;

pub use decide::{argmax, margin, passes};
pub use resize::{Taps, luma, resize, resize_scratch, rounded, sum_rows};

/// Outputs that a convolution sums up together; its weights are `[outputs / LANES, kernel, kernel, inputs, LANES]`, the last
/// group filled up with zeros. `inputs` is 1 where it is depthwise.
pub const LANES: usize = 8;

/// One grey level: the float32 next to 1/255. Bytes are multiplied by it, on every device.
pub const BYTE: f32 = 0.003_921_569;

/// Rows, columns and channels.
pub type Shape = [usize; 3];

/// A part of an arena or of a list of constants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// Its first value.
    pub start: usize,
    /// How many there are.
    pub len: usize,
}

impl Span {
    /// As a range.
    pub fn range(self) -> core::ops::Range<usize> {
        self.start..self.start + self.len
    }
}

/// The shape of a convolution of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvShape {
    /// Rows, columns and channels of the input.
    pub input: Shape,
    /// Rows, columns and channels of the output.
    pub output: Shape,
    /// Rows and columns of the kernel.
    pub kernel: usize,
    /// Pixels between two positions.
    pub stride: usize,
    /// Zeros round the input.
    pub padding: usize,
    /// Whether every channel is convolved by itself.
    pub depthwise: bool,
}

impl ConvShape {
    /// How many channels of the input an output sees.
    pub fn inputs_per_output(&self) -> usize {
        if self.depthwise { 1 } else { self.input[2] }
    }
}

/// The constants of a network, by their kind.
#[derive(Debug, Clone, Copy)]
pub struct Constants<'a> {
    /// float32.
    pub floats: &'a [f32],
    /// The bits of float16.
    pub halves: &'a [u16],
    /// Quantised weights.
    pub int8: &'a [i8],
    /// Biases and multipliers of int8 layers.
    pub int32: &'a [i32],
    /// Offsets of int8 layers.
    pub int64: &'a [i64],
}

/// An operation. Those whose names end in `Int8` take int8 values `q`, which stand for `scale (q - zero)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    /// A convolution with bias.
    Conv {
        /// Its shape.
        shape: ConvShape,
        /// See [`LANES`].
        weights: Weights,
        /// `[outputs]`, float32.
        bias: Span,
    },
    /// A factor and an offset per channel.
    Affine {
        /// `[channels]`, float32.
        scale: Span,
        /// `[channels]`, float32.
        shift: Span,
    },
    /// The largest values of windows of 3×3 pixels, two apart, with a border of one pixel that counts for nothing.
    MaxPool(Shape),
    /// The mean over all pixels of every channel.
    GlobalPool {
        /// Channels.
        channels: usize,
    },
    /// A matrix product and a bias.
    Linear {
        /// `[inputs, outputs]`.
        weights: Weights,
        /// `[outputs]`, float32.
        bias: Span,
    },
    /// float32 to int8.
    Quantize {
        /// One by the scale of the result.
        inverse: f32,
        /// The zero of the result.
        zero: i32,
    },
    /// int8 to float32.
    Dequantize {
        /// The scale of the input.
        scale: f32,
        /// The zero of the input.
        zero: i32,
    },
    /// A convolution with bias. ReLU is where the zero of the result is its lowest value, -128.
    ConvInt8 {
        /// Its shape.
        shape: ConvShape,
        /// See [`LANES`].
        weights: Span,
        /// `[outputs]`, int32, of the scale of a product.
        bias: Span,
        /// From sums to the result.
        rescale: Rescale,
    },
    /// A factor, which the multipliers hold, and an offset per channel.
    AffineInt8 {
        /// `[channels]`, int64, of the scale of a multiplied value.
        shift: Span,
        /// From values to the result.
        rescale: Rescale,
    },
    /// See [`Op::MaxPool`]; scale and zero stay.
    MaxPoolInt8(Shape),
    /// The mean over all pixels, a matrix product and a bias, to float32: `scale (bias + Σ weights Σ (q - zero))`.
    ClassifyInt8 {
        /// The zero of the input.
        zero: i32,
        /// `[inputs, outputs]`.
        weights: Span,
        /// `[outputs]`, int64.
        bias: Span,
        /// `[outputs]`, float32.
        scale: Span,
    },
}

/// Where weights lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    /// In float32.
    Floats(Span),
    /// In float16.
    Halves(Span),
}

/// From an integer sum to int8: `zero + (sum multiplier + residual (r - residual_zero) + 2^(bits - 1)) >> bits`, within -128 and
/// 127: one rounding, halves upwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rescale {
    /// The zero of the input.
    pub input_zero: i32,
    /// The zero of the result.
    pub zero: i32,
    /// `[channels]`, int32.
    pub multipliers: Span,
    /// Binary places of the multipliers.
    pub bits: u32,
    /// By what the residual is multiplied.
    pub residual: i64,
    /// The zero of the residual.
    pub residual_zero: i32,
}

/// A layer of a network: an operation and what follows it. Where it lies is said in values of the arena's kind that it
/// reads and writes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Layer {
    /// The operation.
    pub op: Op,
    /// What it reads.
    pub input: Span,
    /// What it writes. It may be the place of the residual, and of the input of an affine layer, but no part of another place
    /// that it reads.
    pub output: Span,
    /// What is added to the result; of the output's kind.
    pub residual: Option<Span>,
    /// Whether negative results of float32 become zero, after the addition.
    pub relu: bool,
}

/// The memory of a network. The values of a layer are in the one or the other by its operation.
pub struct Arena<'a> {
    /// For float32 values; frames are resized here too.
    pub floats: &'a mut [f32],
    /// For int8 values.
    pub bytes: &'a mut [i8],
}

/// A network with its constants.
#[derive(Debug, Clone, Copy)]
pub struct Model<'a> {
    /// The shape of the network's input.
    pub input: Shape,
    /// Where the input lies in its arena.
    pub input_start: usize,
    /// Whether the input is int8 of scale 1/255 and zero -128, which is exact for bytes; else float32 in [0, 1].
    pub int8_input: bool,
    /// Number of classes.
    pub classes: usize,
    /// float32 values that the arena needs, without those that resizing needs.
    pub floats: usize,
    /// int8 values that the arena needs.
    pub bytes: usize,
    /// The layers in the order in which they are computed; the last gives the logits.
    pub layers: &'a [Layer],
    /// Their constants.
    pub constants: Constants<'a>,
}

/// What is wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// The frame has not `rows × columns × channels` bytes, or another number of channels than 1 or 3.
    FrameSize,
    /// The arena is smaller than [`Model::floats_for`] and [`Model::bytes`] say.
    ArenaSize,
    /// There is not one place for every logit.
    LogitCount,
    /// The self-test gave other logits than the exporting program: do not use it.
    SelfTest,
}

impl Model<'_> {
    /// float32 values that the arena needs for frames of this shape.
    pub fn floats_for(&self, frame: Shape) -> usize {
        let resizing = if same_size(frame, self.input) { 0 } else { resize_scratch(frame) };
        self.floats.max(self.resize_start(frame) + resizing)
    }

    /// Where frames of this shape are resized: before or behind the input.
    pub fn resize_start(&self, frame: Shape) -> usize {
        let before = self.int8_input || self.input_start >= resize_scratch(frame);
        if before { 0 } else { self.input_start + self.input_len() }
    }

    fn input_len(&self) -> usize {
        self.input.iter().product()
    }

    /// The logits of a frame: bytes `[rows, columns, channels]`, of 1 or 3 channels, of any size. It is resized and becomes
    /// grey or colour as docs/bundle.md has it.
    ///
    /// # Errors
    /// The frame, the arena or the logits have another size than they should.
    pub fn classify(
        &self,
        frame: &[u8],
        shape: Shape,
        arena: &mut Arena<'_>,
        logits: &mut [f32],
    ) -> Result<(), Error> {
        let [rows, columns, channels] = shape;
        let bytes = rows.checked_mul(columns).and_then(|pixels| pixels.checked_mul(channels));
        if frame.is_empty() || bytes != Some(frame.len()) || ![1, 3].contains(&channels) {
            return Err(Error::FrameSize);
        }
        if arena.floats.len() < self.floats_for(shape) || arena.bytes.len() < self.bytes {
            return Err(Error::ArenaSize);
        }
        if logits.len() != self.classes {
            return Err(Error::LogitCount);
        }
        let Self { input, input_start, .. } = *self;
        if self.int8_input {
            let bytes = &mut arena.bytes[input_start..];
            resize(frame, shape, input, arena.floats, |at, byte| bytes[at] = (i16::from(byte) - 128) as i8);
        } else {
            let start = self.resize_start(shape);
            let (before, behind) = arena.floats.split_at_mut(start.max(input_start));
            let (scratch, floats) =
                if start < input_start { (before, behind) } else { (behind, &mut before[input_start..]) };
            resize(frame, shape, input, scratch, |at, byte| floats[at] = f32::from(byte) * BYTE);
        }
        self.run(arena);
        logits.copy_from_slice(self.logits(arena));
        Ok(())
    }

    /// Computes all layers, from the input in the arena, which has to be large enough.
    pub fn run(&self, arena: &mut Arena<'_>) {
        self.layers.iter().for_each(|layer| self.step(layer, arena));
    }

    /// The logits in an arena after [`Model::run`].
    pub fn logits<'b>(&self, arena: &'b Arena<'_>) -> &'b [f32] {
        let last = self.layers.last().map_or(Span::default(), |layer| layer.output);
        &arena.floats[last.range()]
    }

    /// Computes one layer.
    pub fn step(&self, layer: &Layer, arena: &mut Arena<'_>) {
        let Layer { op, input, output, residual, relu } = *layer;
        let Constants { floats, halves, int8, int32, int64 } = self.constants;
        match op {
            Op::Conv { shape, weights, bias } => {
                let [input, output] = pair(arena.floats, input, output, residual);
                let after = float::After { bias: &floats[bias.range()], add: residual.is_some(), relu };
                match weights {
                    Weights::Floats(span) => float::conv(&shape, input, &floats[span.range()], after, output),
                    Weights::Halves(span) => float::conv(&shape, input, &halves[span.range()], after, output),
                }
            }
            Op::Affine { scale, shift } => {
                let (output, residual) = in_place(arena.floats, input, output, residual);
                float::affine(output, &floats[scale.range()], &floats[shift.range()], residual, relu);
            }
            Op::MaxPool(shape) => {
                let [input, output] = pair(arena.floats, input, output, None);
                float::max_pool(input, shape, output);
            }
            Op::GlobalPool { channels } => {
                let [input, output] = pair(arena.floats, input, output, None);
                float::global_pool(input, channels, output);
            }
            Op::Linear { weights, bias } => {
                let [input, output] = pair(arena.floats, input, output, None);
                let bias = &floats[bias.range()];
                match weights {
                    Weights::Floats(span) => float::linear(input, &floats[span.range()], bias, output),
                    Weights::Halves(span) => float::linear(input, &halves[span.range()], bias, output),
                }
            }
            Op::Quantize { inverse, zero } => {
                let (input, output) = (&arena.floats[input.range()], &mut arena.bytes[output.range()]);
                int8::quantize(input, inverse, zero, output);
            }
            Op::Dequantize { scale, zero } => {
                let (input, output) = (&arena.bytes[input.range()], &mut arena.floats[output.range()]);
                int8::dequantize(input, scale, zero, output);
            }
            Op::ConvInt8 { shape, weights, bias, rescale } => {
                let [input, output] = pair(arena.bytes, input, output, residual);
                let after = int8::After::new(int32, bias, rescale, residual.is_some());
                int8::conv(&shape, input, &int8[weights.range()], after, output);
            }
            Op::AffineInt8 { shift, rescale } => {
                let (output, residual) = in_place(arena.bytes, input, output, residual);
                let multipliers = &int32[rescale.multipliers.range()];
                int8::affine(output, multipliers, &int64[shift.range()], rescale, residual);
            }
            Op::MaxPoolInt8(shape) => {
                let [input, output] = pair(arena.bytes, input, output, None);
                int8::max_pool(input, shape, output);
            }
            Op::ClassifyInt8 { zero, weights, bias, scale } => {
                let (input, output) = (&arena.bytes[input.range()], &mut arena.floats[output.range()]);
                let bias = &int64[bias.range()];
                int8::classify(input, zero, &int8[weights.range()], bias, &floats[scale.range()], output);
            }
        }
    }
}

/// Draws a frame of this shape by rule, for self-tests.
pub fn draw_frame(frame: &mut [u8], [rows, columns, channels]: Shape) {
    for (i, byte) in frame.iter_mut().enumerate() {
        let (channel, y, x) = (i % channels, i / channels / columns, i / channels % columns);
        let (a, b) = (y * 8 / rows, x * 8 / columns);
        *byte = ((a * a * 7 + b * 29 + a * b * 13 + channel * 101) * 37 + ((x ^ y) & 15)) as u8;
    }
}

fn same_size(frame: Shape, input: Shape) -> bool {
    frame[..2] == input[..2]
}

/// What a layer reads and where it writes, where what it adds already lies.
pub fn pair<T: Copy>(arena: &mut [T], input: Span, output: Span, residual: Option<Span>) -> [&mut [T]; 2] {
    if let Some(residual) = residual.filter(|&residual| residual != output) {
        arena.copy_within(residual.range(), output.start);
    }
    // The planner keeps them apart.
    arena.get_disjoint_mut([input.range(), output.range()]).unwrap_or([&mut [], &mut []])
}

/// Where a layer changes values in their place, and what is added to them.
fn in_place<T: Copy>(
    arena: &mut [T],
    input: Span,
    output: Span,
    residual: Option<Span>,
) -> (&mut [T], Option<&[T]>) {
    if input != output {
        arena.copy_within(input.range(), output.start);
    }
    match residual {
        None => (&mut arena[output.range()], None),
        Some(residual) => match arena.get_disjoint_mut([output.range(), residual.range()]) {
            Ok([output, residual]) => (output, Some(residual)),
            // The planner keeps them apart.
            Err(_) => (&mut [], None),
        },
    }
}
