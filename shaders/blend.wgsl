// A moving average: average + weight * (value - average).
//
// average, value, blended: f32 [values].
// info: u64 values, so value k is info[2k]: 0 values, 1 weight (float bits).

@group(0) @binding(0) var<storage, read_write> average: array<f32>;
@group(0) @binding(1) var<storage, read_write> value: array<f32>;
@group(0) @binding(2) var<storage, read_write> blended: array<f32>;
@group(0) @binding(3) var<storage, read> info: array<u32>;

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
    blended[i] = average[i] + bitcast<f32>(info[2]) * (value[i] - average[i]);
}
