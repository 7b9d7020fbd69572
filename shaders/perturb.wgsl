// One attack step: x' = clip_box(x + clip_eps((start - x) + alpha * sign(gradient))).
//
// images, start, gradient: f32 [batch, channels, height, width], any strides (convolutions return gradients as
//   channels-last views). adversarial: the same shape, contiguous.
// info: u64 values, so value k is info[2k]: 0 elements; 1-4 dims; 5-8, 9-12, 13-16 strides of images, start, gradient;
//   17 alpha, 18 epsilon (float bits).
// Invariants: |adversarial - images| <= epsilon up to rounding, adversarial in [0, 1], sign(0) = 0.

@group(0) @binding(0) var<storage, read_write> images: array<f32>;
@group(0) @binding(1) var<storage, read_write> start: array<f32>;
@group(0) @binding(2) var<storage, read_write> gradient: array<f32>;
@group(0) @binding(3) var<storage, read_write> adversarial: array<f32>;
@group(0) @binding(4) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 256u;

fn offset(index: vec4<u32>, first: u32) -> u32 {
    let strides = vec4(info[2u * first], info[2u * first + 2u], info[2u * first + 4u], info[2u * first + 6u]);
    let terms = index * strides;
    return terms.x + terms.y + terms.z + terms.w;
}

@compute @workgroup_size(256, 1, 1)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WORKGROUP + local;
    if i >= info[0] {
        return;
    }
    let height_width = info[6] * info[8];
    let channels_height_width = info[4] * height_width;
    let index = vec4(
        i / channels_height_width,
        i % channels_height_width / height_width,
        i % height_width / info[8],
        i % info[8],
    );
    let alpha = bitcast<f32>(info[34]);
    let epsilon = bitcast<f32>(info[36]);
    let image = images[offset(index, 5u)];
    let moved = start[offset(index, 9u)] - image + alpha * sign(gradient[offset(index, 13u)]);
    adversarial[i] = clamp(image + clamp(moved, -epsilon, epsilon), 0.0, 1.0);
}
