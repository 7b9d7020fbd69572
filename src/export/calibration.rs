//! The temperature that makes confidences probabilities, from the logits of the validation part (Guo, Pleiss, Sun and Weinberger,
//! *On calibration of modern neural networks*, 2017).

use steadfast_infer::{argmax, confidence};

use crate::bundle::manifest::Calibration;

/// Bins of the expected calibration error.
const BINS: usize = 15;
/// Within which the temperature is sought.
const RANGE: [f32; 2] = [0.02, 50.0];
/// Steps of the search: each leaves 62 % of the range of logarithms.
const STEPS: usize = 40;

/// The temperature of the least cross-entropy.
pub fn calibrate(logits: &[Vec<f32>], labels: &[u32]) -> Calibration {
    let loss = |log: f32| {
        let of = |(logits, &label): (&Vec<f32>, &u32)| {
            -f64::from(confidence(logits, label as usize, log.exp()).max(f32::MIN_POSITIVE).ln())
        };
        logits.iter().zip(labels).map(of).sum::<f64>()
    };
    // Cross-entropy has one minimum along the temperature: golden-section search.
    let ratio = (5.0_f32.sqrt() - 1.0) / 2.0;
    let [mut low, mut high] = RANGE.map(f32::ln);
    for _ in 0..STEPS {
        let [one, two] = [high - ratio * (high - low), low + ratio * (high - low)];
        if loss(one) <= loss(two) {
            high = two;
        } else {
            low = one;
        }
    }
    let temperature = f32::midpoint(low, high).exp();
    Calibration {
        temperature,
        images: labels.len() as u64,
        error_before: expected_error(logits, labels, 1.0),
        error_after: expected_error(logits, labels, temperature),
    }
}

/// The expected calibration error: how far confidence and accuracy are apart, in bins of equal width.
fn expected_error(logits: &[Vec<f32>], labels: &[u32], temperature: f32) -> f64 {
    let mut bins = [(0.0, 0.0); BINS];
    for (logits, &label) in logits.iter().zip(labels) {
        let class = argmax(logits);
        let confidence = f64::from(confidence(logits, class, temperature));
        let (sure, right) = &mut bins[((confidence * BINS as f64) as usize).min(BINS - 1)];
        *sure += confidence;
        *right += f64::from(u8::from(class == label as usize));
    }
    bins.iter().map(|(sure, right)| (sure - right).abs()).sum::<f64>() / labels.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_temperature_undoes_a_factor() {
        // Of two classes, the likelier is right in σ(margin) of the cases, each margin in its share.
        let (mut logits, mut labels) = (Vec::new(), Vec::new());
        for margin in [0.5_f32, 1.0, 2.0, 3.0] {
            let right = (1000.0 / (1.0 + (-margin).exp())) as u32;
            for i in 0..1000 {
                logits.push(vec![4.0 * margin, 0.0]);
                labels.push(u32::from(i >= right));
            }
        }
        let Calibration { temperature, error_before, error_after, images } = calibrate(&logits, &labels);
        assert!((temperature - 4.0).abs() < 0.02 && images == 4000, "{temperature}");
        assert!(error_before > 0.1 && error_after < 0.01, "{error_before} {error_after}");
    }
}
