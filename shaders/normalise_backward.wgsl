// The gradient of a normalised input through mean and variance of the batch: scale / s * (g - mean(g) - n * mean(g * n)),
// s the standard deviation, n the normalised input, g the gradient where the output is positive, or everywhere without
// ReLU; and g itself, the gradient of a residual, if it is wanted.
//
// input, gradient, output, input_gradient, residual_gradient: f32 [pixels, channels]; the last may be of another size if
//   it is not wanted (RESIDUAL is 0).
// mean: f32 [channels]. totals: f32, as `channel_totals` leaves them, a row per channel value every ROW.
// info: the scalars, u64 values of which each is two words here; floats as bits; the constants say where each is.

@group(0) @binding(0) var<storage, read_write> input: array<f32>;
@group(0) @binding(1) var<storage, read_write> gradient: array<f32>;
@group(0) @binding(2) var<storage, read_write> output: array<f32>;
@group(0) @binding(3) var<storage, read_write> mean: array<f32>;
@group(0) @binding(4) var<storage, read_write> totals: array<f32>;
@group(0) @binding(5) var<storage, read_write> input_gradient: array<f32>;
@group(0) @binding(6) var<storage, read_write> residual_gradient: array<f32>;
@group(0) @binding(7) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 256u;

// Places of the scalars in info.
const VALUES: u32 = 0u;
const CHANNELS: u32 = 2u;
const RELU: u32 = 4u;
const RESIDUAL: u32 = 6u;
const ROW: u32 = 8u;

@compute @workgroup_size(WORKGROUP, 1, 1)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WORKGROUP + local;
    if i >= info[VALUES] {
        return;
    }
    let channels = info[CHANNELS];
    let channel = i % channels;
    let row = info[ROW];
    var g = gradient[i];
    if info[RELU] == 1u && output[i] <= 0.0 {
        g = 0.0;
    }
    if info[RESIDUAL] == 1u {
        residual_gradient[i] = g;
    }
    let distance = input[i] - mean[channel];
    let centred = g - totals[3u * row + channel] - distance * totals[4u * row + channel];
    input_gradient[i] = totals[2u * row + channel] * centred;
}
