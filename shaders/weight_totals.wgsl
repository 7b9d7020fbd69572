// Adds what `weight_sums` found in its parts, and turns it to the order of weights.
//
// sums: f32 [parts, kernel * kernel, inputs, outputs]. gradient: f32 [outputs, inputs, kernel * kernel].
// info: u64 values, so value k is info[2k]: 0 kernel * kernel, 1 inputs, 2 outputs, 3 parts.

@group(0) @binding(0) var<storage, read_write> sums: array<f32>;
@group(0) @binding(1) var<storage, read_write> gradient: array<f32>;
@group(0) @binding(2) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 64u;

@compute @workgroup_size(WORKGROUP, 1, 1)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WORKGROUP + local;
    let count = info[0] * info[2] * info[4];
    if i >= count {
        return;
    }
    var sum = 0.0;
    for (var part = 0u; part < info[6]; part++) {
        sum += sums[part * count + i];
    }
    let o = i % info[4];
    let c = i / info[4] % info[2];
    gradient[(o * info[2] + c) * info[0] + i / info[4] / info[2]] = sum;
}
