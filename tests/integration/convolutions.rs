//! What chooses between the shaders of a convolution: measured tiles, verification of an adapter, the switches.

use std::path::Path;
use std::process::Output;

use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::common::{draw_folders, steadfast, str, text};

/// A short training on the software adapter with a cache of its own: how it ended, and its weights.
fn train(
    data: &Path,
    cache: &Path,
    run: &str,
    switches: &[(&str, &str)],
) -> (Output, Vec<(String, Vec<u8>)>) {
    let out = cache.join(run);
    let mut command = steadfast();
    // The drivers' own cache of compiled shaders stays where it is.
    if std::env::var_os("MESA_SHADER_CACHE_DIR").is_none() {
        let home = std::env::var_os("HOME").expect("a home");
        command.env("MESA_SHADER_CACHE_DIR", Path::new(&home).join(".cache"));
    }
    command.env("XDG_CACHE_HOME", cache).envs(switches.iter().copied()).args([
        "train",
        "--data",
        str(data),
        "--out",
        str(&out),
        "--device",
        "software",
        "--arch",
        "small-cnn",
        "--width",
        "8",
        "--batch-size",
        "8",
        "--epochs",
        "1",
        "--seed",
        "3",
    ]);
    let output = command.output().expect("the binary starts");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let checkpoint = std::fs::read(out.join("last.safetensors")).expect("a checkpoint");
    let tensors = SafeTensors::deserialize(&checkpoint).expect("safetensors").tensors();
    // Without the metadata, which hold seconds.
    let mut values: Vec<_> =
        tensors.into_iter().map(|(name, tensor)| (name, tensor.data().to_vec())).collect();
    values.sort();
    (output, values)
}

fn adapters(cache: &Path) -> Value {
    let kept =
        std::fs::read(cache.join("steadfast/adapters.json")).expect("what is known of the adapter is kept");
    serde_json::from_slice(&kept).expect("JSON")
}

/// The entry of the only adapter.
fn only(adapters: &mut Value) -> &mut Value {
    let adapters = adapters.as_object_mut().expect("adapters by name");
    assert_eq!(adapters.len(), 1);
    adapters.values_mut().next().expect("one")
}

#[test]
fn tiles_are_measured_once_and_change_no_bit() {
    let folder = tempfile::tempdir().unwrap();
    let data = draw_folders(&folder.path().join("data"), 12, (24, 12));
    let cache = folder.path();
    let (_, default) = train(&data, cache, "default", &[]);
    let mut known = adapters(cache);
    assert_eq!(only(&mut known)["trusted"], true);
    assert_eq!(only(&mut known)["tiles"], json!({}), "the software adapter takes the default");

    let (said, tuned) = train(&data, cache, "tuned", &[("STEADFAST_TUNER", "on")]);
    assert_eq!(text(&said.stderr).matches("timing tiles").count(), 1, "{}", text(&said.stderr));
    assert!(tuned == default, "measured tiles change the result");
    let mut known = adapters(cache);
    let tiles = only(&mut known)["tiles"].as_object_mut().expect("tiles by shape");
    assert!(tiles.len() >= 8, "{tiles:#?}");
    for tile in tiles.values_mut() {
        *tile = json!({ "columns": 2, "vectors": 1 });
    }
    std::fs::write(cache.join("steadfast/adapters.json"), known.to_string()).unwrap();
    let (said, forced) = train(&data, cache, "forced", &[("STEADFAST_TUNER", "on")]);
    assert!(!text(&said.stderr).contains("timing tiles"));
    assert!(forced == default, "other tiles change the result");
    assert_eq!(adapters(cache), known, "what is known is not measured again");
}

#[test]
fn an_adapter_that_is_not_verified_takes_burns_convolutions_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let data = draw_folders(&folder.path().join("data"), 12, (24, 12));
    let cache = folder.path();
    let (own, weights) = train(&data, cache, "own", &[]);
    assert!(!text(&own.stderr).contains("warning"), "{}", text(&own.stderr));
    let mut known = adapters(cache);
    only(&mut known)["trusted"] = json!(false);
    std::fs::write(cache.join("steadfast/adapters.json"), known.to_string()).unwrap();
    let (refused, burns) = train(&data, cache, "refused", &[]);
    let said = text(&refused.stderr);
    assert_eq!(said.matches("the convolution shaders give wrong results here").count(), 1, "{said}");
    assert!(burns != weights, "sums in another order, unless the same shaders ran");
    let (asked, switched) = train(&data, cache, "switched", &[("STEADFAST_CONVOLUTIONS", "burn")]);
    assert!(switched == burns && !text(&asked.stderr).contains("warning"));
    // A cache that cannot be read is found out again.
    std::fs::write(cache.join("steadfast/adapters.json"), "{ half").unwrap();
    assert!(train(&data, cache, "again", &[]).1 == weights);
    assert_eq!(only(&mut adapters(cache))["trusted"], true);
}

#[test]
fn a_switch_that_means_nothing_is_refused() {
    for (switch, value) in [("STEADFAST_CONVOLUTIONS", "cudnn"), ("STEADFAST_TUNER", "yes")] {
        let output = steadfast()
            .env(switch, value)
            .args(["inspect", "exports/reference", "exports/reference/golden"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        let said = text(&output.stderr);
        assert!(said.starts_with(&format!("error: {switch}={value}: must be one of")), "{said}");
    }
}
