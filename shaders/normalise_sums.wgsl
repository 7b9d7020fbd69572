// What `normalise` needs before it can begin: two sums per channel over each part of the pixels, and the parameters beside
// them, since no pass has room for as many buffers.
//
// input: f32 [pixels, channels]. scale, shift, running_mean, running_variance: f32 [channels].
// statistics: f32, a row per channel value every ROW. Rows 0 to 3 are left to `normalise`; then scale, shift, running mean
//   and running variance; then for each part the sums of x - x0 and of its square, x0 the middle pixel.
// info: the scalars, u64 values of which each is two words here; floats as bits; the constants say where each is.
// A workgroup takes WIDE channels, next to each other in memory, of one part: ROWS pixels at a time.

@group(0) @binding(0) var<storage, read_write> input: array<f32>;
@group(0) @binding(1) var<storage, read_write> scale: array<f32>;
@group(0) @binding(2) var<storage, read_write> shift: array<f32>;
@group(0) @binding(3) var<storage, read_write> running_mean: array<f32>;
@group(0) @binding(4) var<storage, read_write> running_variance: array<f32>;
@group(0) @binding(5) var<storage, read_write> statistics: array<f32>;
@group(0) @binding(6) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 256u;
const WIDE: u32 = 32u;
const ROWS: u32 = WORKGROUP / WIDE;

// Places of the scalars in info.
const PIXELS: u32 = 0u;
const CHANNELS: u32 = 2u;
const PARTS: u32 = 4u;
const ROW: u32 = 6u;

var<workgroup> lanes: array<vec2<f32>, WORKGROUP>;

@compute @workgroup_size(WORKGROUP, 1, 1)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let pixels = info[PIXELS];
    let channels = info[CHANNELS];
    let parts = info[PARTS];
    let row = info[ROW];
    let blocks = (channels + WIDE - 1u) / WIDE;
    let task = workgroup.y * workgroups.x + workgroup.x;
    let part = task / blocks;
    let channel = task % blocks * WIDE + local % WIDE;
    let there = part < parts && channel < channels;
    let each = (pixels + parts - 1u) / parts;
    var sum = vec2(0.0);
    if there {
        let origin = input[pixels / 2u * channels + channel];
        let last = min(pixels, (part + 1u) * each);
        for (var pixel = part * each + local / WIDE; pixel < last; pixel += ROWS) {
            let distance = input[pixel * channels + channel] - origin;
            sum += vec2(distance, distance * distance);
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
    if local >= WIDE || !there {
        return;
    }
    statistics[(8u + 2u * part) * row + channel] = lanes[local].x;
    statistics[(9u + 2u * part) * row + channel] = lanes[local].y;
    if part == 0u {
        statistics[4u * row + channel] = scale[channel];
        statistics[5u * row + channel] = shift[channel];
        statistics[6u * row + channel] = running_mean[channel];
        statistics[7u * row + channel] = running_variance[channel];
    }
}
