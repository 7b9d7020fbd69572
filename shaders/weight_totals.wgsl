// Adds the parts of `weight_sums`, and turns it to the order of weights.
//
// sums: f32 [parts, taps, padded inputs, padded outputs], taps being kernel * kernel. gradient: f32 [outputs, inputs, taps].
// info: the scalars, u64 values of which each is two words here; floats as bits; the constants say where each is.

@group(0) @binding(0) var<storage, read_write> sums: array<f32>;
@group(0) @binding(1) var<storage, read_write> gradient: array<f32>;
@group(0) @binding(2) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 64u;

// Places of the scalars in info.
const TAPS: u32 = 0u;
const INPUTS: u32 = 2u;
const OUTPUTS: u32 = 4u;
const PADDED_INPUTS: u32 = 6u;
const PADDED_OUTPUTS: u32 = 8u;
const PARTS: u32 = 10u;

@compute @workgroup_size(WORKGROUP, 1, 1)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WORKGROUP + local;
    let count = info[TAPS] * info[PADDED_INPUTS] * info[PADDED_OUTPUTS];
    let o = i % info[PADDED_OUTPUTS];
    let c = i / info[PADDED_OUTPUTS] % info[PADDED_INPUTS];
    if i >= count || c >= info[INPUTS] || o >= info[OUTPUTS] {
        return;
    }
    var sum = 0.0;
    for (var part = 0u; part < info[PARTS]; part++) {
        sum += sums[part * count + i];
    }
    let tap = i / info[PADDED_OUTPUTS] / info[PADDED_INPUTS];
    gradient[(o * info[INPUTS] + c) * info[TAPS] + tap] = sum;
}
