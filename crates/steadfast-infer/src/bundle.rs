use alloc::string::{String, ToString};
use alloc::vec::Vec;
use alloc::{format, vec};
use core::fmt::Write;

use sha2::{Digest, Sha256};

use crate::decision::{Classification, Reason, Verdict, confidence};
use crate::distribution::{DISTRIBUTION, Distribution};
use crate::error::{Error, Result, bail};
use crate::golden::{GOLDEN_COUNT, Golden, golden_image};
use crate::manifest::Manifest;
use crate::micro::{argmax, margin};
use crate::network::Network;
use crate::weights::{StateDict, read_weights};

/// The name of the list of checksums.
pub const SUMS: &str = "SHA256SUMS";

/// A bundle whose files have passed their checks; nothing has been computed with it yet.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// What inference needs of `manifest.json`.
    pub manifest: Manifest,
    /// The weights, as the network has to be given them.
    pub weights: StateDict,
    /// The golden inputs and logits.
    pub golden: Golden,
    /// What the images of the training are like, where it was measured.
    pub distribution: Option<Distribution>,
}

impl Bundle {
    /// Reads a bundle. `file` gives the contents of a file by its name in the bundle, such as `golden/00.png`.
    ///
    /// # Errors
    /// A file that is missing, an unknown schema, a wrong checksum, weights of other shapes; the file is named.
    pub fn read(file: &mut dyn FnMut(&str) -> Result<Vec<u8>>) -> Result<Self> {
        let of = |name: &'static str| move |error: Error| Error::new(format!("{name}: {error}"));
        let manifest = Manifest::read(&file("manifest.json")?).map_err(of("manifest.json"))?;
        check_sums(file)?;
        let weights = read_weights(&file("model.safetensors")?).map_err(of("model.safetensors"))?;
        crate::weights::check_weights(&manifest.model.graph(), &weights).map_err(of("model.safetensors"))?;
        let golden = Golden::read(&file("golden.safetensors")?).map_err(of("golden.safetensors"))?;
        // Before memory is asked for: these files hold as much as the manifest claims.
        let Manifest { model, input, .. } = &manifest;
        if golden.inputs.len() != GOLDEN_COUNT * input.shape().len()
            || golden.logits.len() != GOLDEN_COUNT * model.classes
        {
            bail!("golden test failed: its inputs or logits have another size than the network's");
        }
        let distribution = match manifest.out_of_distribution {
            Some(_) => {
                Some(Distribution::read(&file(DISTRIBUTION)?).map_err(of("distribution.safetensors"))?)
            }
            None => None,
        };
        if distribution.as_ref().is_some_and(|of| of.features() != model.graph().features()) {
            bail!("{DISTRIBUTION}: of another number of features than the network's");
        }
        Ok(Self { manifest, weights, golden, distribution })
    }

    /// What logits and features of an image say.
    pub fn classification(&self, logits: &[f32], features: &[f32]) -> Classification {
        let Manifest { labels, calibration, out_of_distribution, .. } = &self.manifest;
        let (decision, class) = (self.manifest.decision(), argmax(logits));
        let known = !decision.good.is_empty();
        let distance = self.distribution.as_ref().zip(*out_of_distribution);
        let distance = distance.map(|(known, limit)| known.distance(features) / limit.threshold);
        let finite = logits.iter().all(|logit| logit.is_finite());
        let (verdict, reason) = match known.then(|| decision.verdict(logits)) {
            // Of a damaged network or input nothing is known.
            _ if finite && distance.is_some_and(|distance| distance > 1.0) => {
                (Some(Verdict::Unclear), Some(Reason::OutOfDistribution))
            }
            Some(Verdict::Unclear) => (Some(Verdict::Unclear), Some(Reason::Margin)),
            verdict => (verdict, None),
        };
        Classification {
            label: labels[class].clone(),
            confidence: confidence(logits, class, calibration.map_or(1.0, |of| of.temperature)),
            verdict,
            reason,
            margin: known.then(|| margin(logits, &decision.good)),
            distance,
        }
    }

    /// The network, after its golden test.
    ///
    /// # Errors
    /// The golden test failed.
    pub fn network(&self) -> Result<Network> {
        let Manifest { model, input, .. } = &self.manifest;
        let network = Network::new(&model.graph(), self.weights.clone(), input.shape())?;
        self.golden.check_logits(&network.logits(&self.golden.inputs))?;
        Ok(network)
    }
}

/// Lower-case hexadecimal SHA-256.
pub fn sha256(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn check_sums(file: &mut dyn FnMut(&str) -> Result<Vec<u8>>) -> Result<()> {
    let list = file(SUMS)?;
    let mut names = Vec::new();
    for line in String::from_utf8_lossy(&list).lines() {
        let Some((sum, name)) = line.split_once("  ") else {
            bail!("{SUMS}: not a list of checksums; export again");
        };
        if sha256(&file(name)?) != sum {
            bail!(
                "{name}: its checksum is wrong: the file was changed or damaged; copy or export the bundle again"
            );
        }
        names.push(name.to_string());
    }
    let mut needed =
        vec!["manifest.json".to_string(), "model.safetensors".to_string(), "golden.safetensors".to_string()];
    needed.extend((0..GOLDEN_COUNT).map(golden_image));
    match needed.into_iter().find(|name| !names.contains(name)) {
        Some(missing) => bail!("{SUMS}: {missing} is not listed; export again"),
        None => Ok(()),
    }
}
