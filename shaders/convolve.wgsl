// A convolution as a product whose left matrix is never written down:
//
//   output[b, r, q, o] = sum over ty, tx, c of input[b, r * STRIDE + ty - padding, q * STRIDE + tx - padding, c] * weights[ty, tx, c, o]
//
// with zero outside of the input. At stride 1 the gradient to the input is one too, with the weights turned by half a turn.
//
// input: f32 [batch, rows, columns, inputs]. weights: f32 [TAPS, TAPS, inputs, outputs]. output: f32 [batch, rows, columns,
//   outputs]. Channels are multiples of 4 and travel in fours.
// info: the scalars, u64 values of which each is two words here; floats as bits; the constants say where each is.
//
// With WEIGHTS_PER_IMAGE = 1 every image has weights of its own, [batch, inputs, outputs], for a kernel of 1.
//
// An invocation computes COLUMNS neighbours in a row times VECTORS fours of channels in registers. Neighbours share what
// they read of the input, and invocations next to each other read the same input and adjacent weights, so the first
// cache serves in the place of workgroup memory and nobody waits at a barrier. Every sum is taken in the same order
// whatever COLUMNS and VECTORS are.

@group(0) @binding(0) var<storage, read_write> input: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> weights: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> output: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 64u;
const COLUMNS: u32 = 4u;
const VECTORS: u32 = 2u;
const STRIDE: u32 = 1u;
const TAPS: u32 = 3u;
const WEIGHTS_PER_IMAGE: u32 = 0u;
const WINDOW: u32 = (COLUMNS - 1u) * STRIDE + TAPS;

// Places of the scalars in info.
const BATCH: u32 = 0u;
const INPUT_ROWS: u32 = 2u;
const INPUT_COLUMNS: u32 = 4u;
const INPUT_FOURS: u32 = 6u;
const OUTPUT_ROWS: u32 = 8u;
const OUTPUT_COLUMNS: u32 = 10u;
const OUTPUT_FOURS: u32 = 12u;
const PADDING: u32 = 14u;

@compute @workgroup_size(WORKGROUP, 1, 1)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let rows = info[INPUT_ROWS];
    let columns = info[INPUT_COLUMNS];
    let inputs = info[INPUT_FOURS];
    let outputs = info[OUTPUT_FOURS];
    let blocks = outputs / VECTORS;
    let groups = (info[OUTPUT_COLUMNS] + COLUMNS - 1u) / COLUMNS;
    var task = (workgroup.y * workgroups.x + workgroup.x) * WORKGROUP + local;
    let block = task % blocks;
    task /= blocks;
    let q = task % groups * COLUMNS;
    task /= groups;
    let r = task % info[OUTPUT_ROWS];
    let image = task / info[OUTPUT_ROWS];
    if image >= info[BATCH] {
        return;
    }
    let padding = i32(info[PADDING]);
    let left = i32(q * STRIDE) - padding;
    var sum: array<vec4<f32>, COLUMNS * VECTORS>;
    for (var ty = 0u; ty < TAPS; ty++) {
        let y = i32(r * STRIDE + ty) - padding;
        if y < 0 || y >= i32(rows) {
            continue;
        }
        let row = (image * rows + u32(y)) * columns;
        let taps = ty * TAPS + WEIGHTS_PER_IMAGE * image;
        for (var c = 0u; c < inputs; c++) {
            var seen: array<vec4<f32>, WINDOW>;
            for (var j = 0u; j < WINDOW; j++) {
                let x = left + i32(j);
                let inside = x >= 0 && x < i32(columns);
                seen[j] = select(vec4(0.0), input[(row + u32(clamp(x, 0, i32(columns) - 1))) * inputs + c], inside);
            }
            for (var tx = 0u; tx < TAPS; tx++) {
                let tap = ((taps + tx) * inputs + c) * 4u * outputs + block;
                for (var v = 0u; v < VECTORS; v++) {
                    let at = tap + v * blocks;
                    let one = weights[at];
                    let two = weights[at + outputs];
                    let three = weights[at + 2u * outputs];
                    let four = weights[at + 3u * outputs];
                    for (var n = 0u; n < COLUMNS; n++) {
                        let a = seen[n * STRIDE + tx];
                        let i = n * VECTORS + v;
                        sum[i] = fma(vec4(a.x), one, sum[i]);
                        sum[i] = fma(vec4(a.y), two, sum[i]);
                        sum[i] = fma(vec4(a.z), three, sum[i]);
                        sum[i] = fma(vec4(a.w), four, sum[i]);
                    }
                }
            }
        }
    }
    let line = (image * info[OUTPUT_ROWS] + r) * info[OUTPUT_COLUMNS] + q;
    for (var n = 0u; n < COLUMNS; n++) {
        if q + n < info[OUTPUT_COLUMNS] {
            for (var v = 0u; v < VECTORS; v++) {
                output[(line + n) * outputs + v * blocks + block] = sum[n * VECTORS + v];
            }
        }
    }
}
