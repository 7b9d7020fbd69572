//! By the shaders: two launches, sums per channel and part and one pass over the values, and the like backward.

use burn::tensor::Shape;
use burn_wgpu::{CubeBackend, CubeTensor, into_contiguous};

use super::super::shader::{ALIGNMENT, Launch, Shader, Source, WORKGROUP, empty_like, part_of};
use super::{NormBackwardOp, NormGradients, NormOp, NormOutput, Settings};

static NORMALISE_SUMS: Source =
    Source::new("normalise_sums", include_str!("../../../shaders/normalise_sums.wgsl"));
static NORMALISE: Source = Source::new("normalise", include_str!("../../../shaders/normalise.wgsl"));
static NORMALISE_BACKWARD_SUMS: Source =
    Source::new("normalise_backward_sums", include_str!("../../../shaders/normalise_backward_sums.wgsl"));
static NORMALISE_BACKWARD: Source =
    Source::new("normalise_backward", include_str!("../../../shaders/normalise_backward.wgsl"));

/// The shaders of a normalisation.
pub(super) static SOURCES: [&Source; 4] =
    [&NORMALISE_SUMS, &NORMALISE, &NORMALISE_BACKWARD_SUMS, &NORMALISE_BACKWARD];

/// Channels of a workgroup.
const WIDE: [usize; 4] = [32, 16, 8, 4];
/// Parts into which the sums cut the pixels at most, and pixels per part at least.
const PARTS: usize = 64;
const PART: usize = 256;
/// Rows of the statistics before the sums of the parts.
pub(super) const STATISTICS: usize = 8;
/// Pixels per invocation at least where the values are passed over.
const PIXELS: usize = 16;

/// The shaders with every number of channels per workgroup.
pub(super) fn variants() -> Vec<Shader> {
    SOURCES.into_iter().flat_map(|source| WIDE.map(|wide| Shader::new(source).with("WIDE", wide))).collect()
}

/// How a tensor `[batch, height, width, channels]` is shared out.
pub(super) struct Extent {
    pixels: usize,
    channels: usize,
    /// Parts of the sums.
    parts: usize,
    /// Values from a row of statistics or sums to the next.
    row: usize,
    /// Channels of a workgroup.
    wide: usize,
}

impl Extent {
    /// Of a tensor `[batch, height, width, channels]`.
    pub(super) fn of(shape: &Shape) -> Self {
        let (pixels, channels) = (shape[0] * shape[1] * shape[2], shape[3]);
        let parts = pixels.div_ceil(PART).clamp(1, PARTS);
        // No more idle invocations than the last workgroup's.
        let wide = WIDE.into_iter().rfind(|&wide| wide >= channels).unwrap_or(WIDE[0]);
        Self { pixels, channels, parts, row: channels.next_multiple_of(ALIGNMENT), wide }
    }

    /// The sums of all parts, after so many rows for other things.
    pub(super) fn sums(&self, rows: usize) -> Shape {
        Shape::new([(rows + 2 * self.parts) * self.row])
    }

    /// A row of those.
    fn row(&self, of: &CubeTensor, row: usize) -> CubeTensor {
        part_of(of, row * self.row, Shape::new([self.channels]))
    }

    fn launch(&self, source: &'static Source) -> Launch {
        Shader::new(source).with("WIDE", self.wide).launch().set_each(
            ["PIXELS", "CHANNELS", "PARTS", "ROW"],
            [self.pixels, self.channels, self.parts, self.row],
        )
    }

    /// Runs one workgroup per part or group of pixels and block of channels.
    fn run(&self, launch: Launch, groups: usize, tensors: &[&CubeTensor]) {
        launch.run(groups * self.channels.div_ceil(self.wide) * WORKGROUP, tensors);
    }

    /// Groups of pixels for a pass over the values: each workgroup adds up all parts first, which has to be little beside it.
    fn groups(&self) -> usize {
        let each = PIXELS.max(self.parts) * (WORKGROUP / self.wide);
        self.pixels.div_ceil(each)
    }
}

impl NormOp for CubeBackend {
    fn batch_normalise(
        input: CubeTensor,
        scale: CubeTensor,
        shift: CubeTensor,
        residual: CubeTensor,
        running_mean: CubeTensor,
        running_variance: CubeTensor,
        (Settings { epsilon, momentum, relu }, added): (Settings, bool),
    ) -> NormOutput<Self> {
        let input = into_contiguous(input);
        let residual = if added { into_contiguous(residual) } else { input.clone() };
        let rows = [scale, shift, running_mean, running_variance].map(into_contiguous);
        let extent = Extent::of(input.meta.shape());
        let statistics = empty_like(&input, extent.sums(STATISTICS));
        let [scale, shift, mean, variance] = &rows;
        let sums = extent.launch(&NORMALISE_SUMS);
        extent.run(sums, extent.parts, &[&input, scale, shift, mean, variance, &statistics]);
        let output = empty_like(&input, input.meta.shape().clone());
        let groups = extent.groups();
        let pass = extent
            .launch(&NORMALISE)
            .set("GROUPS", groups)
            .set_each(["RESIDUAL", "RELU"], [added, relu])
            .set_each(["EPSILON", "MOMENTUM"], [epsilon, momentum as f32]);
        extent.run(pass, groups, &[&input, &residual, &statistics, &output]);
        let [running_mean, running_variance] = [2, 3].map(|row| extent.row(&statistics, row));
        NormOutput { output, running_mean, running_variance, statistics }
    }
}

impl NormBackwardOp for CubeBackend {
    fn batch_normalise_backward(
        gradient: CubeTensor,
        input: CubeTensor,
        output: CubeTensor,
        statistics: CubeTensor,
        _scale: CubeTensor,
        (Settings { epsilon, relu, .. }, wants_residual): (Settings, bool),
    ) -> NormGradients<Self> {
        let [gradient, input, output] = [gradient, input, output].map(into_contiguous);
        let extent = Extent::of(input.meta.shape());
        let sums = empty_like(&input, extent.sums(2));
        let launch = extent.launch(&NORMALISE_BACKWARD_SUMS).set("RELU", relu);
        extent.run(launch, extent.parts, &[&input, &gradient, &output, &statistics, &sums]);
        let shape = input.meta.shape().clone();
        let input_gradient = empty_like(&input, shape.clone());
        let held = if wants_residual { shape } else { Shape::new([extent.channels]) };
        let residual_gradient = empty_like(&input, held);
        let groups = extent.groups();
        let pass = extent
            .launch(&NORMALISE_BACKWARD)
            .set("GROUPS", groups)
            .set_each(["RELU", "RESIDUAL"], [relu, wants_residual])
            .set("EPSILON", epsilon);
        let tensors = [&input, &gradient, &output, &statistics, &sums, &input_gradient, &residual_gradient];
        extent.run(pass, groups, &tensors);
        NormGradients {
            input: input_gradient,
            scale: extent.row(&sums, 1),
            shift: extent.row(&sums, 0),
            residual: residual_gradient,
        }
    }
}
