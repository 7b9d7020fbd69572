// Weights in the order in which `convolve` reads them, for a convolution and for its gradient to the input.
//
// weights: f32 [outputs, inputs, taps], taps being kernel * kernel. arranged: f32, two arrays; channels are filled up by
//   zeros to PADDED_INPUTS and PADDED_OUTPUTS: [taps, inputs, outputs], and from BACKWARD on [taps, outputs, inputs], the
//   taps backwards if FLIPPED is 1.
// info: the scalars, u64 values of which each is two words here; floats as bits; the constants say where each is.

@group(0) @binding(0) var<storage, read_write> weights: array<f32>;
@group(0) @binding(1) var<storage, read_write> arranged: array<f32>;
@group(0) @binding(2) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 64u;

// Places of the scalars in info.
const TAPS: u32 = 0u;
const INPUTS: u32 = 2u;
const OUTPUTS: u32 = 4u;
const PADDED_INPUTS: u32 = 6u;
const PADDED_OUTPUTS: u32 = 8u;
const BACKWARD: u32 = 10u;
const FLIPPED: u32 = 12u;

// The weight of a tap from input c to output o, zero for channels that are filled up.
fn weight(tap: u32, c: u32, o: u32) -> f32 {
    if c >= info[INPUTS] || o >= info[OUTPUTS] {
        return 0.0;
    }
    return weights[(o * info[INPUTS] + c) * info[TAPS] + tap];
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WORKGROUP + local;
    let inputs = info[PADDED_INPUTS];
    let outputs = info[PADDED_OUTPUTS];
    if i >= info[TAPS] * inputs * outputs {
        return;
    }
    let tap = i / inputs / outputs;
    arranged[i] = weight(tap, i / outputs % inputs, i % outputs);
    let back = select(tap, info[TAPS] - 1u - tap, info[FLIPPED] == 1u);
    arranged[info[BACKWARD] + i] = weight(back, i % inputs, i / inputs % outputs);
}
