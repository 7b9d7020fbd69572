// Cross-entropy of logits against soft labels, FACTOR on the true class and the rest spread evenly, and its gradient.
//
// logits, gradient: f32 [batch, classes]. labels: i32 [batch]. values: f32 [batch].
// info: the scalars, u64 values of which each is two words here; floats as bits; the constants say where each is.
// An invocation takes one example.

@group(0) @binding(0) var<storage, read_write> logits: array<f32>;
@group(0) @binding(1) var<storage, read_write> labels: array<i32>;
@group(0) @binding(2) var<storage, read_write> values: array<f32>;
@group(0) @binding(3) var<storage, read_write> gradient: array<f32>;
@group(0) @binding(4) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 256u;

// Places of the scalars in info.
const BATCH: u32 = 0u;
const CLASSES: u32 = 2u;
const FACTOR: u32 = 4u;

@compute @workgroup_size(WORKGROUP, 1, 1)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let example = (workgroup.y * workgroups.x + workgroup.x) * WORKGROUP + local;
    if example >= info[BATCH] {
        return;
    }
    let classes = info[CLASSES];
    let first = example * classes;
    let label = u32(labels[example]);
    let factor = bitcast<f32>(info[FACTOR]);
    let rest = (1.0 - factor) / f32(classes - 1u);
    var largest = logits[first];
    for (var place = 1u; place < classes; place++) {
        largest = max(largest, logits[first + place]);
    }
    var sum = 0.0;
    for (var place = 0u; place < classes; place++) {
        sum += exp(logits[first + place] - largest);
    }
    let normaliser = log(sum);
    var value = 0.0;
    for (var place = 0u; place < classes; place++) {
        let log_likelihood = logits[first + place] - largest - normaliser;
        let goal = select(rest, factor, place == label);
        if goal != 0.0 {
            value -= goal * log_likelihood;
        }
        gradient[first + place] = exp(log_likelihood) - goal;
    }
    values[example] = value;
}
