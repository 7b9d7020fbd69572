//! What happens to pictures on a line without an attacker: noise, blur, light, compression, things in the way, at five severities.
//! Definitions and constants of the common corruptions (Hendrycks and Dietterich, *Benchmarking neural network robustness to
//! common corruptions and perturbations*, ICLR 2019): those for CIFAR up to 64 pixels, those for ImageNet above. Occlusion is
//! ours.

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageBuffer, Luma, imageops};
use rayon::prelude::*;
use steadfast_infer::largest;

use crate::attack::norm::normal;
use crate::data::image::decode;
use crate::data::{ImageShape, Images};
use crate::random::{Key, unit};

/// Severities.
pub const SEVERITIES: usize = 5;
/// The longest side for which the constants of CIFAR hold.
const SMALL: usize = 64;
/// Stream of random keys below the seed.
const STREAM: u32 = 0xC0DE;

/// A condition.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Condition {
    /// Normal noise of a standard deviation.
    GaussianNoise,
    /// Poisson noise: so many photons at full brightness.
    ShotNoise,
    /// Gaussian blur of a standard deviation in pixels.
    Blur,
    /// Value (of hue, saturation and value) plus this.
    Brightness,
    /// Distance from the channel's mean times this.
    Contrast,
    /// JPEG of a quality.
    Jpeg,
    /// A grey square with a side of this share of the shorter side of the image, at a random place.
    Occlusion,
}

/// All of them, by the names of the report.
pub const ALL: [(Condition, &str); 7] = [
    (Condition::GaussianNoise, "gaussian noise"),
    (Condition::ShotNoise, "shot noise"),
    (Condition::Blur, "blur"),
    (Condition::Brightness, "brightness"),
    (Condition::Contrast, "contrast"),
    (Condition::Jpeg, "jpeg"),
    (Condition::Occlusion, "occlusion"),
];

impl Condition {
    /// The constants of the five severities.
    fn constants(self, shape: ImageShape) -> [f32; SEVERITIES] {
        match (self, shape.height.max(shape.width) <= SMALL) {
            (Self::GaussianNoise, true) => [0.04, 0.06, 0.08, 0.09, 0.10],
            (Self::GaussianNoise, false) => [0.08, 0.12, 0.18, 0.26, 0.38],
            (Self::ShotNoise, true) => [500.0, 250.0, 100.0, 75.0, 50.0],
            (Self::ShotNoise, false) => [60.0, 25.0, 12.0, 5.0, 3.0],
            (Self::Blur, true) => [0.4, 0.6, 0.7, 0.8, 1.0],
            (Self::Blur, false) => [1.0, 2.0, 3.0, 4.0, 6.0],
            (Self::Brightness, true) => [0.05, 0.1, 0.15, 0.2, 0.3],
            (Self::Brightness, false) => [0.1, 0.2, 0.3, 0.4, 0.5],
            (Self::Contrast, true) => [0.75, 0.5, 0.4, 0.3, 0.15],
            (Self::Contrast, false) => [0.4, 0.3, 0.2, 0.1, 0.05],
            (Self::Jpeg, true) => [80.0, 65.0, 58.0, 50.0, 40.0],
            (Self::Jpeg, false) => [25.0, 18.0, 15.0, 10.0, 7.0],
            (Self::Occlusion, _) => [0.1, 0.2, 0.3, 0.4, 0.5],
        }
    }

    /// Images under this condition, at a severity from 1 to 5.
    pub fn apply(self, images: &Images, severity: usize, key: Key) -> Images {
        let constant = self.constants(images.shape)[severity - 1];
        let len = images.shape.len();
        let mut changed = images.clone();
        changed.bytes.par_chunks_exact_mut(len).enumerate().for_each(|(index, bytes)| {
            let key = key.child(STREAM + severity as u32, index as u32);
            self.change(bytes, images.shape, constant, key);
        });
        changed
    }

    /// Changes one image.
    fn change(self, bytes: &mut [u8], shape: ImageShape, constant: f32, key: Key) {
        match self {
            Self::GaussianNoise => {
                noisy(bytes, key, |value, words| value + constant * normal(words));
            }
            Self::ShotNoise => {
                noisy(bytes, key, |value, words| poisson(value * constant, unit(words[0])) / constant);
            }
            Self::Blur => blur(bytes, shape, constant),
            Self::Brightness => brighten(bytes, shape, constant),
            Self::Contrast => contrast(bytes, shape, constant),
            Self::Jpeg => jpeg(bytes, shape, constant as u8),
            Self::Occlusion => occlude(bytes, shape, constant, key),
        }
    }
}

/// Every value drawn anew from what it was and two random words.
fn noisy(bytes: &mut [u8], key: Key, draw: impl Fn(f32, [u32; 2]) -> f32) {
    for (pixel, byte) in bytes.iter_mut().enumerate() {
        *byte = to_byte(draw(of_byte(*byte), key.words(0, pixel as u32)));
    }
}

fn blur(bytes: &mut [u8], shape: ImageShape, deviation: f32) {
    let (width, height) = (shape.width as u32, shape.height as u32);
    for plane in bytes.chunks_exact_mut(shape.height * shape.width) {
        let image = ImageBuffer::<Luma<u8>, _>::from_raw(width, height, plane.to_vec());
        let blurred = imageops::blur(&image.expect("a whole plane"), deviation);
        plane.copy_from_slice(blurred.as_raw());
    }
}

/// The same hue and saturation at another value; black has none and becomes grey.
fn brighten(bytes: &mut [u8], shape: ImageShape, added: f32) {
    let plane = shape.height * shape.width;
    for pixel in 0..plane {
        let at = |channel: usize| channel * plane + pixel;
        let value = largest((0..shape.channels).map(|c| of_byte(bytes[at(c)])));
        let brighter = (value + added).min(1.0);
        for channel in 0..shape.channels {
            let old = of_byte(bytes[at(channel)]);
            let new = if value > 0.0 { old / value * brighter } else { brighter };
            bytes[at(channel)] = to_byte(new);
        }
    }
}

fn contrast(bytes: &mut [u8], shape: ImageShape, factor: f32) {
    for plane in bytes.chunks_exact_mut(shape.height * shape.width) {
        let mean = plane.iter().map(|&byte| of_byte(byte)).sum::<f32>() / plane.len() as f32;
        plane.iter_mut().for_each(|byte| *byte = to_byte((of_byte(*byte) - mean) * factor + mean));
    }
}

fn jpeg(bytes: &mut [u8], shape: ImageShape, quality: u8) {
    let plane = shape.height * shape.width;
    let colour = if shape.channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
    let interleaved: Vec<u8> =
        (0..plane).flat_map(|pixel| bytes.iter().skip(pixel).step_by(plane).copied()).collect();
    let mut file = Vec::new();
    JpegEncoder::new_with_quality(&mut file, quality)
        .encode(&interleaved, shape.width as u32, shape.height as u32, colour)
        .expect("an image in memory is encoded");
    let decoded = decode(&file, "an image in memory".as_ref(), None, 16).expect("was just encoded");
    bytes.copy_from_slice(&decoded.planes(shape.channels));
}

/// A grey square with a side of this share of the shorter side of the image, at a random place.
fn occlude(bytes: &mut [u8], shape: ImageShape, share: f32, key: Key) {
    let side = ((share * shape.height.min(shape.width) as f32).round() as usize).max(1);
    let [down, right] = key.words(0, 0).map(unit);
    let top = (down * (shape.height - side + 1) as f32) as usize;
    let left = (right * (shape.width - side + 1) as f32) as usize;
    for plane in bytes.chunks_exact_mut(shape.height * shape.width) {
        (top..top + side).for_each(|row| plane[row * shape.width + left..][..side].fill(128));
    }
}

fn of_byte(byte: u8) -> f32 {
    f32::from(byte) / 255.0
}

fn to_byte(value: f32) -> u8 {
    (value * 255.0).round().clamp(0.0, 255.0) as u8
}

/// A Poisson number of mean `mean`, by inversion.
fn poisson(mean: f32, uniform: f32) -> f32 {
    let (mean, uniform) = (f64::from(mean), f64::from(uniform));
    let mut chance = (-mean).exp();
    let (mut below, mut count) = (chance, 0.0);
    // Beyond any mean that a pixel has here, rounding could keep the sum below the number for ever.
    while below < uniform && count < 2000.0 {
        count += 1.0;
        chance *= mean / count;
        below += chance;
    }
    count as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::synthetic;

    /// Root of the mean square difference between images, in units of [0, 1].
    fn distance(one: &Images, other: &Images) -> f32 {
        let squares = one.bytes.iter().zip(&other.bytes).map(|(a, b)| (of_byte(*a) - of_byte(*b)).powi(2));
        (squares.sum::<f32>() / one.bytes.len() as f32).sqrt()
    }

    #[test]
    fn every_condition_grows_with_its_severity_and_repeats() {
        let images = synthetic::images(Key::new(1), 32, 6);
        for (condition, name) in ALL {
            let at = |severity| condition.apply(&images, severity, Key::new(2));
            let distances: Vec<f32> =
                (1..=SEVERITIES).map(|severity| distance(&images, &at(severity))).collect();
            assert!(distances[0] > 0.001 && distances.is_sorted(), "{name}: {distances:?}");
            assert_eq!(at(3).bytes, at(3).bytes, "{name}");
        }
    }

    #[test]
    fn noise_has_its_mean_and_deviation() {
        let shape = ImageShape { channels: 1, height: 64, width: 64 };
        let grey = Images::new(shape, vec![102; 4 * 4096], vec![0; 4]);
        // 0.4 at 75 photons: a variance of 0.4 / 75.
        for (condition, severity, deviation) in
            [(Condition::GaussianNoise, 3, 0.08), (Condition::ShotNoise, 4, (0.4f32 / 75.0).sqrt())]
        {
            let noisy = condition.apply(&grey, severity, Key::new(3));
            let mean = noisy.bytes.iter().map(|&byte| of_byte(byte)).sum::<f32>() / noisy.bytes.len() as f32;
            assert!((mean - 0.4).abs() < 0.003, "{condition:?}: {mean}");
            let seen = distance(&grey, &noisy);
            assert!((seen / deviation - 1.0).abs() < 0.05, "{condition:?}: {seen} for {deviation}");
        }
    }

    #[test]
    fn brightness_keeps_the_hue_and_contrast_the_mean() {
        let shape = ImageShape { channels: 3, height: 1, width: 2 };
        let images = Images::new(shape, vec![100, 0, 50, 0, 25, 0], vec![0]);
        let brighter = Condition::Brightness.apply(&images, 4, Key::new(0));
        // 0.2 is 51 levels: the first pixel goes from 100 to 151, the black one to grey.
        assert_eq!(brighter.bytes, [151, 51, 76, 51, 38, 51]);
        let flatter = Condition::Contrast.apply(&images, 2, Key::new(0));
        assert_eq!(flatter.bytes, [75, 25, 38, 13, 19, 6]);
    }
}
