// Batch normalisation with what follows it: y = (x - mean) / sqrt(variance + epsilon) * scale + shift, plus a residual,
// then ReLU, the last two as asked for.
//
// input, residual, output: f32 [pixels, channels].
// statistics: f32, as `normalise_sums` leaves it; rows 0 to 3 become mean, biased variance, and the running mean and
//   variance, which move to those by MOMENTUM.
// info: the scalars, u64 values of which each is two words here; floats as bits; the constants say where each is.
// A workgroup takes WIDE channels of one of GROUPS groups of pixels. Each adds up the sums of its channels itself.

@group(0) @binding(0) var<storage, read_write> input: array<f32>;
@group(0) @binding(1) var<storage, read_write> residual: array<f32>;
@group(0) @binding(2) var<storage, read_write> statistics: array<f32>;
@group(0) @binding(3) var<storage, read_write> output: array<f32>;
@group(0) @binding(4) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 256u;
const WIDE: u32 = 32u;
const ROWS: u32 = WORKGROUP / WIDE;

// Places of the scalars in info.
const PIXELS: u32 = 0u;
const CHANNELS: u32 = 2u;
const PARTS: u32 = 4u;
const ROW: u32 = 6u;
const GROUPS: u32 = 8u;
const RESIDUAL: u32 = 10u;
const RELU: u32 = 12u;
const EPSILON: u32 = 14u;
const MOMENTUM: u32 = 16u;

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
            let at = (8u + 2u * part) * row + channel;
            sum += vec2(statistics[at], statistics[at + row]);
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
    let average = lanes[local % WIDE] / f32(pixels);
    let mean = input[pixels / 2u * channels + channel] + average.x;
    let variance = max(average.y - average.x * average.x, 0.0);
    let slope = statistics[4u * row + channel] / sqrt(variance + bitcast<f32>(info[EPSILON]));
    let shift = statistics[5u * row + channel];
    if group == 0u && local < WIDE {
        let momentum = bitcast<f32>(info[MOMENTUM]);
        let before = vec2(statistics[6u * row + channel], statistics[7u * row + channel]);
        let running = before + momentum * (vec2(mean, variance) - before);
        statistics[channel] = mean;
        statistics[row + channel] = variance;
        statistics[2u * row + channel] = running.x;
        statistics[3u * row + channel] = running.y;
    }
    let each = (pixels + info[GROUPS] - 1u) / info[GROUPS];
    let last = min(pixels, (group + 1u) * each);
    for (var pixel = group * each + local / WIDE; pixel < last; pixel += ROWS) {
        let i = pixel * channels + channel;
        var value = (input[i] - mean) * slope + shift;
        if info[RESIDUAL] == 1u {
            value += residual[i];
        }
        if info[RELU] == 1u {
            // Not max: what is not a number has to stay so.
            value = select(value, 0.0, value < 0.0);
        }
        output[i] = value;
    }
}
