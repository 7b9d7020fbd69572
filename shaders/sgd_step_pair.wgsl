// One step of SGD with momentum on two parameters, as `sgd_step` takes it where there are no factors: half as many launches.
//
// weights_one, velocity_one, gradient_one: f32 [VALUES_ONE], those of the second parameter f32 [VALUES_TWO]. updated: f32,
//   the new weights and velocity of the first at 0 and VELOCITY_ONE, of the second at WEIGHTS_TWO and VELOCITY_TWO.
// info: the scalars, u64 values of which each is two words here; floats as bits; the constants say where each is.

@group(0) @binding(0) var<storage, read_write> weights_one: array<f32>;
@group(0) @binding(1) var<storage, read_write> velocity_one: array<f32>;
@group(0) @binding(2) var<storage, read_write> gradient_one: array<f32>;
@group(0) @binding(3) var<storage, read_write> weights_two: array<f32>;
@group(0) @binding(4) var<storage, read_write> velocity_two: array<f32>;
@group(0) @binding(5) var<storage, read_write> gradient_two: array<f32>;
@group(0) @binding(6) var<storage, read_write> updated: array<f32>;
@group(0) @binding(7) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 256u;

// Places of the scalars in info.
const VALUES_ONE: u32 = 0u;
const VALUES_TWO: u32 = 2u;
const MOMENTUM: u32 = 4u;
const LR_ONE: u32 = 6u;
const LR_TWO: u32 = 8u;
const DECAY_ONE: u32 = 10u;
const DECAY_TWO: u32 = 12u;
const VELOCITY_ONE: u32 = 14u;
const WEIGHTS_TWO: u32 = 16u;
const VELOCITY_TWO: u32 = 18u;

@compute @workgroup_size(WORKGROUP, 1, 1)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WORKGROUP + local;
    let momentum = bitcast<f32>(info[MOMENTUM]);
    if i < info[VALUES_ONE] {
        let weight = weights_one[i];
        let step = gradient_one[i] + weight * bitcast<f32>(info[DECAY_ONE]) + velocity_one[i] * momentum;
        updated[i] = weight - step * bitcast<f32>(info[LR_ONE]);
        updated[info[VELOCITY_ONE] + i] = step;
    }
    if i < info[VALUES_TWO] {
        let weight = weights_two[i];
        let step = gradient_two[i] + weight * bitcast<f32>(info[DECAY_TWO]) + velocity_two[i] * momentum;
        updated[info[WEIGHTS_TWO] + i] = weight - step * bitcast<f32>(info[LR_TWO]);
        updated[info[VELOCITY_TWO] + i] = step;
    }
}
