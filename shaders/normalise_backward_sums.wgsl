// What `normalise_backward` needs before it can begin: two sums per channel over each part of the pixels.
//
// input, gradient, output: f32 [pixels, channels]. statistics: f32, as `normalise` leaves it: mean first.
// sums: f32, a row per channel value every ROW. Rows 0 and 1 are left to `normalise_backward`; then for each part the sums
//   of g and of g * (x - mean), g the gradient where the output is positive, or everywhere without ReLU.
// info: the scalars, u64 values of which each is two words here; floats as bits; the constants say where each is.
// A workgroup takes WIDE channels, next to each other in memory, of one part: ROWS pixels at a time.

@group(0) @binding(0) var<storage, read_write> input: array<f32>;
@group(0) @binding(1) var<storage, read_write> gradient: array<f32>;
@group(0) @binding(2) var<storage, read_write> output: array<f32>;
@group(0) @binding(3) var<storage, read_write> statistics: array<f32>;
@group(0) @binding(4) var<storage, read_write> sums: array<f32>;
@group(0) @binding(5) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 256u;
const WIDE: u32 = 32u;
const ROWS: u32 = WORKGROUP / WIDE;

// Places of the scalars in info.
const PIXELS: u32 = 0u;
const CHANNELS: u32 = 2u;
const PARTS: u32 = 4u;
const ROW: u32 = 6u;
const RELU: u32 = 8u;

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
        let mean = statistics[channel];
        let last = min(pixels, (part + 1u) * each);
        for (var pixel = part * each + local / WIDE; pixel < last; pixel += ROWS) {
            let i = pixel * channels + channel;
            var g = gradient[i];
            if info[RELU] == 1u && output[i] <= 0.0 {
                g = 0.0;
            }
            sum += vec2(g, g * (input[i] - mean));
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
    if local < WIDE && there {
        sums[(2u + 2u * part) * row + channel] = lanes[local].x;
        sums[(3u + 2u * part) * row + channel] = lanes[local].y;
    }
}
