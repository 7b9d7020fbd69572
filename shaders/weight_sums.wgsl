// The gradient of a convolution to its weights, as sums over a part of the output's rows each (`weight_totals` adds them):
//
//   sums[part, ty, tx, c, o] = sum over b, r, q of input[b, r * STRIDE + ty - padding, q * STRIDE + tx - padding, c]
//                                                  * gradient[b, r, q, o]
//
// input: f32 [batch, rows, columns, inputs]. gradient: f32 [batch, rows, columns, outputs]. sums: f32 [parts, kernel,
//   kernel, inputs, outputs]. Channels are multiples of 4 and travel in fours.
// info: u64 values, so value k is info[2k]: 0 batch, 1 input rows, 2 input columns, 3 inputs / 4, 4 gradient rows,
//   5 gradient columns, 6 outputs / 4, 7 padding, 8 parts.
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

// The input at a column of a row that starts at `row`, zero outside.
fn look(row: u32, x: i32, c: u32) -> vec4<f32> {
    let columns = i32(info[4]);
    return select(vec4(0.0), input[(row + u32(clamp(x, 0, columns - 1))) * info[6] + c], x >= 0 && x < columns);
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let inputs = info[6];
    let outputs = info[12];
    var task = (workgroup.y * workgroups.x + workgroup.x) * WORKGROUP + local;
    let o = task % outputs;
    task /= outputs;
    let c = task % inputs;
    task /= inputs;
    let ty = task % TAPS;
    let part = task / TAPS;
    if part >= info[16] {
        return;
    }
    let padding = i32(info[14]);
    let lines = info[0] * info[8];
    let each = (lines + info[16] - 1u) / info[16];
    let last = min(lines, (part + 1u) * each);
    var sum: array<vec4<f32>, TAPS * 4u>;
    for (var line = part * each; line < last; line++) {
        let y = i32(line % info[8] * STRIDE + ty) - padding;
        if y < 0 || y >= i32(info[2]) {
            continue;
        }
        let row = (line / info[8] * info[2] + u32(y)) * info[4];
        var seen: array<vec4<f32>, max(TAPS, STRIDE)>;
        for (var j = 0u; j < KEPT; j++) {
            seen[j + STRIDE] = look(row, i32(j) - padding, c);
        }
        for (var q = 0u; q < info[10]; q++) {
            for (var j = 0u; j < KEPT; j++) {
                seen[j] = seen[j + STRIDE];
            }
            for (var j = KEPT; j < TAPS; j++) {
                seen[j] = look(row, i32(q * STRIDE + j) - padding, c);
            }
            let above = gradient[(line * info[10] + q) * outputs + o];
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
