// A convolution of every channel by itself, or its gradient to the input: sums over what a kernel meets around each pixel.
//
// source: f32 [batch, source rows, source columns, channels]. weights: f32 [channels, kernel, kernel]. result: f32 [batch, rows,
// columns, channels]. With BACKWARD the source is the gradient of the output and the result that of the input.
// info: the scalars, u64 values of which each is two words here; floats as bits; the constants say where each is.

@group(0) @binding(0) var<storage, read_write> source: array<f32>;
@group(0) @binding(1) var<storage, read_write> weights: array<f32>;
@group(0) @binding(2) var<storage, read_write> result: array<f32>;
@group(0) @binding(3) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 64u;

// Places of the scalars in info.
const VALUES: u32 = 0u;
const ROWS: u32 = 2u;
const COLUMNS: u32 = 4u;
const CHANNELS: u32 = 6u;
const SOURCE_ROWS: u32 = 8u;
const SOURCE_COLUMNS: u32 = 10u;
const KERNEL: u32 = 12u;
const STRIDE: u32 = 14u;
const PADDING: u32 = 16u;
const BACKWARD: u32 = 18u;

// Where a tap meets the source from row (or column) `at` of the result, or -1 where it does not.
fn meets(at: u32, tap: u32, size: u32) -> i32 {
    var place = i32(at * info[STRIDE] + tap) - i32(info[PADDING]);
    if info[BACKWARD] == 1u {
        let distance = i32(at + info[PADDING]) - i32(tap);
        let stride = i32(info[STRIDE]);
        place = select(-1, distance / stride, distance >= 0 && distance % stride == 0);
    }
    return select(-1, place, place < i32(size));
}

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
    let channel = i % info[CHANNELS];
    let column = i / info[CHANNELS] % info[COLUMNS];
    let row = i / info[CHANNELS] / info[COLUMNS] % info[ROWS];
    let image = i / info[CHANNELS] / info[COLUMNS] / info[ROWS];
    var sum = 0.0;
    for (var down = 0u; down < info[KERNEL]; down++) {
        let y = meets(row, down, info[SOURCE_ROWS]);
        for (var across = 0u; across < info[KERNEL]; across++) {
            let x = meets(column, across, info[SOURCE_COLUMNS]);
            if y >= 0 && x >= 0 {
                let pixel = (image * info[SOURCE_ROWS] + u32(y)) * info[SOURCE_COLUMNS] + u32(x);
                let weight = weights[(channel * info[KERNEL] + down) * info[KERNEL] + across];
                sum += source[pixel * info[CHANNELS] + channel] * weight;
            }
        }
    }
    result[i] = sum;
}
