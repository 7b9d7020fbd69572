// Max pooling: the largest values of windows of 3x3 pixels, two apart, with a border of one pixel that counts for nothing.
//
// input: f32 [INPUT_ROWS, INPUT_COLUMNS, channels]. output: f32 [rows, columns, channels], half as many of each, rounded up.
// info: the scalars, u64 values of which each is two words here; the constants say where each is.

@group(0) @binding(0) var<storage, read_write> input: array<f32>;
@group(0) @binding(1) var<storage, read_write> output: array<f32>;
@group(0) @binding(2) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 64u;
const LOWEST: f32 = -3.4028234e38;

// Places of the scalars in info.
const VALUES: u32 = 0u;
const INPUT_ROWS: u32 = 2u;
const INPUT_COLUMNS: u32 = 4u;
const COLUMNS: u32 = 6u;
const CHANNELS: u32 = 8u;

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
    let row = 2u * (i / channels / info[COLUMNS]);
    let column = 2u * (i / channels % info[COLUMNS]);
    var largest = LOWEST;
    for (var y = max(row, 1u) - 1u; y < min(row + 2u, info[INPUT_ROWS]); y++) {
        for (var x = max(column, 1u) - 1u; x < min(column + 2u, info[INPUT_COLUMNS]); x++) {
            let value = input[(y * info[INPUT_COLUMNS] + x) * channels + i % channels];
            // What is not a number wins.
            largest = select(value, largest, value <= largest);
        }
    }
    output[i] = largest;
}
