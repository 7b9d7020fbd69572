//! Which classes and which qualities of images go with small margins: what a quality engineer can act on.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use steadfast_infer::argmax;

use crate::data::Images;
use crate::data::image::decode;
use crate::files;

/// Of fewer images nothing is said.
const LEAST: usize = 30;
/// Groups that the images are cut into by a quality.
const GROUPS: usize = 3;

/// Margins, and accuracies without and with the strongest attack, by class and by quality.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Qualities {
    /// The strongest attack that was measured, if there was one.
    pub attack: Option<String>,
    /// One group for every class, in label order.
    pub classes: Vec<Group>,
    /// The qualities.
    pub qualities: Vec<Quality>,
}

/// A quality of images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// `brightness` (mean), `contrast` (standard deviation), both in [0, 1]; `sharpness` (variance of the Laplacian over the variance);
    /// `defect size` (share of the image, by its mask).
    pub name: String,
    /// Rank correlation with the margin, both ranked within each class (Spearman).
    pub correlation: f64,
    /// How probable one as large is without any connection.
    pub p_value: f64,
    /// Thirds of the images, from low to high.
    pub groups: Vec<Group>,
}

/// Some of the images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// The lowest and the highest quality in it; zero for a class.
    pub range: [f32; 2],
    /// Images.
    pub images: u64,
    /// Share classified correctly.
    pub accuracy: f64,
    /// Share classified correctly under the attack.
    pub robust_accuracy: Option<f64>,
    /// Median of the margins: the true class's logit less the best other one.
    pub margin: f32,
}

/// What is known of an image.
struct Measured {
    label: usize,
    margin: f32,
    right: bool,
    robust: Option<bool>,
}

/// Of images with their clean logits `[images][classes]`, and which of them withstood the attack of this name; `None` for few images.
pub fn qualities(
    images: &Images,
    logits: &[Vec<f32>],
    classes: usize,
    attacked: Option<(&str, &[bool])>,
) -> Option<Qualities> {
    if images.len() < LEAST {
        return None;
    }
    let measured = |(index, logits): (usize, &Vec<f32>)| {
        let label = images.labels[index] as usize;
        let others = logits.iter().enumerate().filter(|(class, _)| *class != label).map(|(_, logit)| *logit);
        Measured {
            label,
            margin: logits[label] - steadfast_infer::largest(others),
            right: argmax(logits) == label,
            robust: attacked.map(|(_, standing)| standing[index]),
        }
    };
    let all: Vec<Measured> = logits.iter().enumerate().map(measured).collect();
    let of_class =
        |class: usize| -> Vec<usize> { (0..all.len()).filter(|&i| all[i].label == class).collect() };
    let of_images: Vec<[f32; 3]> =
        (0..images.len()).into_par_iter().map(|index| of_image(images, index)).collect();
    let plain = ["brightness", "contrast", "sharpness"].into_iter().enumerate().map(|(place, name)| {
        quality(name, &all, of_images.iter().map(|values| Some(values[place])).collect())
    });
    let sizes: Vec<Option<f32>> = images.files.par_iter().map(|file| mask_share(file)).collect();
    let known = sizes.iter().flatten().count() >= LEAST;
    let sizes = known.then(|| quality("defect size", &all, sizes));
    Some(Qualities {
        attack: attacked.map(|(name, _)| name.to_string()),
        classes: (0..classes).map(|class| group(&all, &of_class(class), [0.0; 2])).collect(),
        qualities: plain.chain(sizes).collect(),
    })
}

fn quality(name: &str, all: &[Measured], values: Vec<Option<f32>>) -> Quality {
    let value = |index: usize| values[index].unwrap_or(0.0);
    let mut known: Vec<usize> = (0..values.len()).filter(|&index| values[index].is_some()).collect();
    known.sort_by(|&one, &other| value(one).total_cmp(&value(other)).then(one.cmp(&other)));
    let thirds = (0..GROUPS).map(|third| {
        let members = &known[third * known.len() / GROUPS..(third + 1) * known.len() / GROUPS];
        let ends = [members.first(), members.last()].map(|end| end.map_or(0.0, |&index| value(index)));
        group(all, members, ends)
    });
    let of = |index: usize| (all[index].label, value(index));
    let (qualities, margins): (Vec<_>, Vec<_>) =
        known.iter().map(|&index| (of(index), (all[index].label, all[index].margin))).unzip();
    let correlation = correlation(&ranks(&qualities), &ranks(&margins));
    let deviations = correlation * ((known.len().max(2) - 1) as f64).sqrt();
    Quality {
        name: name.to_string(),
        correlation,
        // Asymptotically normal.
        p_value: libm::erfc(deviations.abs() / std::f64::consts::SQRT_2),
        groups: thirds.collect(),
    }
}

fn group(all: &[Measured], members: &[usize], range: [f32; 2]) -> Group {
    let share = |count: usize| count as f64 / members.len().max(1) as f64;
    let mut margins: Vec<f32> = members.iter().map(|&index| all[index].margin).collect();
    margins.sort_by(f32::total_cmp);
    let robust: Vec<bool> = members.iter().filter_map(|&index| all[index].robust).collect();
    Group {
        range,
        images: members.len() as u64,
        accuracy: share(members.iter().filter(|&&index| all[index].right).count()),
        robust_accuracy: (!robust.is_empty())
            .then(|| share(robust.iter().filter(|standing| **standing).count())),
        margin: margins.get(margins.len() / 2).copied().unwrap_or(0.0),
    }
}

/// The rank of every value within its class, 0 to 1; equal values have the middle of their ranks.
fn ranks(values: &[(usize, f32)]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&one, &other| {
        values[one].0.cmp(&values[other].0).then(values[one].1.total_cmp(&values[other].1))
    });
    let mut ranks = vec![0.5; values.len()];
    for class in order.chunk_by(|&one, &other| values[one].0 == values[other].0) {
        let mut before = 0;
        for equal in class.chunk_by(|&one, &other| values[one].1 == values[other].1) {
            let middle = (before as f64 + equal.len() as f64 / 2.0) / class.len() as f64;
            equal.iter().for_each(|&index| ranks[index] = middle);
            before += equal.len();
        }
    }
    ranks
}

/// Pearson's; 0 where one of them never changes. The mean of ranks is one half.
fn correlation(one: &[f64], other: &[f64]) -> f64 {
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - 0.5) * (b - 0.5)).sum::<f64>();
    let size = (product(one, one) * product(other, other)).sqrt();
    if size > 0.0 { product(one, other) / size } else { 0.0 }
}

/// Brightness, contrast and sharpness of the mean of the channels.
fn of_image(images: &Images, index: usize) -> [f32; 3] {
    let (width, height) = (images.shape.width, images.shape.height);
    let planes: Vec<&[u8]> = images.image(index).chunks(width * height).collect();
    let grey = |pixel: usize| {
        planes.iter().map(|plane| f32::from(plane[pixel])).sum::<f32>() / (255 * planes.len()) as f32
    };
    let grey: Vec<f32> = (0..width * height).map(grey).collect();
    let moments = |values: &[f32]| {
        let count = values.len().max(1) as f32;
        let mean = values.iter().sum::<f32>() / count;
        (mean, values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / count)
    };
    let (brightness, variance) = moments(&grey);
    let inside = (1..height.saturating_sub(1))
        .flat_map(|row| (1..width.saturating_sub(1)).map(move |column| row * width + column));
    let laplacian: Vec<f32> = inside
        .map(|at| grey[at - 1] + grey[at + 1] + grey[at - width] + grey[at + width] - 4.0 * grey[at])
        .collect();
    let (_, sharp) = moments(&laplacian);
    [brightness, variance.sqrt(), if variance > 0.0 { sharp / variance } else { 0.0 }]
}

/// The share of an image that its mask covers, where `ground_truth/CLASS/NAME_mask.png` lies beside the folder of its part, as in MVTec AD.
fn mask_share(file: &Path) -> Option<f32> {
    let class = file.parent()?;
    let root = class.parent()?.parent()?;
    let name = format!("{}_mask.png", file.file_stem()?.to_string_lossy());
    let mask: PathBuf = root.join(crate::data::folder::MASKS).join(class.file_name()?).join(name);
    let bytes = mask.exists().then(|| files::read(&mask).ok()).flatten()?;
    let planes = decode(&bytes, &mask, None, 8).ok()?.planes(1);
    Some(planes.iter().filter(|&&pixel| pixel > 127).count() as f32 / planes.len().max(1) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::ImageShape;

    #[test]
    fn dark_images_with_small_margins_are_found_within_their_classes() {
        let shape = ImageShape { channels: 1, height: 6, width: 6 };
        let count = 60;
        // The classes differ in brightness and in margin; within them margins fall with the light, and not with the contrast.
        let labels: Vec<u32> = (0..count).map(|index| index % 2).collect();
        let light = |index: u32| 40 + 3 * index / 2 + 60 * (index % 2);
        let stripes = |index: u32| 2 + 3 * (index / 2 * 7 % 5);
        let pixel = |index: u32, pixel: u32| match pixel % 2 {
            0 => light(index) - stripes(index),
            _ => light(index) + stripes(index),
        };
        let bytes = (0..count).flat_map(|index| (0..36).map(move |place| pixel(index, place) as u8));
        let images = Images::new(shape, bytes.collect(), labels);
        let logits: Vec<Vec<f32>> = (0..count)
            .map(|index| {
                let margin = (index as f32 - 20.0) / 10.0 - 3.0 * (index % 2) as f32;
                if index % 2 == 0 { vec![margin, 0.0] } else { vec![0.0, margin] }
            })
            .collect();
        let standing: Vec<bool> = (0..count).map(|index| index >= 40).collect();
        let seen = qualities(&images, &logits, 2, Some(("pgd-20", &standing))).unwrap();
        let [brightness, contrast, sharpness] = &seen.qualities[..] else { panic!("{seen:?}") };
        assert!((brightness.correlation - 1.0).abs() < 1e-9 && brightness.p_value < 1e-10, "{brightness:?}");
        assert!(contrast.correlation.abs() < 0.2 && contrast.p_value > 0.05, "{contrast:?}");
        assert!(sharpness.groups.iter().all(|group| group.images == 20));
        assert_eq!((seen.classes[0].images, seen.classes[1].images), (30, 30));
        assert!(seen.classes[0].margin > seen.classes[1].margin && seen.classes[0].accuracy > 0.5);
        assert_eq!(seen.classes[0].robust_accuracy, Some(1.0 / 3.0));
        let few = images.select(&[0, 1]);
        assert_eq!(qualities(&few, &logits[..2], 2, None), None);
    }
}
