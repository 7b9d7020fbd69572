//! Every shader on the software adapter against its reference, and through naga to every API.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use steadfast::batch::Loader;
use steadfast::data::{ImageShape, Images};
use steadfast::kernel::convolve::{convolve, verify};
use steadfast::kernel::gather_augment::{Draw, reference};
use steadfast::kernel::perturb::perturb;
use steadfast::kernel::{self_test, sources, variants};
use steadfast::random::Key;
use steadfast_infer::largest_difference;

use crate::common::{in_chromium, software, str, succeed, text};

#[test]
fn every_shader_agrees_with_its_reference_on_the_software_adapter() {
    let device = software();
    assert!(verify::is_verified(&device.burn), "the other tests would run Burn's convolutions");
    let checks = self_test::run(&device);
    let failed: Vec<_> = checks.iter().filter(|check| !check.passed()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    for shader in sources().map(|source| source.name) {
        assert!(
            checks.iter().filter(|check| check.shader == shader).count() >= 10,
            "{shader} is hardly tested"
        );
    }
}

#[test]
fn the_program_runs_its_self_test() {
    let listing: serde_json::Value =
        serde_json::from_str(&succeed(&["devices", "--self-test", "--device", "software", "--json"]))
            .unwrap();
    assert_eq!(listing["self_test"]["passed"], true);
    assert!(listing["adapters"].as_array().unwrap().iter().any(|adapter| adapter["flag"] == "software"));
    assert!(listing["auto"].as_str().unwrap().starts_with("auto takes "));
}

/// The texts of all variants by their names.
fn texts() -> BTreeMap<String, String> {
    variants().iter().map(|variant| (format!("{variant:?}"), variant.text())).collect()
}

/// What naga accepts, Chromium's compiler must, too: it is what compiles them in a browser.
#[test]
fn every_shader_compiles_in_chromium() {
    let Some(mut node) = in_chromium("tests/golden/tint.mjs") else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shaders.json");
    std::fs::write(&file, serde_json::to_vec(&texts()).unwrap()).unwrap();
    let output = node.arg(&file).output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn every_shader_translates_to_every_api() {
    let folder = tempfile::tempdir().unwrap();
    let has_spirv_val = Command::new("spirv-val").arg("--version").output().is_ok();
    if !has_spirv_val {
        eprintln!("SPIR-V not validated, for want of spirv-val (Debian: apt-get install spirv-tools)");
    }
    for (name, source) in texts() {
        let name = name.as_str();
        let module = naga::front::wgsl::parse_str(&source)
            .unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(&source)));
        let info =
            Validator::new(ValidationFlags::all(), Capabilities::empty()).validate(&module).expect(name);

        let words = spv::write_vec(&module, &info, &spv::Options::default(), None).expect(name);
        assert_eq!(words[0], 0x0723_0203, "{name}: SPIR-V starts with its magic number");
        if has_spirv_val {
            let file = folder.path().join("shader.spv");
            std::fs::write(&file, words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>())
                .unwrap();
            let checked =
                Command::new("spirv-val").args(["--target-env", "vulkan1.1", str(&file)]).output().unwrap();
            assert!(checked.status.success(), "{name}: {}", text(&checked.stderr));
        }

        let options = msl::Options { fake_missing_bindings: true, ..Default::default() };
        let (text, _) =
            msl::write_string(&module, &info, &options, &msl::PipelineOptions::default()).expect(name);
        assert!(text.contains("kernel void"), "{name}: no Metal kernel");

        let options = hlsl::Options { fake_missing_bindings: true, ..Default::default() };
        let mut text = String::new();
        hlsl::Writer::new(&mut text, &options, &hlsl::PipelineOptions::default())
            .write(&module, &info, None)
            .expect(name);
        assert!(text.contains("numthreads("), "{name}: no HLSL compute shader");
    }
}

/// As many bytes as CIFAR-10's training part, more than this adapter binds at once.
#[test]
fn full_cifar_10_is_sharded_and_streamed_on_the_software_adapter() {
    let device = software();
    let shape = ImageShape { channels: 3, height: 32, width: 32 };
    let count = 50_000;
    let bytes: Vec<u8> =
        (0..count * shape.len() as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    assert!(bytes.len() as u64 > device.max_binding_bytes.unwrap(), "the set does not need shards here");
    let images = Arc::new(Images::new(shape, bytes, vec![0; count as usize]));
    // Both ends and the middle, where one shard ends and the next begins.
    let picks: Vec<u32> = vec![0, 24_999, 25_000, 25_001, 49_998, 49_999, 7, 31_337];
    let draw = Draw { key: Key::new(1), range: 8.0 / 255.0, pad: 4, flip: true, ..Draw::plain() };
    let pairs: Vec<_> = picks.iter().map(|&pick| (pick, pick)).collect();
    let (expected, expected_start) = reference(&images.bytes, shape, &pairs, draw);
    for resident_bytes in [usize::MAX, 0] {
        let loader = Loader::with_limit(images.clone(), picks.len(), &device, resident_bytes);
        let order = loader.order(picks.clone());
        let batch = loader.batch(&order, 0, draw);
        let read = |tensor: Tensor<4>| tensor.into_data().try_into_vec::<f32>().unwrap();
        assert!(read(batch.images) == expected, "images differ, resident up to {resident_bytes}");
        let start = read(batch.start);
        let worst = largest_difference(&start, &expected_start);
        assert!(worst <= 2e-7, "starts differ by {worst}");
    }
}

/// Winograd's planes of three such images are more than this adapter binds at once.
#[test]
fn winograd_takes_large_batches_in_parts() {
    let shape = [3, 300, 300, 64];
    let values = |count: usize, stream| -> Vec<f32> {
        (0..count as u32).map(|i| Key::new(stream).uniform(0, i) - 0.5).collect()
    };
    let run = |device: &steadfast::device::Device| -> Vec<f32> {
        let images = TensorData::new(values(shape.iter().product(), 1), shape);
        let weights = TensorData::new(values(32 * 64 * 9, 2), [32, 64, 3, 3]);
        let on = |data| Tensor::<4>::from_data(data, &device.burn);
        convolve(on(images), on(weights), 1, 1).into_data().try_into_vec().unwrap()
    };
    let (seen, expected) = (run(&software()), run(&steadfast::device::Device::cpu()));
    let worst = largest_difference(&seen, &expected);
    let largest = expected.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    assert!(worst <= 2e-5 * largest, "differ by {worst} of {largest}");
}

/// More workgroups than one dimension of a dispatch holds; the formula is checked on the host.
#[test]
fn launches_beyond_65535_workgroups_fold() {
    let device = software();
    let (rows, columns) = (256, 65_537);
    let value = |i: usize| (i % 1009) as f32 / 1009.0;
    let values: Vec<f32> = (0..rows * columns).map(value).collect();
    let images = Tensor::<4>::from_data(TensorData::new(values, [1, 1, rows, columns]), &device.burn);
    let adversarial = perturb(images.clone(), images.clone(), images, 0.1, 0.05);
    let seen: Vec<f32> = adversarial.into_data().try_into_vec().unwrap();
    let expected = |x: f32| if x > 0.0 { (x + 0.05).min(1.0) } else { 0.0 };
    let wrong = seen.iter().enumerate().find(|&(i, x)| (x - expected(value(i))).abs() > 1e-6);
    assert_eq!(wrong, None);
}
