// Weights in the order in which `convolve` reads them.
//
// weights: f32 [outputs, inputs, taps], taps being kernel * kernel. arranged: f32 [taps, inputs, outputs], or where
//   BACKWARD is 1 [taps, outputs, inputs], for the gradient to the input.
// info: the scalars, u64 values of which each is two words here; floats as bits; the constants say where each is.

@group(0) @binding(0) var<storage, read_write> weights: array<f32>;
@group(0) @binding(1) var<storage, read_write> arranged: array<f32>;
@group(0) @binding(2) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 64u;

// Places of the scalars in info.
const TAPS: u32 = 0u;
const INPUTS: u32 = 2u;
const OUTPUTS: u32 = 4u;
const BACKWARD: u32 = 6u;

@compute @workgroup_size(WORKGROUP, 1, 1)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WORKGROUP + local;
    let inputs = info[INPUTS];
    let outputs = info[OUTPUTS];
    if i >= info[TAPS] * inputs * outputs {
        return;
    }
    let tap = i / inputs / outputs;
    let backward = info[BACKWARD] == 1u;
    let c = select(i / outputs % inputs, i % inputs, backward);
    let o = select(i % outputs, i / inputs % outputs, backward);
    arranged[i] = weights[(o * inputs + c) * info[TAPS] + tap];
}
