//! What is known of the convolutions of an adapter, once per adapter, driver and version of the shaders: kept in the user's
//! cache folder.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock};

use burn::backend::DispatchDevice;
use burn::tensor::Device;
use burn_wgpu::CubeTensor;
use serde::{Deserialize, Serialize};

use super::pass::Tile;
use super::shaders::SOURCES;
use crate::device;
use crate::files::{sha256, to_json};

/// What is known of an adapter.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Known {
    /// Whether its convolutions agreed with the CPU's.
    #[serde(rename = "trusted")]
    pub verified: Option<bool>,
    /// The fastest tile by shape, where it was measured.
    pub tiles: BTreeMap<String, Tile>,
}

type Adapters = BTreeMap<String, Known>;

static ADAPTERS: Mutex<Option<Adapters>> = Mutex::new(None);

fn file() -> Option<PathBuf> {
    dirs::cache_dir().map(|folder| folder.join("steadfast").join("adapters.json"))
}

fn read() -> Adapters {
    let text = file().and_then(|file| std::fs::read(file).ok());
    text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

fn lock() -> MutexGuard<'static, Option<Adapters>> {
    ADAPTERS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Looks up what is known.
pub(super) fn known<T>(adapter: &str, look: impl FnOnce(&Known) -> Option<T>) -> Option<T> {
    lock().get_or_insert_with(read).get(adapter).and_then(look)
}

/// Changes what is known for the rest of this process.
pub(super) fn remember_for_now(adapter: &str, change: impl Fn(&mut Known)) {
    change(lock().get_or_insert_with(read).entry(adapter.to_string()).or_default());
}

/// Changes what is known, here and in the file. A cache that cannot be written costs time and nothing else.
pub(super) fn remember(adapter: &str, change: impl Fn(&mut Known)) {
    let mut known = lock();
    change(known.get_or_insert_with(read).entry(adapter.to_string()).or_default());
    let Some(file) = file() else { return };
    // Other processes may have written something meanwhile.
    let mut kept = read();
    change(kept.entry(adapter.to_string()).or_default());
    let beside = file.with_extension(format!("{}.part", std::process::id()));
    let written = file.parent().map(std::fs::create_dir_all).unwrap_or(Ok(()));
    let written = written.and_then(|()| std::fs::write(&beside, to_json(&kept)));
    if written.and_then(|()| std::fs::rename(&beside, &file)).is_err() {
        let _ = std::fs::remove_file(&beside);
    }
}

/// An adapter with its driver, the program's version and the shaders: neither a new driver nor a new program inherits
/// anything.
pub(super) fn key(adapter: &device::Opened) -> String {
    static VERSION: OnceLock<String> = OnceLock::new();
    let version = VERSION.get_or_init(|| {
        let shaders: String = SOURCES.iter().map(|source| source.text).collect();
        format!("{} {}", env!("CARGO_PKG_VERSION"), &sha256(shaders.as_bytes())[..8])
    });
    format!("{} {version}", adapter.description)
}

/// What computes a tensor.
pub(super) fn adapter(tensor: &CubeTensor) -> Option<device::Opened> {
    device::opened(&Device::from(DispatchDevice::Cube(tensor.device.clone())))
}
