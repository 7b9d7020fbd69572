// The gradients of a normalisation. To its input, through mean and variance of the batch: scale / s * (g - mean(g) - n *
// mean(g * n)), s the standard deviation, n the normalised input, g the gradient where the output is positive, or everywhere
// without ReLU. To a residual, if it is wanted: g itself. To shift and scale: the sums of g and of g * n.
//
// input, gradient, output, input_gradient, residual_gradient: f32 [pixels, channels]; the last may be of another size if
//   it is not wanted (RESIDUAL is 0).
// statistics: f32, as `normalise` leaves it: mean, variance, and in row 4 the scale.
// sums: f32, as `normalise_backward_sums` leaves it; rows 0 and 1 become the gradients of shift and scale.
// info: the scalars, u64 values of which each is two words here; floats as bits; the constants say where each is.
// A workgroup takes WIDE channels of one of GROUPS groups of pixels. Each adds up the sums of its channels itself.

@group(0) @binding(0) var<storage, read_write> input: array<f32>;
@group(0) @binding(1) var<storage, read_write> gradient: array<f32>;
@group(0) @binding(2) var<storage, read_write> output: array<f32>;
@group(0) @binding(3) var<storage, read_write> statistics: array<f32>;
@group(0) @binding(4) var<storage, read_write> sums: array<f32>;
@group(0) @binding(5) var<storage, read_write> input_gradient: array<f32>;
@group(0) @binding(6) var<storage, read_write> residual_gradient: array<f32>;
@group(0) @binding(7) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 256u;
const WIDE: u32 = 32u;
const ROWS: u32 = WORKGROUP / WIDE;

// Places of the scalars in info.
const PIXELS: u32 = 0u;
const CHANNELS: u32 = 2u;
const PARTS: u32 = 4u;
const ROW: u32 = 6u;
const GROUPS: u32 = 8u;
const RELU: u32 = 10u;
const RESIDUAL: u32 = 12u;
const EPSILON: u32 = 14u;

var<workgroup> lanes: array<vec2<f32>, WORKGROUP>;

@compute @workgroup_size(WORKGROUP, 1, 1)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let pixels = info[PIXELS];
    let channels = info[CHANNELS];
    let row = info[ROW];
    let blocks = (channels + WIDE - 1u) / WIDE;
    let task = workgroup.y * workgroups.x + workgroup.x;
    let group = task / blocks;
    let channel = task % blocks * WIDE + local % WIDE;
    let there = group < info[GROUPS] && channel < channels;
    var sum = vec2(0.0);
    if there {
        for (var part = local / WIDE; part < info[PARTS]; part += ROWS) {
            let at = (2u + 2u * part) * row + channel;
            sum += vec2(sums[at], sums[at + row]);
        }
    }
    lanes[local] = sum;
    workgroupBarrier();
    for (var half = ROWS / 2u; half > 0u; half /= 2u) {
        if local < half * WIDE {
            lanes[local] += lanes[local + half * WIDE];
        }
        workgroupBarrier();
    }
    if !there {
        return;
    }
    let total = lanes[local % WIDE];
    let mean = statistics[channel];
    let deviation = sqrt(statistics[row + channel] + bitcast<f32>(info[EPSILON]));
    let slope = statistics[4u * row + channel] / deviation;
    if group == 0u && local < WIDE {
        sums[channel] = total.x;
        sums[row + channel] = total.y / deviation;
    }
    let average = total / f32(pixels);
    let pull = average.y / deviation / deviation;
    let each = (pixels + info[GROUPS] - 1u) / info[GROUPS];
    let last = min(pixels, (group + 1u) * each);
    for (var pixel = group * each + local / WIDE; pixel < last; pixel += ROWS) {
        let i = pixel * channels + channel;
        var g = gradient[i];
        if info[RELU] == 1u && output[i] <= 0.0 {
            g = 0.0;
        }
        if info[RESIDUAL] == 1u {
            residual_gradient[i] = g;
        }
        input_gradient[i] = slope * (g - average.x - (input[i] - mean) * pull);
    }
}
