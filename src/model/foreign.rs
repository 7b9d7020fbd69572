//! Weights as other programs write them: prefixes of wrappers, other names and number formats, mean and standard deviation
//! inside the network.

use std::path::Path;

use burn::tensor::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use steadfast_infer::graph::BATCH_NORM_EPSILON;
use steadfast_infer::{BATCHES_TRACKED, NORMALIZE};

use super::state_dict::{StateDict, Values};
use crate::bail;
use crate::error::{At, Error, Result};
use crate::files::{self, printable};

/// Beginnings of names in checkpoints of this program and of others, which say nothing about the layer.
const PREFIXES: [&str; 6] = ["model.", "module.", "backbone.", "state_dict.", "net.", "_orig_mod."];
/// What else the tensors of our own checkpoints are.
const NOT_WEIGHTS: [&str; 6] = ["learner.", "velocity.", "second_moment.", "method.", "centre.", "state."];
/// What RobustBench's and other models call the mean and the standard deviation that they keep inside.
const NORMALISATIONS: [[&str; 2]; 4] = [
    ["mu", "sigma"],
    ["mean", "std"],
    ["normalize.mean", "normalize.std"],
    ["normalizer.mean", "normalizer.std"],
];
/// Mean and standard deviation of the channels that torchvision's and timm's networks are trained with.
const IMAGENET: [[f32; 3]; 2] = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]];

/// Weights in our names, and the normalisation that their network does first.
pub struct Foreign {
    /// Without a normalisation.
    pub weights: StateDict,
    /// Mean and standard deviation of every channel.
    pub normalisation: Option<[Vec<f32>; 2]>,
}

/// Reads a file of weights.
///
/// # Errors
/// It is missing, or something else: what it is and what to do is said.
pub fn read(path: &Path) -> Result<Foreign> {
    of_bytes(&files::read(path)?, path)
}

/// Of the contents of a file; `path` is named.
///
/// # Errors
/// As for [`read`].
pub fn of_bytes(bytes: &[u8], path: &Path) -> Result<Foreign> {
    if let Some(what) = other_format(bytes, path) {
        bail!("{}: {what}", printable(path));
    }
    let file = SafeTensors::deserialize(bytes).at("read", path)?;
    let mut weights = StateDict::new();
    for (name, view) in file.iter() {
        if name.ends_with(BATCHES_TRACKED) || NOT_WEIGHTS.iter().any(|other| name.starts_with(other)) {
            continue;
        }
        let mut short = name;
        while let Some(rest) = PREFIXES.iter().find_map(|prefix| short.strip_prefix(prefix)) {
            short = rest;
        }
        let data = floats(view.dtype(), view.data()).ok_or_else(|| {
            Error::new(format!("{}: {name} is {:?}; save it as float32", printable(path), view.dtype()))
        })?;
        // Torchvision and timm call the shortcut `downsample` and the last layer `fc`.
        let ours = short.replace(".downsample.", ".shortcut.");
        weights.insert(ours, Values { shape: view.shape().to_vec(), data });
    }
    // WideResNets call their last layer so, too.
    let torchvision = weights.contains_key("fc.weight") && weights.contains_key("layer1.0.conv1.weight");
    let normalisation = normalisation(&mut weights, torchvision);
    for end in ["weight", "bias"] {
        if let Some(values) = torchvision.then(|| weights.remove(&format!("fc.{end}"))).flatten() {
            weights.insert(format!("linear.{end}"), values);
        }
    }
    Ok(Foreign { weights, normalisation })
}

fn normalisation(weights: &mut StateDict, torchvision: bool) -> Option<[Vec<f32>; 2]> {
    for names in NORMALISATIONS {
        if names.iter().all(|name| weights.contains_key(*name)) {
            return Some(names.map(|name| weights.remove(name).expect("is there").data));
        }
    }
    let colour = weights.get("conv1.weight").is_some_and(|kernel| kernel.shape.get(1) == Some(&3));
    (colour && torchvision).then(|| IMAGENET.map(|values| values.to_vec()))
}

impl Foreign {
    /// All weights: the normalisation as a BatchNorm of the images.
    pub fn into_weights(self) -> StateDict {
        let mut weights = self.weights;
        if let Some([mean, deviation]) = self.normalisation {
            let channels = mean.len();
            let variance = deviation.iter().map(|value| value * value - BATCH_NORM_EPSILON).collect();
            let tensors = [
                ("weight", vec![1.0; channels]),
                ("bias", vec![0.0; channels]),
                ("running_mean", mean),
                ("running_var", variance),
            ];
            for (name, data) in tensors {
                weights.insert(format!("{NORMALIZE}.{name}"), Values { shape: vec![channels], data });
            }
        }
        weights
    }
}

/// As float32; from float64 the nearest.
fn floats(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    Some(match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::F64 => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        _ => return None,
    })
}

/// What a file is that holds no safetensors, and what to do.
fn other_format(bytes: &[u8], path: &Path) -> Option<String> {
    let convert = "load it in Python and save `model.state_dict()` with safetensors.torch.save_file";
    let ends = |ending: &str| path.extension().is_some_and(|found| found.eq_ignore_ascii_case(ending));
    if bytes.starts_with(b"version https://git-lfs") {
        Some("a pointer of Git LFS, not the weights themselves; fetch them with `git lfs pull`".to_string())
    } else if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"\x80\x02") {
        Some(format!("a checkpoint of PyTorch, which may run code when it is read; {convert}"))
    } else if bytes.starts_with(b"\x89HDF") {
        Some("HDF5, as Keras saves it; only safetensors in PyTorch's names are read".to_string())
    } else if bytes.starts_with(b"GGUF") {
        Some("GGUF, a format for language models; only safetensors in PyTorch's names are read".to_string())
    } else if ends("onnx") {
        Some(format!("an ONNX model; weights are read from safetensors: {convert}"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    fn file(tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) -> Vec<u8> {
        let view = |(name, dtype, shape, bytes): &(&str, Dtype, &[usize], Vec<u8>)| {
            (
                name.to_string(),
                TensorView::new(*dtype, shape.to_vec(), bytes).unwrap().data().to_vec(),
                *dtype,
                shape.to_vec(),
            )
        };
        let owned: Vec<_> = tensors.iter().map(view).collect();
        let views = owned.iter().map(|(name, bytes, dtype, shape)| {
            (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize(views, None).unwrap()
    }

    #[test]
    fn wrappers_and_number_formats_are_taken_off() {
        let half = f16::from_f32(0.5).to_le_bytes().to_vec();
        let bytes = file(&[
            ("module._orig_mod.conv1.weight", Dtype::F16, &[1], half),
            (
                "model.layer1.0.downsample.0.weight",
                Dtype::BF16,
                &[1],
                bf16::from_f32(-2.0).to_le_bytes().to_vec(),
            ),
            ("state_dict.net.bn1.bias", Dtype::F64, &[1], 0.25_f64.to_le_bytes().to_vec()),
            ("bn1.num_batches_tracked", Dtype::I64, &[], 7_i64.to_le_bytes().to_vec()),
            ("mu", Dtype::F32, &[1], 0.5_f32.to_le_bytes().to_vec()),
            ("sigma", Dtype::F32, &[1], 0.25_f32.to_le_bytes().to_vec()),
        ]);
        let foreign = of_bytes(&bytes, Path::new("x.safetensors")).unwrap();
        assert_eq!(foreign.normalisation, Some([vec![0.5], vec![0.25]]));
        let weights = foreign.into_weights();
        let value = |name: &str| weights[name].data[0];
        assert_eq!(
            [value("conv1.weight"), value("layer1.0.shortcut.0.weight"), value("bn1.bias")],
            [0.5, -2.0, 0.25]
        );
        assert_eq!(weights.len(), 3 + 4);
        assert!((value("normalize.running_var") + BATCH_NORM_EPSILON - 0.0625).abs() < 1e-9);
        let whole = file(&[("conv1.weight", Dtype::I32, &[1], vec![0; 4])]);
        assert!(
            of_bytes(&whole, Path::new("x"))
                .is_err_and(|error| error.to_string().contains("conv1.weight is I32"))
        );
    }

    #[test]
    fn other_files_are_called_what_they_are() {
        for (bytes, name, words) in [
            (&b"version https://git-lfs.github.com/spec/v1\n"[..], "a.safetensors", "git lfs pull"),
            (b"PK\x03\x04xyz", "a.pt", "PyTorch"),
            (b"\x80\x02}q", "a.pth", "PyTorch"),
            (b"\x08\x07", "a.onnx", "ONNX"),
            (b"\x89HDF\r\n", "a.h5", "HDF5"),
        ] {
            let error = of_bytes(bytes, Path::new(name)).err().unwrap().to_string();
            assert!(error.contains(words) && error.contains(name), "{error}");
        }
    }
}
