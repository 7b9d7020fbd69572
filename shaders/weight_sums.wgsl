// The gradient of a convolution to its weights, as sums over a part of the output's rows each (`weight_totals` adds them):
//
//   sums[part, ty, tx, c, o] = sum over b, r, q of input[b, r * STRIDE + ty - padding, q * STRIDE + tx - padding, c]
//                                                  * gradient[b, r, q, o]
//
// input: f32 [batch, rows, columns, inputs]. gradient: f32 [batch, rows, columns, outputs]. sums: f32 [parts, kernel,
//   kernel, inputs, outputs]. Channels are multiples of 4 and travel in fours.
// info: the scalars, u64 values of which each is two words here; floats as bits; the constants say where each is.
//
// An invocation keeps the sums of one row of taps times 4 inputs times 4 outputs in registers while it walks along rows;
// a window of the input moves with it, so each step reads one four of the gradient and STRIDE fours of the input.

@group(0) @binding(0) var<storage, read_write> input: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> gradient: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> sums: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 64u;
const STRIDE: u32 = 1u;
const TAPS: u32 = 3u;
// Columns of the window that stay when it moves, and what moves into their place.
const KEPT: u32 = max(TAPS, STRIDE) - STRIDE;

// Places of the scalars in info.
const BATCH: u32 = 0u;
const INPUT_ROWS: u32 = 2u;
const INPUT_COLUMNS: u32 = 4u;
const INPUT_FOURS: u32 = 6u;
const GRADIENT_ROWS: u32 = 8u;
const GRADIENT_COLUMNS: u32 = 10u;
const OUTPUT_FOURS: u32 = 12u;
const PADDING: u32 = 14u;
const PARTS: u32 = 16u;

// The input at a column of a row that starts at `row`, zero outside.
fn look(row: u32, x: i32, c: u32) -> vec4<f32> {
    let columns = i32(info[INPUT_COLUMNS]);
    let inside = x >= 0 && x < columns;
    return select(vec4(0.0), input[(row + u32(clamp(x, 0, columns - 1))) * info[INPUT_FOURS] + c], inside);
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let inputs = info[INPUT_FOURS];
    let outputs = info[OUTPUT_FOURS];
    var task = (workgroup.y * workgroups.x + workgroup.x) * WORKGROUP + local;
    let o = task % outputs;
    task /= outputs;
    let c = task % inputs;
    task /= inputs;
    let ty = task % TAPS;
    let part = task / TAPS;
    if part >= info[PARTS] {
        return;
    }
    let padding = i32(info[PADDING]);
    let lines = info[BATCH] * info[GRADIENT_ROWS];
    let each = (lines + info[PARTS] - 1u) / info[PARTS];
    let last = min(lines, (part + 1u) * each);
    var sum: array<vec4<f32>, TAPS * 4u>;
    for (var line = part * each; line < last; line++) {
        let y = i32(line % info[GRADIENT_ROWS] * STRIDE + ty) - padding;
        if y < 0 || y >= i32(info[INPUT_ROWS]) {
            continue;
        }
        let row = (line / info[GRADIENT_ROWS] * info[INPUT_ROWS] + u32(y)) * info[INPUT_COLUMNS];
        var seen: array<vec4<f32>, max(TAPS, STRIDE)>;
        for (var j = 0u; j < KEPT; j++) {
            seen[j + STRIDE] = look(row, i32(j) - padding, c);
        }
        for (var q = 0u; q < info[GRADIENT_COLUMNS]; q++) {
            for (var j = 0u; j < KEPT; j++) {
                seen[j] = seen[j + STRIDE];
            }
            for (var j = KEPT; j < TAPS; j++) {
                seen[j] = look(row, i32(q * STRIDE + j) - padding, c);
            }
            let above = gradient[(line * info[GRADIENT_COLUMNS] + q) * outputs + o];
            for (var tx = 0u; tx < TAPS; tx++) {
                let a = seen[tx];
                sum[tx * 4u] = fma(vec4(a.x), above, sum[tx * 4u]);
                sum[tx * 4u + 1u] = fma(vec4(a.y), above, sum[tx * 4u + 1u]);
                sum[tx * 4u + 2u] = fma(vec4(a.z), above, sum[tx * 4u + 2u]);
                sum[tx * 4u + 3u] = fma(vec4(a.w), above, sum[tx * 4u + 3u]);
            }
        }
    }
    for (var tx = 0u; tx < TAPS; tx++) {
        for (var i = 0u; i < 4u; i++) {
            let row = (((part * TAPS + ty) * TAPS + tx) * inputs + c) * 4u + i;
            sums[row * outputs + o] = sum[tx * 4u + i];
        }
    }
}
