//! The texts of the shaders against each other and against the host.

use std::collections::BTreeMap;

use super::converge_loss::{EpochSums, SUMS};
use super::convolve::winograd::{PLANES, TILE};
use super::{KERNELS, convolve, gather_augment, shader, sources};
use crate::converge::gate::GateKind;

/// How every shader but `converge_loss`, which is one workgroup, begins; and its index over all workgroups.
const ENTRY: &str = "\
@compute @workgroup_size(WORKGROUP, 1, 1)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
";
const WORKGROUP_INDEX: &str = "workgroup.y * workgroups.x + workgroup.x";
const INDEX: &str = "(workgroup.y * workgroups.x + workgroup.x) * WORKGROUP + local;";

/// The value of a constant, as a shader writes it.
fn constant(shader: &str, name: &str) -> String {
    let source = sources().find(|source| source.name == shader).expect("a shader of this name");
    let value = source.text.lines().find_map(|line| {
        let (kind, value) =
            line.strip_prefix("const ")?.strip_prefix(name)?.strip_prefix(": ")?.split_once(" = ")?;
        Some(value.trim_end_matches(';').trim_end_matches(if kind == "u32" { 'u' } else { 'f' }))
    });
    value.unwrap_or_else(|| panic!("{shader}.wgsl has no constant {name}")).to_string()
}

fn number(shader: &str, name: &str) -> usize {
    let value = constant(shader, name);
    match value.strip_prefix("0x") {
        Some(digits) => usize::from_str_radix(digits, 16).unwrap(),
        None => value.parse().unwrap(),
    }
}

#[test]
fn every_file_of_a_shader_belongs_to_a_kernel() {
    let folder = "shaders";
    let files: BTreeMap<String, String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            (path.file_stem().unwrap().to_str().unwrap().to_string(), std::fs::read_to_string(path).unwrap())
        })
        .collect();
    let listed: BTreeMap<String, String> =
        sources().map(|source| (source.name.to_string(), source.text.to_string())).collect();
    assert_eq!(listed, files);
    let count: usize = KERNELS.iter().map(|kernel| kernel.sources.len()).sum();
    assert_eq!(count, files.len(), "a shader is listed twice");
}

#[test]
fn every_shader_names_its_scalars() {
    for source in sources() {
        assert!(!source.scalars().is_empty(), "{}", source.name);
    }
}

/// What WebGPU promises of every adapter (`maxStorageBuffersPerShaderStage`); SwiftShader has ten.
#[test]
fn no_shader_binds_more_buffers_than_every_adapter_allows() {
    for source in sources() {
        let count = source.text.matches("var<storage").count();
        assert!((1..=8).contains(&count), "{}.wgsl binds {count} storage buffers", source.name);
    }
}

#[test]
fn constants_have_one_value_in_shader_and_host() {
    let convolve = convolve::KERNEL.sources.iter().map(|source| (source.name, convolve::shaders::WORKGROUP));
    let others = KERNELS.iter().filter(|kernel| !std::ptr::eq(**kernel, &convolve::KERNEL));
    let others = others.flat_map(|kernel| kernel.sources).map(|source| (source.name, shader::WORKGROUP));
    for (name, workgroup) in convolve.chain(others) {
        assert_eq!(number(name, "WORKGROUP"), workgroup, "{name}");
    }
    for (shader, name, value) in [
        ("converge_loss", "SUMS", SUMS),
        ("converge_loss", "GATE_NONE", 0),
        ("gather_augment", "CROP", gather_augment::CROP as usize),
        ("gather_augment", "LIGHT_COUNTER", gather_augment::LIGHT_COUNTER as usize),
        ("gather_augment", "GRAIN", gather_augment::GRAIN as usize),
        ("gather_augment", "NOISE_COUNTER", gather_augment::NOISE_COUNTER as usize),
        ("winograd", "TILE", TILE),
    ] {
        assert_eq!(number(shader, name), value, "{name} of {shader}");
    }
    assert_eq!(PLANES, (TILE + 2) * (TILE + 2));
    let byte: f32 = constant("gather_augment", "BYTE").parse().unwrap();
    assert_eq!(byte, steadfast_infer::BYTE);
    for kind in GateKind::ALL {
        let name = format!("GATE_{}", format!("{kind:?}").to_uppercase());
        assert_eq!(number("converge_loss", &name), kind.code() as usize, "{name}");
    }
}

#[test]
fn running_sums_have_one_order_in_shader_and_host() {
    let places: [f32; SUMS] = std::array::from_fn(|place| place as f32);
    let sums = EpochSums::from(places.as_slice());
    for (name, place) in [
        ("EXAMPLES", sums.examples),
        ("ADVERSARIAL_LOSS", sums.adversarial_loss),
        ("BENIGN_LOSS", sums.benign_loss),
        ("ADVERSARIAL_CORRECT", sums.adversarial_correct),
        ("BENIGN_CORRECT", sums.benign_correct),
        ("ABNORMAL", sums.abnormal),
        ("GATES", sums.gates),
        ("FIRED", sums.fired),
        ("FIRED_ABOVE", sums.fired_above),
    ] {
        assert_eq!(number("converge_loss", name), place as usize, "{name}");
    }
}

#[test]
fn copies_of_the_index_arithmetic_are_equal() {
    for source in sources().filter(|source| source.name != "converge_loss") {
        assert_eq!(source.text.matches(ENTRY).count(), 1, "{}: the entry differs", source.name);
        // A workgroup of a normalisation is one task.
        let index = if source.name.starts_with("normalise") { WORKGROUP_INDEX } else { INDEX };
        assert_eq!(source.text.matches(index).count(), 1, "{}: the index differs", source.name);
    }
}
