// Weights in the order in which `convolve` reads them.
//
// weights: f32 [outputs, inputs, kernel * kernel]. arranged: f32 [kernel * kernel, inputs, outputs], or with back = 1
//   [kernel * kernel, outputs, inputs], for the gradient to the input.
// info: u64 values, so value k is info[2k]: 0 kernel * kernel, 1 inputs, 2 outputs, 3 back (0, 1).

@group(0) @binding(0) var<storage, read_write> weights: array<f32>;
@group(0) @binding(1) var<storage, read_write> arranged: array<f32>;
@group(0) @binding(2) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 64u;

@compute @workgroup_size(WORKGROUP, 1, 1)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WORKGROUP + local;
    let inputs = info[2];
    let outputs = info[4];
    if i >= info[0] * inputs * outputs {
        return;
    }
    let tap = i / inputs / outputs;
    let back = info[6] == 1u;
    let c = select(i / outputs % inputs, i % inputs, back);
    let o = select(i % outputs, i / inputs % outputs, back);
    arranged[i] = weights[(o * inputs + c) * info[0] + tap];
}
