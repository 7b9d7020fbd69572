// The gradient of a convolution at a stride above 1 to its input:
//
//   output[b, y, x, o] = sum over ty, tx, c of input[b, (y + PADDING - ty) / STRIDE, (x + PADDING - tx) / STRIDE, c] * weights[ty, tx, c, o]
//
// over the taps for which both quotients are whole, with zero outside of the input, which is the gradient of the
// convolution's output.
//
// input: f32 [batch, rows, columns, inputs]. weights: f32 [KERNEL, KERNEL, inputs, outputs]. output: f32 [batch, rows,
//   columns, outputs]. Channels are multiples of 4 and travel in fours.
// info: the scalars, u64 values of which each is two words here; floats as bits; the constants say where each is.
//
// An invocation computes four channels of COLUMNS blocks of STRIDE * STRIDE pixels, next to each other: a block takes every tap once.

@group(0) @binding(0) var<storage, read_write> input: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> weights: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> output: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 64u;
const COLUMNS: u32 = 4u;
const STRIDE: u32 = 2u;
const KERNEL: u32 = 3u;
const PADDING: u32 = 1u;
// Pixels of the input that a block reads before its own place and in all, along one side.
const BEFORE: u32 = (KERNEL - 1u - PADDING) / STRIDE;
const READ: u32 = BEFORE + (STRIDE - 1u + PADDING) / STRIDE + 1u;
const WINDOW: u32 = COLUMNS - 1u + READ;

// Places of the scalars in info.
const BATCH: u32 = 0u;
const INPUT_ROWS: u32 = 2u;
const INPUT_COLUMNS: u32 = 4u;
const INPUT_FOURS: u32 = 6u;
const OUTPUT_ROWS: u32 = 8u;
const OUTPUT_COLUMNS: u32 = 10u;
const OUTPUT_FOURS: u32 = 12u;

@compute @workgroup_size(WORKGROUP, 1, 1)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let rows = i32(info[INPUT_ROWS]);
    let columns = i32(info[INPUT_COLUMNS]);
    let inputs = info[INPUT_FOURS];
    let outputs = info[OUTPUT_FOURS];
    let blocks_down = (info[OUTPUT_ROWS] + STRIDE - 1u) / STRIDE;
    let blocks_across = (info[OUTPUT_COLUMNS] + STRIDE - 1u) / STRIDE;
    let groups = (blocks_across + COLUMNS - 1u) / COLUMNS;
    var task = (workgroup.y * workgroups.x + workgroup.x) * WORKGROUP + local;
    let o = task % outputs;
    task /= outputs;
    let q = task % groups * COLUMNS;
    task /= groups;
    let r = task % blocks_down;
    let image = task / blocks_down;
    if image >= info[BATCH] {
        return;
    }
    var sum: array<vec4<f32>, COLUMNS * STRIDE * STRIDE>;
    for (var i = 0u; i < READ; i++) {
        let y = i32(r + i) - i32(BEFORE);
        if y < 0 || y >= rows {
            continue;
        }
        let row = (image * u32(rows) + u32(y)) * u32(columns);
        for (var c = 0u; c < inputs; c++) {
            var seen: array<vec4<f32>, WINDOW>;
            for (var j = 0u; j < WINDOW; j++) {
                let x = i32(q + j) - i32(BEFORE);
                let inside = x >= 0 && x < columns;
                seen[j] = select(vec4(0.0), input[(row + u32(clamp(x, 0, columns - 1))) * inputs + c], inside);
            }
            for (var j = 0u; j < READ; j++) {
                for (var at = 0u; at < STRIDE * STRIDE; at++) {
                    // The tap that leads from this pixel of the input to this one of the block, if there is one.
                    let ty = at / STRIDE + PADDING + STRIDE * BEFORE - STRIDE * i;
                    let tx = at % STRIDE + PADDING + STRIDE * BEFORE - STRIDE * j;
                    if ty >= KERNEL || tx >= KERNEL {
                        continue;
                    }
                    let tap = ((ty * KERNEL + tx) * inputs + c) * 4u * outputs + o;
                    let one = weights[tap];
                    let two = weights[tap + outputs];
                    let three = weights[tap + 2u * outputs];
                    let four = weights[tap + 3u * outputs];
                    for (var n = 0u; n < COLUMNS; n++) {
                        let a = seen[n + j];
                        let place = n * STRIDE * STRIDE + at;
                        sum[place] = fma(vec4(a.x), one, sum[place]);
                        sum[place] = fma(vec4(a.y), two, sum[place]);
                        sum[place] = fma(vec4(a.z), three, sum[place]);
                        sum[place] = fma(vec4(a.w), four, sum[place]);
                    }
                }
            }
        }
    }
    for (var n = 0u; n < COLUMNS; n++) {
        for (var at = 0u; at < STRIDE * STRIDE; at++) {
            let y = r * STRIDE + at / STRIDE;
            let x = (q + n) * STRIDE + at % STRIDE;
            if y < info[OUTPUT_ROWS] && x < info[OUTPUT_COLUMNS] {
                output[((image * info[OUTPUT_ROWS] + y) * info[OUTPUT_COLUMNS] + x) * outputs + o]
                    = sum[n * STRIDE * STRIDE + at];
            }
        }
    }
}
