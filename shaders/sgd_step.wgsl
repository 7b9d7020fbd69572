// One step of SGD with momentum on a parameter: v = clip * g + pull * (w - centre) + decay * w + momentum * v0, w - lr * v.
//
// weights, velocity, gradient, centre, weights_out, velocity_out: f32 [values]. factors: f32, clip where CLIPPED is 1, then
//   pull where PULLED is 1. Where PULLED is 0 the centre means nothing.
// info: the scalars, u64 values of which each is two words here; floats as bits; the constants say where each is.

@group(0) @binding(0) var<storage, read_write> weights: array<f32>;
@group(0) @binding(1) var<storage, read_write> velocity: array<f32>;
@group(0) @binding(2) var<storage, read_write> gradient: array<f32>;
@group(0) @binding(3) var<storage, read_write> centre: array<f32>;
@group(0) @binding(4) var<storage, read_write> factors: array<f32>;
@group(0) @binding(5) var<storage, read_write> weights_out: array<f32>;
@group(0) @binding(6) var<storage, read_write> velocity_out: array<f32>;
@group(0) @binding(7) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 256u;

// Places of the scalars in info.
const VALUES: u32 = 0u;
const LR: u32 = 2u;
const MOMENTUM: u32 = 4u;
const DECAY: u32 = 6u;
const CLIPPED: u32 = 8u;
const PULLED: u32 = 10u;

@compute @workgroup_size(WORKGROUP, 1, 1)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WORKGROUP + local;
    if i >= info[VALUES] {
        return;
    }
    let weight = weights[i];
    var step = gradient[i];
    if info[CLIPPED] == 1u {
        step *= factors[0];
    }
    if info[PULLED] == 1u {
        step += (weight - centre[i]) * factors[info[CLIPPED]];
    }
    step += weight * bitcast<f32>(info[DECAY]);
    step += velocity[i] * bitcast<f32>(info[MOMENTUM]);
    velocity_out[i] = step;
    weights_out[i] = weight - step * bitcast<f32>(info[LR]);
}
