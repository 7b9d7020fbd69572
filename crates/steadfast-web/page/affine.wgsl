// What follows a convolution: y = x * scale + shift, plus a residual, then ReLU, the last two as asked for.
//
// input, residual, output: f32 [pixels, channels]. scale, shift: f32 [channels].
// info: the scalars, u64 values of which each is two words here; the constants say where each is.

@group(0) @binding(0) var<storage, read_write> input: array<f32>;
@group(0) @binding(1) var<storage, read_write> residual: array<f32>;
@group(0) @binding(2) var<storage, read_write> scale: array<f32>;
@group(0) @binding(3) var<storage, read_write> shift: array<f32>;
@group(0) @binding(4) var<storage, read_write> output: array<f32>;
@group(0) @binding(5) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 64u;

// Places of the scalars in info.
const VALUES: u32 = 0u;
const CHANNELS: u32 = 2u;
const RESIDUAL: u32 = 4u;
const RELU: u32 = 6u;

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
    let channel = i % info[CHANNELS];
    var value = input[i] * scale[channel] + shift[channel];
    if info[RESIDUAL] == 1u {
        value += residual[i];
    }
    if info[RELU] == 1u {
        // Not max: what is not a number has to stay so.
        value = select(value, 0.0, value < 0.0);
    }
    output[i] = value;
}
