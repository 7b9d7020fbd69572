// The transforms of Winograd's convolution F(4×4, 3×3) (Lavin and Gray, 2016, arXiv:1509.09308): a tile of 4×4 outputs
// from 6×6 inputs by 36 multiplications per pair of channels instead of 144. Per patch X this computes T X Tᵀ.
//
// KIND 0: T = Bᵀ, of 6×6 pixels, zero outside of the image.  source: f32 [batch, rows, columns, channels] to
//   result: f32 [36, tiles, channels].
// KIND 1: T = Aᵀ, of the 6×6 products to 4×4 pixels. source: f32 [36, tiles, channels] to result: f32 [batch, rows, columns,
//   channels].
// KIND 2: T = G, of 3×3 weights. source: f32 [OUTPUTS, INPUTS, 3, 3] to result: f32 [36, inputs, outputs], or with BACKWARD = 1,
//   the weights turned by half a turn, [36, outputs, inputs], for the gradient to the input; channels filled up by zeros.
// info: the scalars, u64 values of which each is two words here; floats as bits; the constants say where each is.

@group(0) @binding(0) var<storage, read_write> source: array<f32>;
@group(0) @binding(1) var<storage, read_write> result: array<f32>;
@group(0) @binding(2) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 64u;
const KIND: u32 = 0u;
// Pixels of a tile along one side.
const TILE: u32 = 4u;
const READ: u32 = array(6u, 6u, 3u)[KIND];
const WRITE: u32 = array(6u, 4u, 6u)[KIND];

// Places of the scalars in info.
const COUNT: u32 = 0u;
const CHANNELS: u32 = 2u;
const ROWS: u32 = 4u;
const COLUMNS: u32 = 6u;
const TILES_DOWN: u32 = 8u;
const TILES_ACROSS: u32 = 10u;
const FIRST_IMAGE: u32 = 12u;
const BACKWARD: u32 = 14u;
const INPUTS: u32 = 16u;
const OUTPUTS: u32 = 18u;

// T x
fn turn(x: array<f32, 6>) -> array<f32, 6> {
    if KIND == 0u {
        return array(
            4.0 * x[0] - 5.0 * x[2] + x[4],
            (x[4] - 4.0 * x[2]) + (x[3] - 4.0 * x[1]),
            (x[4] - 4.0 * x[2]) - (x[3] - 4.0 * x[1]),
            (x[4] - x[2]) + 2.0 * (x[3] - x[1]),
            (x[4] - x[2]) - 2.0 * (x[3] - x[1]),
            4.0 * x[1] - 5.0 * x[3] + x[5],
        );
    }
    if KIND == 1u {
        return array(
            x[0] + (x[1] + x[2]) + (x[3] + x[4]),
            (x[1] - x[2]) + 2.0 * (x[3] - x[4]),
            (x[1] + x[2]) + 4.0 * (x[3] + x[4]),
            (x[1] - x[2]) + 8.0 * (x[3] - x[4]) + x[5],
            0.0,
            0.0,
        );
    }
    let even = x[0] / 24.0 + x[2] / 6.0;
    return array(
        x[0] / 4.0,
        -(x[0] + x[1] + x[2]) / 6.0,
        -(x[0] - x[1] + x[2]) / 6.0,
        even + x[1] / 12.0,
        even - x[1] / 12.0,
        x[2],
    );
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let task = (workgroup.y * workgroups.x + workgroup.x) * WORKGROUP + local;
    let count = info[COUNT];
    if task >= count {
        return;
    }
    let channels = info[CHANNELS];
    let channel = task % channels;
    let tile = task / channels;
    var rows = 0;
    var columns = 0;
    // The first pixel of the patch: of the input, one above and left of the output's.
    var y = 0;
    var x = 0;
    var image = 0;
    if KIND != 2u {
        rows = i32(info[ROWS]);
        columns = i32(info[COLUMNS]);
        let margin = select(0, 1, KIND == 0u);
        x = i32(tile % info[TILES_ACROSS] * TILE) - margin;
        y = i32(tile / info[TILES_ACROSS] % info[TILES_DOWN] * TILE) - margin;
        image = i32(tile / info[TILES_ACROSS] / info[TILES_DOWN] + info[FIRST_IMAGE]);
    }
    let backward = info[BACKWARD] == 1u;
    // Of the weights.
    let input = select(tile, channel, backward);
    let output = select(channel, tile, backward);
    let filled = KIND == 2u && (input >= info[INPUTS] || output >= info[OUTPUTS]);
    var half: array<array<f32, 6>, WRITE>;
    for (var j = 0u; j < READ; j++) {
        var column: array<f32, 6>;
        for (var i = 0u; i < READ; i++) {
            if KIND == 0u {
                let at = vec2(y + i32(i), x + i32(j));
                let inside = all(at >= vec2(0)) && at.x < rows && at.y < columns;
                let near = clamp(at, vec2(0), vec2(rows, columns) - 1);
                let value = source[u32((image * rows + near.x) * columns + near.y) * channels + channel];
                column[i] = select(0.0, value, inside);
            } else if KIND == 1u {
                column[i] = source[(i * READ + j) * count + task];
            } else if !filled {
                let tap = i * READ + j;
                column[i] = source[(output * info[INPUTS] + input) * 9u + select(tap, 8u - tap, backward)];
            }
        }
        let turned = turn(column);
        for (var i = 0u; i < WRITE; i++) {
            half[i][j] = turned[i];
        }
    }
    for (var i = 0u; i < WRITE; i++) {
        let turned = turn(half[i]);
        for (var j = 0u; j < WRITE; j++) {
            if KIND != 1u {
                result[(i * WRITE + j) * count + task] = turned[j];
            } else {
                let at = vec2(y + i32(i), x + i32(j));
                if at.x < rows && at.y < columns {
                    result[u32((image * rows + at.x) * columns + at.y) * channels + channel] = turned[j];
                }
            }
        }
    }
}
