// Pixels with their channels next to each other and filled up to a multiple of four by zeros.
//
// source: f32 [batch, rows, columns, channels], laid out by the steps to the next of each. padded: f32 [batch, rows, columns, PADDED].
// info: the scalars, u64 values of which each is two words here; floats as bits; the constants say where each is.

@group(0) @binding(0) var<storage, read_write> source: array<f32>;
@group(0) @binding(1) var<storage, read_write> padded: array<f32>;
@group(0) @binding(2) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 64u;

// Places of the scalars in info.
const VALUES: u32 = 0u;
const ROWS: u32 = 2u;
const COLUMNS: u32 = 4u;
const CHANNELS: u32 = 6u;
const PADDED: u32 = 8u;
const NEXT_IMAGE: u32 = 10u;
const NEXT_ROW: u32 = 12u;
const NEXT_COLUMN: u32 = 14u;
const NEXT_CHANNEL: u32 = 16u;

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
    let channel = i % info[PADDED];
    let pixel = i / info[PADDED];
    let x = pixel % info[COLUMNS];
    let y = pixel / info[COLUMNS] % info[ROWS];
    let image = pixel / info[COLUMNS] / info[ROWS];
    var value = 0.0;
    if channel < info[CHANNELS] {
        value = source[
            image * info[NEXT_IMAGE] + y * info[NEXT_ROW] + x * info[NEXT_COLUMN] + channel * info[NEXT_CHANNEL]
        ];
    }
    padded[i] = value;
}
