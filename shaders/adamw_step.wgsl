// One step of AdamW on a parameter: m = beta1 * m0 + (1 - beta1) * g, v = beta2 * v0 + (1 - beta2) * g * g,
// keep * w - rate * m / (second * sqrt(v) + offset).
//
// weights, first, second, gradient, weights_out, first_out, second_out: f32 [values].
// info: the scalars, u64 values of which each is two words here; floats as bits; the constants say where each is.
//   RATE is lr / (1 - beta1^t), KEEP 1 - lr * decay, CORRECTION 1 / sqrt(1 - beta2^t).

@group(0) @binding(0) var<storage, read_write> weights: array<f32>;
@group(0) @binding(1) var<storage, read_write> first: array<f32>;
@group(0) @binding(2) var<storage, read_write> second: array<f32>;
@group(0) @binding(3) var<storage, read_write> gradient: array<f32>;
@group(0) @binding(4) var<storage, read_write> weights_out: array<f32>;
@group(0) @binding(5) var<storage, read_write> first_out: array<f32>;
@group(0) @binding(6) var<storage, read_write> second_out: array<f32>;
@group(0) @binding(7) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 256u;

// Places of the scalars in info.
const VALUES: u32 = 0u;
const RATE: u32 = 2u;
const KEEP: u32 = 4u;
const BETA_1: u32 = 6u;
const BETA_2: u32 = 8u;
const CORRECTION: u32 = 10u;
const OFFSET: u32 = 12u;

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
    let beta_1 = bitcast<f32>(info[BETA_1]);
    let beta_2 = bitcast<f32>(info[BETA_2]);
    let slope = gradient[i];
    let mean = beta_1 * first[i] + (1.0 - beta_1) * slope;
    let square = beta_2 * second[i] + (1.0 - beta_2) * slope * slope;
    first_out[i] = mean;
    second_out[i] = square;
    let size = bitcast<f32>(info[CORRECTION]) * sqrt(square) + bitcast<f32>(info[OFFSET]);
    weights_out[i] = bitcast<f32>(info[KEEP]) * weights[i] - bitcast<f32>(info[RATE]) * mean / size;
}
