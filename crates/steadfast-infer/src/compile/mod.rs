//! From folded layers to what runs without an operating system: constants in the order in which the kernels read them, and
//! a place in one arena for every value.

mod plan;
mod quantization;

use alloc::vec;
use alloc::vec::Vec;

use crate::fold::{Layer, LayerOp};
use crate::input::ImageShape;
use crate::math;
use crate::micro::{self, Arena, BYTE, Constants, ConvShape, LANES, Model, Op, Rescale, Span, Weights};
use crate::network::Outputs;

use plan::{Draft, Kind, Value, plan};
pub use quantization::{Quantization, QuantizedWeights, Scale};

/// The files of [`micro`], as they are written beside the constants of a network.
pub const SOURCES: [(&str, &str); 5] = [
    ("mod.rs", include_str!("../micro/mod.rs")),
    ("decide.rs", include_str!("../micro/decide.rs")),
    ("float.rs", include_str!("../micro/float.rs")),
    ("int8.rs", include_str!("../micro/int8.rs")),
    ("resize.rs", include_str!("../micro/resize.rs")),
];

/// How a network is computed.
#[derive(Debug, Clone)]
pub enum Precision {
    /// In float32.
    Float,
    /// In float32, with the weights of convolutions and of the last layer kept in float16.
    Half,
    /// In int8.
    Int8(Quantization),
}

/// A network in a [`Precision`], with a plan of its memory.
#[derive(Debug, Default)]
pub struct Compiled {
    input: [usize; 3],
    input_start: usize,
    int8_input: bool,
    classes: usize,
    floats: usize,
    bytes: usize,
    layers: Vec<micro::Layer>,
    /// Of every layer: the one that was folded, whose result it gives.
    sources: Vec<Option<usize>>,
    constants: Pools,
    #[cfg(feature = "simd")]
    integers: crate::vector::Integers,
}

#[derive(Debug, Clone, Default)]
struct Pools {
    floats: Vec<f32>,
    halves: Vec<u16>,
    int8: Vec<i8>,
    int32: Vec<i32>,
    int64: Vec<i64>,
}

impl Compiled {
    /// Layers in a precision, for images of one shape.
    pub fn new(layers: &[Layer], input: ImageShape, precision: &Precision) -> Self {
        let shape = [input.height, input.width, input.channels];
        let mut compiler = Compiler {
            layers,
            precision,
            pools: Pools::default(),
            values: Vec::new(),
            drafts: Vec::new(),
            scales: match precision {
                Precision::Int8(quantization) => quantization.scales(layers),
                _ => Vec::new(),
            },
            places: Vec::new(),
        };
        let int8_input = (0..layers.len()).any(|index| compiler.is_int8(index));
        compiler.place(0, input.len(), if int8_input { Kind::Int8 } else { Kind::Float });
        for index in 0..layers.len() {
            compiler.layer(index);
        }
        let Compiler { pools, values, drafts, .. } = compiler;
        let (spans, [floats, bytes]) = plan(&values, &drafts);
        let placed = |(index, draft): (usize, &Draft)| micro::Layer {
            op: draft.op,
            input: spans[draft.input],
            output: spans[index + 1],
            residual: draft.residual.map(|value| spans[value]),
            relu: draft.relu,
        };
        let classes = layers.last().map_or(0, |layer| layer.shape[2]);
        let layers: Vec<micro::Layer> = drafts.iter().enumerate().map(placed).collect();
        Self {
            #[cfg(feature = "simd")]
            integers: crate::vector::Integers::new(&layers, &pools.int8),
            input: shape,
            input_start: spans[0].start,
            int8_input,
            classes,
            floats,
            bytes,
            layers,
            sources: drafts.iter().map(|draft| draft.source).collect(),
            constants: pools,
        }
    }

    /// The network, as it runs.
    pub fn model(&self) -> Model<'_> {
        let Pools { floats, halves, int8, int32, int64 } = &self.constants;
        Model {
            input: self.input,
            input_start: self.input_start,
            int8_input: self.int8_input,
            classes: self.classes,
            floats: self.floats,
            bytes: self.bytes,
            layers: &self.layers,
            constants: Constants { floats, halves, int8, int32, int64 },
        }
    }

    /// Logits and features of images `[images, channels, height, width]` in [0, 1], flat. int8 networks see bytes, and one whose
    /// last layer is int8 has no features.
    pub fn outputs(&self, images: &[f32]) -> Outputs {
        let of_image = |image: &[f32]| {
            let mut outputs = Outputs::default();
            self.run(image, |model, arena| {
                #[cfg(feature = "simd")]
                self.integers.run(model, arena);
                #[cfg(not(feature = "simd"))]
                model.run(arena);
                outputs.logits.extend_from_slice(model.logits(arena));
                if let Some(micro::Layer { op: Op::Linear { .. }, input, .. }) = model.layers.last() {
                    outputs.features.extend_from_slice(&arena.floats[input.range()]);
                }
            });
            outputs
        };
        #[cfg(feature = "simd")]
        {
            use rayon::prelude::*;
            let parts = images.par_chunks(self.input.iter().product()).map(of_image);
            Outputs::joined(parts.collect::<Vec<_>>())
        }
        #[cfg(not(feature = "simd"))]
        of_image(images)
    }

    /// The logits of [`Compiled::outputs`] alone.
    pub fn logits(&self, images: &[f32]) -> Vec<f32> {
        self.outputs(images).logits
    }

    /// Calls `seen` with every number of every value of float32 layers, by its place among the folded layers' values, image by
    /// image. The input, value 0, is not among them.
    pub fn observe(&self, images: &[f32], mut seen: impl FnMut(usize, &[f32])) {
        self.run(images, |model, arena| {
            for (layer, source) in model.layers.iter().zip(&self.sources) {
                model.step(layer, arena);
                if let Some(source) = source {
                    seen(source + 1, &arena.floats[layer.output.range()]);
                }
            }
        });
    }

    fn run(&self, images: &[f32], mut each: impl FnMut(&Model<'_>, &mut Arena<'_>)) {
        let model = self.model();
        let [height, width, channels] = self.input;
        let shape = ImageShape { channels, height, width };
        let (mut floats, mut bytes) = (vec![0.0; self.floats], vec![0; self.bytes]);
        for image in images.chunks_exact(shape.len()) {
            let pixels = shape.channels_last(image);
            if self.int8_input {
                let byte =
                    |value: f32| (math::round(f64::from(value) * 255.0).clamp(0.0, 255.0) - 128.0) as i8;
                bytes[self.input_start..]
                    .iter_mut()
                    .zip(&pixels)
                    .for_each(|(byte_of, &value)| *byte_of = byte(value));
            } else {
                floats[self.input_start..][..pixels.len()].copy_from_slice(&pixels);
            }
            each(&model, &mut Arena { floats: &mut floats, bytes: &mut bytes });
        }
    }
}

struct Compiler<'a> {
    layers: &'a [Layer],
    precision: &'a Precision,
    pools: Pools,
    values: Vec<Value>,
    drafts: Vec<Draft>,
    /// Of every value of the folded layers.
    scales: Vec<Scale>,
    /// Of every value of the folded layers: the values that hold it, one for each kind.
    places: Vec<[Option<usize>; 2]>,
}

impl Compiler<'_> {
    fn is_int8(&self, index: usize) -> bool {
        match self.precision {
            Precision::Int8(quantization) => match self.layers[index].op {
                // One step with the layer that follows.
                LayerOp::GlobalPool => !quantization.float[index + 1],
                _ => !quantization.float[index],
            },
            _ => false,
        }
    }

    /// Notes that a new value holds one of the folded layers.
    fn place(&mut self, value: usize, len: usize, kind: Kind) {
        if self.places.len() <= value {
            self.places.push([None; 2]);
        }
        self.places[value][kind as usize] = Some(self.values.len());
        self.values.push(Value { len, kind });
    }

    /// A value of the folded layers in a kind.
    fn get(&mut self, value: usize, kind: Kind) -> usize {
        if let Some(there) = self.places[value][kind as usize] {
            return there;
        }
        let other = if kind == Kind::Float { Kind::Int8 } else { Kind::Float };
        let input = self.places[value][other as usize].expect("every value is placed before it is read");
        let Scale { scale, zero } = self.scales[value];
        let op = match kind {
            Kind::Int8 => Op::Quantize { inverse: (1.0 / scale) as f32, zero },
            Kind::Float if value == 0 => Op::Dequantize { scale: BYTE, zero },
            Kind::Float => Op::Dequantize { scale: scale as f32, zero },
        };
        self.drafts.push(Draft { op, input, residual: None, relu: false, source: None });
        self.place(value, self.values[input].len, kind);
        self.places[value][kind as usize].unwrap_or_default()
    }

    fn layer(&mut self, index: usize) {
        let layer = &self.layers[index];
        let kind = if self.is_int8(index) { Kind::Int8 } else { Kind::Float };
        if kind == Kind::Int8 && layer.op == LayerOp::GlobalPool {
            // Part of the next layer, which alone reads it.
            self.places.push(self.places[layer.input]);
            return;
        }
        let input = self.get(layer.input, kind);
        let residual = layer.residual.map(|value| self.get(value, kind));
        let op = match kind {
            Kind::Float => self.float(layer),
            Kind::Int8 => self.int8(index),
        };
        let kind = if matches!(op, Op::ClassifyInt8 { .. }) { Kind::Float } else { kind };
        self.drafts.push(Draft { op, input, residual, relu: layer.relu, source: Some(index) });
        self.place(index + 1, layer.shape.iter().product(), kind);
    }

    fn weights(&mut self, weights: &[f32]) -> Weights {
        match self.precision {
            Precision::Half => {
                Weights::Halves(add(&mut self.pools.halves, weights.iter().map(|&weight| to_half(weight))))
            }
            _ => Weights::Floats(add(&mut self.pools.floats, weights.iter().copied())),
        }
    }

    fn float(&mut self, layer: &Layer) -> Op {
        match &layer.op {
            LayerOp::Conv { conv, weights, bias } => {
                let weights = self.weights(&in_lanes(conv, weights));
                Op::Conv { shape: *conv, weights, bias: add(&mut self.pools.floats, bias.iter().copied()) }
            }
            LayerOp::Affine { scale, shift } => Op::Affine {
                scale: add(&mut self.pools.floats, scale.iter().copied()),
                shift: add(&mut self.pools.floats, shift.iter().copied()),
            },
            LayerOp::MaxPool(shape) => Op::MaxPool(*shape),
            LayerOp::GlobalPool => Op::GlobalPool { channels: layer.shape[2] },
            LayerOp::Linear { weights, bias } => {
                let weights = self.weights(weights);
                Op::Linear { weights, bias: add(&mut self.pools.floats, bias.iter().copied()) }
            }
        }
    }

    fn int8(&mut self, index: usize) -> Op {
        let layer = &self.layers[index];
        let [from, to] = [self.scales[layer.input], self.scales[index + 1]];
        match &layer.op {
            LayerOp::Conv { conv, weights, bias } => {
                let QuantizedWeights { int8, bias, scales } = QuantizedWeights::new(weights, bias, from);
                let factors: Vec<f64> = scales.iter().map(|scale| from.scale * scale / to.scale).collect();
                let rescale = self.rescale(layer, from, to, &factors);
                let weights = add(&mut self.pools.int8, in_lanes(conv, &int8).into_iter());
                let bias = add(&mut self.pools.int32, bias.into_iter());
                Op::ConvInt8 { shape: *conv, weights, bias, rescale }
            }
            LayerOp::Affine { scale, shift } => {
                let factors: Vec<f64> =
                    scale.iter().map(|&scale| f64::from(scale) * from.scale / to.scale).collect();
                let rescale = self.rescale(layer, from, to, &factors);
                let unit = (1_u64 << rescale.bits) as f64;
                let shift = shift.iter().map(|&shift| math::round(f64::from(shift) / to.scale * unit) as i64);
                Op::AffineInt8 { shift: add(&mut self.pools.int64, shift), rescale }
            }
            LayerOp::MaxPool(shape) => Op::MaxPoolInt8(*shape),
            LayerOp::GlobalPool => unreachable!("part of the linear layer"),
            LayerOp::Linear { weights, bias } => {
                let (inputs, outputs) = (weights.len() / bias.len(), bias.len());
                let pooled = self.get(layer.input, Kind::Int8);
                let pixels = self.values[pooled].len / inputs;
                let QuantizedWeights { int8, scales, .. } = QuantizedWeights::by_columns(weights, outputs);
                let weights = add(&mut self.pools.int8, int8.into_iter());
                let scales: Vec<f32> =
                    scales.iter().map(|scale| (scale * from.scale / pixels as f64) as f32).collect();
                let bias = bias
                    .iter()
                    .zip(&scales)
                    .map(|(&bias, &scale)| math::round(f64::from(bias) / f64::from(scale)) as i64);
                let bias = add(&mut self.pools.int64, bias);
                let scale = add(&mut self.pools.floats, scales.iter().copied());
                Op::ClassifyInt8 { zero: from.zero, weights, bias, scale }
            }
        }
    }

    /// From products by some factors to int8, with as many binary places as 31 bits can hold.
    fn rescale(&mut self, layer: &Layer, from: Scale, to: Scale, factors: &[f64]) -> Rescale {
        let largest = factors.iter().map(|factor| factor.abs()).max_by(f64::total_cmp).unwrap_or(0.0);
        let mut bits = 46_u32;
        while bits > 1 && largest * (1_u64 << bits) as f64 >= f64::from(i32::MAX) {
            bits -= 1;
        }
        let unit = (1_u64 << bits) as f64;
        let multipliers = factors.iter().map(|factor| math::round(factor * unit) as i32);
        let multipliers = add(&mut self.pools.int32, multipliers);
        let residual = layer.residual.map(|value| self.scales[value]);
        Rescale {
            input_zero: from.zero,
            zero: to.zero,
            multipliers,
            bits,
            residual: residual.map_or(0, |of| math::round(of.scale / to.scale * unit) as i64),
            residual_zero: residual.map_or(0, |of| of.zero),
        }
    }
}

/// The bits of the next float16, to even at ties; what is too large becomes the largest.
pub fn to_half(value: f32) -> u16 {
    let bits = value.abs().min(65504.0).to_bits();
    let sign = if value.is_sign_negative() { 0x8000 } else { 0 };
    // Below 2^-14 places are 2^-24 apart: added to 0.5, float32 rounds there.
    let magnitude = match bits < 113 << 23 {
        true => (f32::from_bits(bits) + 0.5).to_bits() - 0.5_f32.to_bits(),
        false => (bits - (112 << 23) + 0xfff + (bits >> 13 & 1)) >> 13,
    };
    sign | magnitude as u16
}

/// Puts constants into a list.
fn add<T>(pool: &mut Vec<T>, values: impl Iterator<Item = T>) -> Span {
    let start = pool.len();
    pool.extend(values);
    Span { start, len: pool.len() - start }
}

/// Weights `[outputs, inputs per output, kernel, kernel]` in the order of [`LANES`].
fn in_lanes<T: Copy + Default>(conv: &ConvShape, weights: &[T]) -> Vec<T> {
    let (inputs, [.., outputs], taps) = (conv.inputs_per_output(), conv.output, conv.kernel * conv.kernel);
    let of = |i: usize| {
        let (output, input) = (i / LANES / inputs / taps * LANES + i % LANES, i / LANES % inputs);
        let tap = i / LANES / inputs % taps;
        if output < outputs { weights[(output * inputs + input) * taps + tap] } else { T::default() }
    };
    (0..outputs.div_ceil(LANES) * LANES * inputs * taps).map(of).collect()
}
