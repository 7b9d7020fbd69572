// A batch from the data set on the device: pick, crop, flip, scale to [0, 1], and draw the attack's random start.
//
// shard: the images `first .. first + held` of the data set, bytes packed four to a word (little end first), each image
//   as planes (channel, row, column), without padding between images.
// picks: i32 [n, 2], (position in the data set, id of the random stream); this batch is rows `begin .. begin + batch`.
// previous_images, previous_start: what earlier shards wrote, copied where this shard does not hold the image; one
//   element each for the first shard.
// images, start: f32 [batch, channels, height, width]; start = clip_box(images + U(-range, range)).
// Randomness: Threefry-2x32-20 keyed per step; counter (example, pixel) for the start, (example, CROP) for crop and
//   flip, so a value depends neither on the launch nor on the batch. Crops pad with zeros.
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
    let channel = pixel / (height * width);
    var row = i32(pixel % (height * width) / width);
    var column = i32(pixel % width);
    let pad = info[PAD];
    if pad > 0u || info[FLIP] == 1u {
        let words = threefry(example, CROP);
        let span = 2u * pad + 1u;
        if info[FLIP] == 1u && (words.y >> 31u) == 1u {
            column = i32(width) - 1 - column;
        }
        row += i32(words.x % span) - i32(pad);
        column += i32(words.x / span % span) - i32(pad);
    }
    var value = 0.0;
    if row >= 0 && row < i32(height) && column >= 0 && column < i32(width) {
        let byte = (position - info[FIRST]) * image_len + (channel * height + u32(row)) * width + u32(column);
        // Multiplied, not divided: WGSL rounds a product correctly, a quotient not.
        value = f32((shard[byte / 4u] >> (8u * (byte % 4u))) & 0xffu) * BYTE;
    }
    images[i] = value;
    let range = bitcast<f32>(info[RANGE]);
    let noise = f32(threefry(example, pixel).x >> 8u) * (2.0 / 16777216.0) - 1.0;
    start[i] = clamp(value + range * noise, 0.0, 1.0);
}
