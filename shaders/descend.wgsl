// One step of SGD with momentum on a parameter: v = clip * g + pull * (w - centre) + decay * w + momentum * v0, w - lr * v.
//
// weights, velocity, gradient, centre, moved, faster: f32 [values]. clip, pull: f32 [1].
// info: u64 values, so value k is info[2k]: 0 values, 1 lr, 2 momentum, 3 decay (float bits), 4 clipped, 5 pulled (0, 1; where
//   0, clip, or pull and centre, mean nothing).

@group(0) @binding(0) var<storage, read_write> weights: array<f32>;
@group(0) @binding(1) var<storage, read_write> velocity: array<f32>;
@group(0) @binding(2) var<storage, read_write> gradient: array<f32>;
@group(0) @binding(3) var<storage, read_write> centre: array<f32>;
@group(0) @binding(4) var<storage, read_write> clip: array<f32>;
@group(0) @binding(5) var<storage, read_write> pull: array<f32>;
@group(0) @binding(6) var<storage, read_write> moved: array<f32>;
@group(0) @binding(7) var<storage, read_write> faster: array<f32>;
@group(0) @binding(8) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 256u;

@compute @workgroup_size(WORKGROUP, 1, 1)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WORKGROUP + local;
    if i >= info[0] {
        return;
    }
    let weight = weights[i];
    var step = gradient[i];
    if info[8] == 1u {
        step *= clip[0];
    }
    if info[10] == 1u {
        step += (weight - centre[i]) * pull[0];
    }
    step += weight * bitcast<f32>(info[6]);
    step += velocity[i] * bitcast<f32>(info[4]);
    faster[i] = step;
    moved[i] = weight - step * bitcast<f32>(info[2]);
}
