// The gradient of a normalised input through mean and variance of the batch: scale / s * (g - mean(g) - n * mean(g * n)),
// s the standard deviation, n the normalised input, g the gradient where the output is positive or, if nothing was cut,
// everywhere; and g itself, the gradient of a residual, if it is wanted.
//
// input, gradient, output, found, masked: f32 [pixels, channels] (masked may be of another size if it is not wanted).
// mean, variance, scale: f32 [channels]. shift_gradient, scale_gradient: f32 [channels], sums of g and of g * n.
// info: u64 values, so value k is info[2k]: 0 values, 1 channels, 2 cut (0, 1), 3 masked wanted (0, 1), 4 epsilon (bits).

@group(0) @binding(0) var<storage, read_write> input: array<f32>;
@group(0) @binding(1) var<storage, read_write> gradient: array<f32>;
@group(0) @binding(2) var<storage, read_write> output: array<f32>;
@group(0) @binding(3) var<storage, read_write> mean: array<f32>;
@group(0) @binding(4) var<storage, read_write> variance: array<f32>;
@group(0) @binding(5) var<storage, read_write> scale: array<f32>;
@group(0) @binding(6) var<storage, read_write> shift_gradient: array<f32>;
@group(0) @binding(7) var<storage, read_write> scale_gradient: array<f32>;
@group(0) @binding(8) var<storage, read_write> found: array<f32>;
@group(0) @binding(9) var<storage, read_write> masked: array<f32>;
@group(0) @binding(10) var<storage, read> info: array<u32>;

const WORKGROUP: u32 = 256u;

@compute @workgroup_size(256, 1, 1)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WORKGROUP + local;
    let values = info[0];
    if i >= values {
        return;
    }
    let channels = info[2];
    let channel = i % channels;
    let pixels = f32(values / channels);
    var g = gradient[i];
    if info[4] == 1u && output[i] <= 0.0 {
        g = 0.0;
    }
    if info[6] == 1u {
        masked[i] = g;
    }
    let deviation = sqrt(variance[channel] + bitcast<f32>(info[8]));
    let normalised = (input[i] - mean[channel]) / deviation;
    let centred = g - shift_gradient[channel] / pixels - normalised * scale_gradient[channel] / pixels;
    found[i] = scale[channel] / deviation * centred;
}
