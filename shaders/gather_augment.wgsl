// A batch from the data set on the device: pick, shift, turn, mirror, scale to [0, 1], blur, change the light, add noise,
// and draw the attack's random start.
//
// shard: the images `first .. first + held` of the data set, bytes packed four to a word (little end first), each image
//   as planes (channel, row, column), without padding between images.
// picks: i32 [n, 2], (position in the data set, id of the random stream); this batch is rows `begin .. begin + batch`.
// previous_images, previous_start: what earlier shards wrote, copied where this shard does not hold the image; one
//   element each for the first shard.
// images, start: f32 [batch, channels, height, width]; start = clip_box(images + U(-range, range)).
// Randomness: Threefry-2x32-20 keyed per step; counter (example, pixel) for the start, (example, NOISE_COUNTER + pixel) for the
//   noise, (example, CROP) for what moves pixels, (example, LIGHT_COUNTER) for light, (example, GRAIN) for blur and the size of
//   the noise, so a value depends neither on the launch nor on the batch. Crops pad with zeros; a blur repeats the edge.
// info: the scalars, u64 values of which each is two words here; floats as bits; the constants say where each is.

@group(0) @binding(0) var<storage, read_write> shard: array<u32>;
@group(0) @binding(1) var<storage, read_write> picks: array<i32>;
@group(0) @binding(2) var<storage, read_write> previous_images: array<f32>;
@group(0) @binding(3) var<storage, read_write> previous_start: array<f32>;
@group(0) @binding(4) var<storage, read_write> images: array<f32>;
@group(0) @binding(5) var<storage, read_write> start: array<f32>;
@group(0) @binding(6) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 256u;
const CROP: u32 = 0xffffffffu;
const LIGHT_COUNTER: u32 = 0xfffffffeu;
const GRAIN: u32 = 0xfffffffdu;
const NOISE_COUNTER: u32 = 0x80000000u;
// A 255th.
const BYTE: f32 = 0.003921569;

// Places of the scalars in info.
const ELEMENTS: u32 = 0u;
const CHANNELS: u32 = 2u;
const HEIGHT: u32 = 4u;
const WIDTH: u32 = 6u;
const BEGIN: u32 = 8u;
const FIRST: u32 = 10u;
const HELD: u32 = 12u;
const KEY_0: u32 = 14u;
const KEY_1: u32 = 16u;
const RANGE: u32 = 18u;
const PAD: u32 = 20u;
const FLIP: u32 = 22u;
const IS_FIRST_SHARD: u32 = 24u;
const TURN: u32 = 26u;
const BLUR: u32 = 28u;
const LIGHT: u32 = 30u;
const NOISE: u32 = 32u;

fn rotate_left(x: u32, by: u32) -> u32 {
    return (x << by) | (x >> (32u - by));
}

fn four_rounds(words: vec2<u32>, rotations: vec4<u32>) -> vec2<u32> {
    var x = words;
    for (var i = 0u; i < 4u; i++) {
        x.x += x.y;
        x.y = rotate_left(x.y, rotations[i]) ^ x.x;
    }
    return x;
}

fn threefry(high: u32, low: u32) -> vec2<u32> {
    let even = vec4(13u, 15u, 26u, 6u);
    let odd = vec4(17u, 29u, 16u, 24u);
    let k0 = info[KEY_0];
    let k1 = info[KEY_1];
    let k2 = 0x1BD11BDAu ^ k0 ^ k1;
    var x = four_rounds(vec2(high + k0, low + k1), even) + vec2(k1, k2 + 1u);
    x = four_rounds(x, odd) + vec2(k2, k0 + 2u);
    x = four_rounds(x, even) + vec2(k0, k1 + 3u);
    x = four_rounds(x, odd) + vec2(k1, k2 + 4u);
    return four_rounds(x, even) + vec2(k2, k0 + 5u);
}

// A word as a number in [0, 1).
fn unit(word: u32) -> f32 {
    return f32(word >> 8u) * (1.0 / 16777216.0);
}

// The value that arrives at a pixel of the example whose bytes begin at `first`, moved as `words` say.
fn value_at(pixel_row: i32, pixel_column: i32, first: u32, words: vec2<u32>) -> f32 {
    let height = i32(info[HEIGHT]);
    let width = i32(info[WIDTH]);
    let pad = info[PAD];
    var row = pixel_row;
    var column = pixel_column;
    if info[FLIP] == 1u && (words.y >> 31u) == 1u {
        column = width - 1 - column;
    }
    if info[TURN] == 1u {
        if ((words.y >> 30u) & 1u) == 1u {
            row = height - 1 - row;
            column = width - 1 - column;
        }
        if height == width && ((words.y >> 29u) & 1u) == 1u {
            let across = row;
            row = height - 1 - column;
            column = across;
        }
    }
    if pad > 0u {
        let span = 2u * pad + 1u;
        row += i32(words.x % span) - i32(pad);
        column += i32(words.x / span % span) - i32(pad);
    }
    if row < 0 || row >= height || column < 0 || column >= width {
        return 0.0;
    }
    let byte = first + u32(row) * info[WIDTH] + u32(column);
    // Multiplied, not divided: WGSL rounds a product correctly, a quotient not.
    return f32((shard[byte / 4u] >> (8u * (byte % 4u))) & 0xffu) * BYTE;
}

// The mean of a pixel and its eight neighbours with the weights 1 2 1 in both directions.
fn blurred(row: i32, column: i32, first: u32, words: vec2<u32>) -> f32 {
    var sum = 0.0;
    for (var down = -1; down <= 1; down++) {
        for (var across = -1; across <= 1; across++) {
            let weight = f32((2 - abs(down)) * (2 - abs(across)));
            let near_row = clamp(row + down, 0, i32(info[HEIGHT]) - 1);
            let near_column = clamp(column + across, 0, i32(info[WIDTH]) - 1);
            sum += weight * value_at(near_row, near_column, first, words);
        }
    }
    return sum * (1.0 / 16.0);
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WORKGROUP + local;
    if i >= info[ELEMENTS] {
        return;
    }
    let height = info[HEIGHT];
    let width = info[WIDTH];
    let image_len = info[CHANNELS] * height * width;
    let row_of_picks = 2u * (info[BEGIN] + i / image_len);
    let position = u32(picks[row_of_picks]);
    let example = u32(picks[row_of_picks + 1u]);
    if position < info[FIRST] || position >= info[FIRST] + info[HELD] {
        if info[IS_FIRST_SHARD] == 0u {
            images[i] = previous_images[i];
            start[i] = previous_start[i];
        }
        return;
    }

    let pixel = i % image_len;
    let row = i32(pixel % (height * width) / width);
    let column = i32(pixel % width);
    let plane = (position - info[FIRST]) * image_len + pixel / (height * width) * height * width;
    var words = vec2(0u);
    if info[PAD] > 0u || info[FLIP] == 1u || info[TURN] == 1u {
        words = threefry(example, CROP);
    }
    let light = bitcast<f32>(info[LIGHT]);
    let noise = bitcast<f32>(info[NOISE]);
    var grain = vec2(0u);
    if info[BLUR] == 1u || noise > 0.0 {
        grain = threefry(example, GRAIN);
    }
    var value = 0.0;
    if info[BLUR] == 1u && (grain.x >> 31u) == 1u {
        value = blurred(row, column, plane, words);
    } else {
        value = value_at(row, column, plane, words);
    }
    if light > 0.0 {
        let drawn = threefry(example, LIGHT_COUNTER);
        let gain = 1.0 + light * (2.0 * unit(drawn.x) - 1.0);
        value = clamp(value * gain + light * (unit(drawn.y) - 0.5), 0.0, 1.0);
    }
    if noise > 0.0 {
        // The variance of the sum of four uniform numbers is a third.
        let drawn = threefry(example, NOISE_COUNTER + pixel);
        let sum = f32((drawn.x >> 16u) + (drawn.x & 0xffffu) + (drawn.y >> 16u) + (drawn.y & 0xffffu));
        let normal = (sum * (1.0 / 65536.0) - 2.0) * 1.7320508;
        value = clamp(value + noise * unit(grain.y) * normal, 0.0, 1.0);
    }
    images[i] = value;
    let range = bitcast<f32>(info[RANGE]);
    let offset = f32(threefry(example, pixel).x >> 8u) * (2.0 / 16777216.0) - 1.0;
    start[i] = clamp(value + range * offset, 0.0, 1.0);
}
