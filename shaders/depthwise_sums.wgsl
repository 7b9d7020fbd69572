// The gradient to the weights of a convolution of every channel by itself, in parts: each sums up some rows of the output.
//
// input: f32 [batch, input rows, input columns, channels]. gradient: f32 [batch, rows, columns, channels]. sums: f32 [parts,
// kernel, kernel, channels], which `weight_totals` adds up.
// info: the scalars, u64 values of which each is two words here; floats as bits; the constants say where each is.

@group(0) @binding(0) var<storage, read_write> input: array<f32>;
@group(0) @binding(1) var<storage, read_write> gradient: array<f32>;
@group(0) @binding(2) var<storage, read_write> sums: array<f32>;
@group(0) @binding(3) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 64u;

// Places of the scalars in info.
const BATCH: u32 = 0u;
const INPUT_ROWS: u32 = 2u;
const INPUT_COLUMNS: u32 = 4u;
const CHANNELS: u32 = 6u;
const ROWS: u32 = 8u;
const COLUMNS: u32 = 10u;
const KERNEL: u32 = 12u;
const STRIDE: u32 = 14u;
const PADDING: u32 = 16u;
const PARTS: u32 = 18u;

@compute @workgroup_size(WORKGROUP, 1, 1)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WORKGROUP + local;
    let channels = info[CHANNELS];
    if i >= info[PARTS] * info[KERNEL] * info[KERNEL] * channels {
        return;
    }
    let channel = i % channels;
    let across = i / channels % info[KERNEL];
    let down = i / channels / info[KERNEL] % info[KERNEL];
    let part = i / channels / info[KERNEL] / info[KERNEL];
    var sum = 0.0;
    // Every so many rows of all images, so that all parts have as many.
    for (var at = part; at < info[BATCH] * info[ROWS]; at += info[PARTS]) {
        let y = i32(at % info[ROWS] * info[STRIDE] + down) - i32(info[PADDING]);
        if y < 0 || y >= i32(info[INPUT_ROWS]) {
            continue;
        }
        let row = at / info[ROWS] * info[INPUT_ROWS] + u32(y);
        for (var column = 0u; column < info[COLUMNS]; column++) {
            let x = i32(column * info[STRIDE] + across) - i32(info[PADDING]);
            if x >= 0 && x < i32(info[INPUT_COLUMNS]) {
                let value = input[(row * info[INPUT_COLUMNS] + u32(x)) * channels + channel];
                sum += value * gradient[(at * info[COLUMNS] + column) * channels + channel];
            }
        }
    }
    sums[i] = sum;
}
