// Soft-label cross-entropy of adversarial and benign logits, the ConvergeSmooth gate and its terms, the gradient for
// both logits, and the epoch's running sums, in one launch of one workgroup.
//
// adversarial, benign, start: f32 [batch, classes], contiguous logits of x', x and the start of the attack step.
// labels: i32 [batch]. weights: f32 [classes], if there are any. sums: f32 [SUMS], the sums before this batch.
// outputs: f32, at the places that the scalars give: the loss [1]; the sums with this batch [SUMS]; d loss / d logits, adversarial and
//   benign [batch, classes].
// info: the scalars, u64 values of which each is two words here; floats as bits; the constants say where each is.
// The gate and last epoch's means are constants: no gradient flows through them. It always looks at the benign loss.

@group(0) @binding(0) var<storage, read_write> adversarial: array<f32>;
@group(0) @binding(1) var<storage, read_write> benign: array<f32>;
@group(0) @binding(2) var<storage, read_write> start: array<f32>;
@group(0) @binding(3) var<storage, read_write> labels: array<i32>;
@group(0) @binding(4) var<storage, read_write> weights: array<f32>;
@group(0) @binding(5) var<storage, read_write> sums: array<f32>;
@group(0) @binding(6) var<storage, read_write> outputs: array<f32>;
@group(0) @binding(7) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 256u;
// Kinds of gate, as numbered in src/converge/gate.rs; GATE_NONE also where the gate is closed for the epoch.
const GATE_NONE: u32 = 0u;
const GATE_BATCH: u32 = 1u;
const GATE_EXAMPLE: u32 = 2u;

// Per batch, in the order of the running sums.
const EXAMPLES: u32 = 0u;
const ADVERSARIAL_LOSS: u32 = 1u;
const BENIGN_LOSS: u32 = 2u;
const ADVERSARIAL_CORRECT: u32 = 3u;
const BENIGN_CORRECT: u32 = 4u;
const ABNORMAL: u32 = 5u;
const GATES: u32 = 6u;
const FIRED: u32 = 7u;
const FIRED_ABOVE: u32 = 8u;
const SUMS: u32 = 9u;

// Places of the scalars in info.
const BATCH: u32 = 0u;
const CLASSES: u32 = 2u;
const GATE_KIND: u32 = 4u;
const FACTOR: u32 = 6u;
const STRIDE: u32 = 8u;
const BENIGN_MEAN: u32 = 10u;
const ADVERSARIAL_MEAN: u32 = 12u;
const W1: u32 = 14u;
const W2: u32 = 16u;
const WEIGHTED: u32 = 18u;
const LOSS: u32 = 20u;
const NEW_SUMS: u32 = 22u;
const ADVERSARIAL_GRADIENT: u32 = 24u;
const BENIGN_GRADIENT: u32 = 26u;

var<workgroup> lanes: array<array<f32, SUMS>, WORKGROUP>;
var<workgroup> extra_lanes: array<f32, WORKGROUP>;

// Of an example's class in every loss.
fn weight_of(label: u32) -> f32 {
    if info[WEIGHTED] == 0u {
        return 1.0;
    }
    return weights[label];
}

// Which logits a row function reads: storage buffers cannot be passed on every API.
const OF_ADVERSARIAL: u32 = 0u;
const OF_BENIGN: u32 = 1u;
const OF_START: u32 = 2u;

fn logit(which: u32, i: u32) -> f32 {
    switch which {
        case OF_ADVERSARIAL: { return adversarial[i]; }
        case OF_BENIGN: { return benign[i]; }
        default: { return start[i]; }
    }
}

struct Row {
    // Largest logit and the logarithm of the sum of exp(logit - largest).
    largest: f32,
    log_sum: f32,
    // Soft-label cross-entropy times the class's weight, and hard-label cross-entropy.
    soft: f32,
    hard: f32,
    correct: f32,
}

fn read_row(which: u32, row: u32, classes: u32, label: u32, factor: f32) -> Row {
    let first = row * classes;
    var largest = logit(which, first);
    var best = 0u;
    var total = 0.0;
    for (var k = 0u; k < classes; k++) {
        let z = logit(which, first + k);
        total += z;
        if z > largest {
            largest = z;
            best = k;
        }
    }
    var sum = 0.0;
    for (var k = 0u; k < classes; k++) {
        sum += exp(logit(which, first + k) - largest);
    }
    let log_sum = log(sum);
    let norm = largest + log_sum;
    let truth = logit(which, first + label);
    let rest = (1.0 - factor) / f32(classes - 1u);
    let soft = norm - factor * truth - rest * (total - truth);
    return Row(largest, log_sum, weight_of(label) * soft, norm - truth, select(0.0, 1.0, best == label));
}

fn above(x: f32) -> f32 {
    return select(0.0, 1.0, x > 0.0);
}

// Whether every example has a gate; otherwise there is one for the batch, which looks at mean losses.
fn gate_is_per_example(kind: u32) -> bool {
    return kind == GATE_EXAMPLE;
}

// How much the terms of the constraint count where a benign loss deviates from last epoch's mean: 0 where the gate does
// not fire.
fn gate_factor(kind: u32, deviation: f32, stride: f32) -> f32 {
    return select(0.0, 1.0, kind != GATE_NONE && abs(deviation) > stride);
}

// What a gate adds to the loss, and its derivatives by the two losses.
struct Terms {
    fired: f32,
    // Whether it fired with the benign loss above last epoch's mean.
    fired_above: f32,
    extra: f32,
    adversarial_slope: f32,
    benign_slope: f32,
}

// Of the losses of an example, or of the means of the batch.
fn gate_terms(adversarial_loss: f32, benign_loss: f32) -> Terms {
    let deviation = benign_loss - bitcast<f32>(info[BENIGN_MEAN]);
    let distance = adversarial_loss - bitcast<f32>(info[ADVERSARIAL_MEAN]);
    let factor = gate_factor(info[GATE_KIND], deviation, bitcast<f32>(info[STRIDE]));
    // A product with 0 would keep what is not a number.
    if factor == 0.0 {
        return Terms(0.0, 0.0, 0.0, 0.0, 0.0);
    }
    let w1 = factor * bitcast<f32>(info[W1]);
    let w2 = factor * bitcast<f32>(info[W2]);
    return Terms(
        1.0,
        above(deviation),
        w1 * abs(distance) + w2 * abs(deviation),
        w1 * sign(distance),
        w2 * sign(deviation),
    );
}

@compute @workgroup_size(WORKGROUP, 1, 1)
fn main(@builtin(local_invocation_index) local: u32) {
    let batch = info[BATCH];
    let classes = info[CLASSES];
    let per_example = gate_is_per_example(info[GATE_KIND]);
    let per_batch = info[GATE_KIND] != GATE_NONE && !per_example;
    let factor = bitcast<f32>(info[FACTOR]);
    let examples = f32(batch);

    for (var s = 0u; s < SUMS; s++) {
        lanes[local][s] = 0.0;
    }
    extra_lanes[local] = 0.0;
    for (var row = local; row < batch; row += WORKGROUP) {
        let label = u32(labels[row]);
        let adv = read_row(OF_ADVERSARIAL, row, classes, label, factor);
        let ben = read_row(OF_BENIGN, row, classes, label, factor);
        let before = read_row(OF_START, row, classes, label, factor);
        lanes[local][EXAMPLES] += 1.0;
        lanes[local][ADVERSARIAL_LOSS] += adv.soft;
        lanes[local][BENIGN_LOSS] += ben.soft;
        lanes[local][ADVERSARIAL_CORRECT] += adv.correct;
        lanes[local][BENIGN_CORRECT] += ben.correct;
        lanes[local][ABNORMAL] += above(before.hard - adv.hard);
        if per_example {
            let terms = gate_terms(adv.soft, ben.soft);
            lanes[local][GATES] += 1.0;
            lanes[local][FIRED] += terms.fired;
            lanes[local][FIRED_ABOVE] += terms.fired_above;
            extra_lanes[local] += terms.extra;
        }
    }
    workgroupBarrier();
    for (var width = WORKGROUP / 2u; width > 0u; width /= 2u) {
        if local < width {
            for (var s = 0u; s < SUMS; s++) {
                lanes[local][s] += lanes[local + width][s];
            }
            extra_lanes[local] += extra_lanes[local + width];
        }
        workgroupBarrier();
    }

    let mean_adversarial = lanes[0][ADVERSARIAL_LOSS] / examples;
    let mean_benign = lanes[0][BENIGN_LOSS] / examples;
    let batch_terms = gate_terms(mean_adversarial, mean_benign);
    if local == 0u {
        var extra = extra_lanes[0] / examples;
        if per_batch {
            extra = batch_terms.extra;
        }
        let new_sums = info[NEW_SUMS];
        outputs[info[LOSS]] = mean_adversarial + extra;
        for (var s = 0u; s < SUMS; s++) {
            outputs[new_sums + s] = sums[s] + lanes[0][s];
        }
        if per_batch {
            outputs[new_sums + GATES] = sums[GATES] + 1.0;
            outputs[new_sums + FIRED] = sums[FIRED] + batch_terms.fired;
            outputs[new_sums + FIRED_ABOVE] = sums[FIRED_ABOVE] + batch_terms.fired_above;
        }
    }

    for (var row = local; row < batch; row += WORKGROUP) {
        let label = u32(labels[row]);
        let adv = read_row(OF_ADVERSARIAL, row, classes, label, factor);
        let ben = read_row(OF_BENIGN, row, classes, label, factor);
        var terms = batch_terms;
        if per_example {
            terms = gate_terms(adv.soft, ben.soft);
        }
        let adversarial_weight = (1.0 + terms.adversarial_slope) * weight_of(label);
        let benign_weight = terms.benign_slope * weight_of(label);
        let rest = (1.0 - factor) / f32(classes - 1u);
        for (var k = 0u; k < classes; k++) {
            let i = row * classes + k;
            let goal = select(rest, factor, k == label);
            outputs[info[ADVERSARIAL_GRADIENT] + i] =
                adversarial_weight * (exp(adversarial[i] - adv.largest - adv.log_sum) - goal) / examples;
            outputs[info[BENIGN_GRADIENT] + i] =
                benign_weight * (exp(benign[i] - ben.largest - ben.log_sum) - goal) / examples;
        }
    }
}
