// One attack step: x' = clip_box(x + clip_eps((start - x) + alpha * sign(gradient))).
//
// images, start, gradient: f32 [batch, channels, height, width], any strides (convolutions return gradients as
//   channels-last views). adversarial: the same shape, contiguous.
// info: the scalars, u64 values of which each is two words here; floats as bits; the constants say where each is.
// Invariants: |adversarial - images| <= epsilon up to rounding, adversarial in [0, 1], sign(0) = 0.

@group(0) @binding(0) var<storage, read_write> images: array<f32>;
@group(0) @binding(1) var<storage, read_write> start: array<f32>;
@group(0) @binding(2) var<storage, read_write> gradient: array<f32>;
@group(0) @binding(3) var<storage, read_write> adversarial: array<f32>;
@group(0) @binding(4) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 256u;

// Places of the scalars in info.
const ELEMENTS: u32 = 0u;
const CHANNELS: u32 = 2u;
const HEIGHT: u32 = 4u;
const WIDTH: u32 = 6u;
const IMAGES_STRIDE_0: u32 = 8u;
const IMAGES_STRIDE_1: u32 = 10u;
const IMAGES_STRIDE_2: u32 = 12u;
const IMAGES_STRIDE_3: u32 = 14u;
const START_STRIDE_0: u32 = 16u;
const START_STRIDE_1: u32 = 18u;
const START_STRIDE_2: u32 = 20u;
const START_STRIDE_3: u32 = 22u;
const GRADIENT_STRIDE_0: u32 = 24u;
const GRADIENT_STRIDE_1: u32 = 26u;
const GRADIENT_STRIDE_2: u32 = 28u;
const GRADIENT_STRIDE_3: u32 = 30u;
const ALPHA: u32 = 32u;
const EPSILON: u32 = 34u;

fn image_strides() -> vec4<u32> {
    return vec4(info[IMAGES_STRIDE_0], info[IMAGES_STRIDE_1], info[IMAGES_STRIDE_2], info[IMAGES_STRIDE_3]);
}

fn start_strides() -> vec4<u32> {
    return vec4(info[START_STRIDE_0], info[START_STRIDE_1], info[START_STRIDE_2], info[START_STRIDE_3]);
}

fn gradient_strides() -> vec4<u32> {
    return vec4(info[GRADIENT_STRIDE_0], info[GRADIENT_STRIDE_1], info[GRADIENT_STRIDE_2], info[GRADIENT_STRIDE_3]);
}

fn offset(index: vec4<u32>, strides: vec4<u32>) -> u32 {
    let terms = index * strides;
    return terms.x + terms.y + terms.z + terms.w;
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
    let height_width = info[HEIGHT] * info[WIDTH];
    let channels_height_width = info[CHANNELS] * height_width;
    let index = vec4(
        i / channels_height_width,
        i % channels_height_width / height_width,
        i % height_width / info[WIDTH],
        i % info[WIDTH],
    );
    let alpha = bitcast<f32>(info[ALPHA]);
    let epsilon = bitcast<f32>(info[EPSILON]);
    let image = images[offset(index, image_strides())];
    let moved = start[offset(index, start_strides())] - image
        + alpha * sign(gradient[offset(index, gradient_strides())]);
    adversarial[i] = clamp(image + clamp(moved, -epsilon, epsilon), 0.0, 1.0);
}
