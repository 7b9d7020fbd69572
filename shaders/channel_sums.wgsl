// Two sums per channel over a part of the pixels: the moments of an input, or the backward sums of a normalisation.
//
// input, gradient, output: f32 [pixels, channels]. mean: f32 [channels].
// sums: f32 [parts, 2, channels]. Forward: x - x0 and its square, x0 the middle pixel. Backward: g and g * (x - mean),
//   g the gradient where the output is positive, or everywhere without ReLU.
// info: the scalars, u64 values of which each is two words here; floats as bits; the constants say where each is.
// A workgroup takes 32 channels, next to each other in memory, of one part: 8 pixels at a time.

@group(0) @binding(0) var<storage, read_write> input: array<f32>;
@group(0) @binding(1) var<storage, read_write> gradient: array<f32>;
@group(0) @binding(2) var<storage, read_write> output: array<f32>;
@group(0) @binding(3) var<storage, read_write> mean: array<f32>;
@group(0) @binding(4) var<storage, read_write> sums: array<f32>;
@group(0) @binding(5) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 256u;
const WIDE: u32 = 32u;
const ROWS: u32 = 8u;

// Places of the scalars in info.
const PIXELS: u32 = 0u;
const CHANNELS: u32 = 2u;
const PARTS: u32 = 4u;
const BACKWARD: u32 = 6u;
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
    let backward = info[BACKWARD] == 1u;
    let relu = info[RELU] == 1u;
    let blocks = (channels + WIDE - 1u) / WIDE;
    let task = workgroup.y * workgroups.x + workgroup.x;
    let part = task / blocks;
    let channel = task % blocks * WIDE + local % WIDE;
    let each = (pixels + parts - 1u) / parts;
    var sum = vec2(0.0);
    if part < parts && channel < channels {
        let last = min(pixels, (part + 1u) * each);
        var origin = input[pixels / 2u * channels + channel];
        if backward {
            origin = mean[channel];
        }
        for (var pixel = part * each + local / WIDE; pixel < last; pixel += ROWS) {
            let i = pixel * channels + channel;
            let distance = input[i] - origin;
            if backward {
                var g = gradient[i];
                if relu && output[i] <= 0.0 {
                    g = 0.0;
                }
                sum += vec2(g, g * distance);
            } else {
                sum += vec2(distance, distance * distance);
            }
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
    if local < WIDE && part < parts && channel < channels {
        sums[part * 2u * channels + channel] = lanes[local].x;
        sums[(part * 2u + 1u) * channels + channel] = lanes[local].y;
    }
}
