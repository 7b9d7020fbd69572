//! By the shaders: four launches, sums per channel and part, their totals and one pass over the values, and the like
//! backward.

use burn::tensor::Shape;
use burn_wgpu::{CubeBackend, CubeTensor, into_contiguous};

use super::super::shader::{Shader, Source, WORKGROUP, empty_like, empty_together};
use super::{NormBackwardOp, NormGradients, NormOp, NormOutput, Settings};

static CHANNEL_SUMS: Source = Source::new("channel_sums", include_str!("../../../shaders/channel_sums.wgsl"));
static CHANNEL_TOTALS: Source =
    Source::new("channel_totals", include_str!("../../../shaders/channel_totals.wgsl"));
static NORMALISE: Source = Source::new("normalise", include_str!("../../../shaders/normalise.wgsl"));
static NORMALISE_BACKWARD: Source =
    Source::new("normalise_backward", include_str!("../../../shaders/normalise_backward.wgsl"));

/// The shaders of a normalisation.
pub(super) static SOURCES: [&Source; 4] = [&CHANNEL_SUMS, &CHANNEL_TOTALS, &NORMALISE, &NORMALISE_BACKWARD];

/// Channels of a workgroup of `channel_sums`.
pub(in crate::kernel) const WIDE: usize = 32;
/// Parts into which `channel_sums` cuts the pixels at most, and pixels per part at least.
const PARTS: usize = 64;
const PART: usize = 256;

/// Pixels, channels, and parts for `channel_sums`.
fn extent(input: &CubeTensor) -> [usize; 3] {
    let shape = input.meta.shape();
    let pixels = shape[0] * shape[1] * shape[2];
    [pixels, shape[3], pixels.div_ceil(PART).clamp(1, PARTS)]
}

/// What `channel_totals` leaves: all of it, the first two rows, and the values from row to row.
struct Totals {
    all: CubeTensor,
    first: CubeTensor,
    second: CubeTensor,
    row: usize,
}

/// Launches `channel_sums` and `channel_totals`, which leaves so many `ROWS`.
fn totals<const ROWS: usize>(
    [input, gradient, output, mean, variance, scale]: [&CubeTensor; 6],
    backward: bool,
    relu: bool,
    epsilon: f32,
) -> Totals {
    let [pixels, channels, parts] = extent(input);
    let sums = empty_like(input, Shape::new([parts, 2, channels]));
    let workgroups = parts * channels.div_ceil(WIDE);
    Shader::new(&CHANNEL_SUMS)
        .launch()
        .set_each(["PIXELS", "CHANNELS", "PARTS"], [pixels, channels, parts])
        .set_each(["BACKWARD", "RELU"], [backward, relu])
        .run(workgroups * WORKGROUP, &[input, gradient, output, mean, &sums]);
    let (all, rows, places) = empty_together(input, [(); ROWS].map(|()| Shape::new([channels])));
    Shader::new(&CHANNEL_TOTALS)
        .launch()
        .set_each(["PIXELS", "CHANNELS", "PARTS", "ROW"], [pixels, channels, parts, places[1]])
        .set("BACKWARD", backward)
        .set("EPSILON", epsilon)
        .run(channels, &[&sums, input, variance, scale, &all]);
    let [first, second] = [0, 1].map(|row| rows[row].clone());
    Totals { all, first, second, row: places[1] }
}

impl NormOp for CubeBackend {
    fn batch_normalise(
        input: CubeTensor,
        scale: CubeTensor,
        shift: CubeTensor,
        residual: CubeTensor,
        Settings { epsilon, added, relu }: Settings,
    ) -> NormOutput<Self> {
        let [input, residual, scale, shift] = [input, residual, scale, shift].map(into_contiguous);
        let unread = [&input, &input, &input, &scale, &scale, &scale];
        let Totals { first: mean, second: variance, .. } = totals::<2>(unread, false, false, epsilon);
        let output = empty_like(&input, input.meta.shape().clone());
        let values = input.meta.num_elements();
        Shader::new(&NORMALISE)
            .launch()
            .set_each(["VALUES", "CHANNELS"], [values, input.meta.shape()[3]])
            .set_each(["RESIDUAL", "RELU"], [added, relu])
            .set("EPSILON", epsilon)
            .run(values, &[&input, &residual, &mean, &variance, &scale, &shift, &output]);
        NormOutput { output, mean, variance }
    }
}

impl NormBackwardOp for CubeBackend {
    fn batch_normalise_backward(
        gradient: CubeTensor,
        input: CubeTensor,
        output: CubeTensor,
        mean: CubeTensor,
        variance: CubeTensor,
        scale: CubeTensor,
        (Settings { epsilon, relu, .. }, wants_residual): (Settings, bool),
    ) -> NormGradients<Self> {
        let [gradient, input, output, scale] = [gradient, input, output, scale].map(into_contiguous);
        let of = [&input, &gradient, &output, &mean, &variance, &scale];
        let totals = totals::<5>(of, true, relu, epsilon);
        let shape = input.meta.shape().clone();
        let input_gradient = empty_like(&input, shape.clone());
        let held = if wants_residual { shape } else { Shape::new([extent(&input)[1]]) };
        let residual_gradient = empty_like(&input, held);
        let values = input.meta.num_elements();
        let tensors = [&input, &gradient, &output, &mean, &totals.all, &input_gradient, &residual_gradient];
        Shader::new(&NORMALISE_BACKWARD)
            .launch()
            .set_each(["VALUES", "CHANNELS", "ROW"], [values, input.meta.shape()[3], totals.row])
            .set_each(["RELU", "RESIDUAL"], [relu, wants_residual])
            .run(values, &tensors);
        NormGradients {
            input: input_gradient,
            scale: totals.second,
            shift: totals.first,
            residual: residual_gradient,
        }
    }
}
