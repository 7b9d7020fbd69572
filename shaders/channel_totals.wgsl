// Adds up what `channel_sums` left, one invocation per channel.
//
// sums: f32 [parts, 2, channels]. input: f32 [pixels, channels], of which the middle pixel is read. variance, scale: f32
//   [channels], read backward alone.
// totals: f32, a row per channel value every ROW. Forward: mean and biased variance. Backward: the gradients of shift and scale, which are
//   the sums of g and of g * (x - mean) / s, s the standard deviation; then what `normalise_backward` needs: scale / s,
//   the mean of g, and the mean of g * (x - mean) / (s * s).
// info: the scalars, u64 values of which each is two words here; floats as bits; the constants say where each is.

@group(0) @binding(0) var<storage, read_write> sums: array<f32>;
@group(0) @binding(1) var<storage, read_write> input: array<f32>;
@group(0) @binding(2) var<storage, read_write> variance: array<f32>;
@group(0) @binding(3) var<storage, read_write> scale: array<f32>;
@group(0) @binding(4) var<storage, read_write> totals: array<f32>;
@group(0) @binding(5) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 256u;

// Places of the scalars in info.
const PIXELS: u32 = 0u;
const CHANNELS: u32 = 2u;
const PARTS: u32 = 4u;
const BACKWARD: u32 = 6u;
const EPSILON: u32 = 8u;
const ROW: u32 = 10u;

@compute @workgroup_size(WORKGROUP, 1, 1)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let channel = (workgroup.y * workgroups.x + workgroup.x) * WORKGROUP + local;
    let channels = info[CHANNELS];
    if channel >= channels {
        return;
    }
    var total = vec2(0.0);
    for (var part = 0u; part < info[PARTS]; part++) {
        total += vec2(sums[part * 2u * channels + channel], sums[(part * 2u + 1u) * channels + channel]);
    }
    let row = info[ROW];
    let average = total / f32(info[PIXELS]);
    if info[BACKWARD] == 1u {
        let deviation = sqrt(variance[channel] + bitcast<f32>(info[EPSILON]));
        totals[channel] = total.x;
        totals[row + channel] = total.y / deviation;
        totals[2u * row + channel] = scale[channel] / deviation;
        totals[3u * row + channel] = average.x;
        totals[4u * row + channel] = average.y / deviation / deviation;
    } else {
        totals[channel] = input[info[PIXELS] / 2u * channels + channel] + average.x;
        totals[row + channel] = max(average.y - average.x * average.x, 0.0);
    }
}
