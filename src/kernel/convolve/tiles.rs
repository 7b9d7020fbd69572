//! How much of a convolution one invocation computes, and whether an adapter's answers can be trusted: found out once per
//! adapter, driver and version of the shaders, and kept in the user's cache folder. Neither changes a bit of a result.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, Once, OnceLock};
use std::time::Instant;

use burn::backend::DispatchDevice;
use burn::tensor::Device;
use burn_wgpu::CubeTensor;
use serde::{Deserialize, Serialize};

use super::super::SHADERS;
use super::wgsl::Pass;
use super::{FOUR, proof};
use crate::device;
use crate::files::{sha256, to_json};

/// Columns and fours of channels per invocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tile {
    /// Neighbours in a row.
    pub columns: usize,
    /// Fours of channels.
    pub vectors: usize,
}

/// The tiles that are tried, the best ones of the software adapter first.
pub(super) const TILES: [Tile; 8] =
    [tile(8, 2), tile(8, 1), tile(4, 2), tile(4, 1), tile(2, 2), tile(2, 1), tile(1, 2), tile(1, 1)];

const fn tile(columns: usize, vectors: usize) -> Tile {
    Tile { columns, vectors }
}

/// What is known of an adapter.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Known {
    /// Whether its convolutions agreed with the CPU's.
    trusted: Option<bool>,
    /// The fastest tile by shape, where it was measured.
    tiles: BTreeMap<String, Tile>,
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

fn known<T>(adapter: &str, look: impl FnOnce(&Known) -> Option<T>) -> Option<T> {
    lock().get_or_insert_with(read).get(adapter).and_then(look)
}

/// Changes what is known, here and in the file. A cache that cannot be written costs time and nothing else.
fn learn(adapter: &str, change: impl Fn(&mut Known)) {
    let mut known = lock();
    change(known.get_or_insert_with(read).entry(adapter.to_string()).or_default());
    let Some(file) = file() else { return };
    // Other processes may have learnt something meanwhile.
    let mut kept = read();
    change(kept.entry(adapter.to_string()).or_default());
    let beside = file.with_extension(format!("{}.part", std::process::id()));
    let written = file.parent().map(std::fs::create_dir_all).unwrap_or(Ok(()));
    let written = written.and_then(|()| std::fs::write(&beside, to_json(&kept)));
    if written.and_then(|()| std::fs::rename(&beside, &file)).is_err() {
        let _ = std::fs::remove_file(&beside);
    }
}

/// An adapter with its driver, and the shaders, so that neither a new driver nor a new program inherits anything.
fn key(adapter: &device::Opened) -> String {
    static VERSION: OnceLock<String> = OnceLock::new();
    let version = VERSION.get_or_init(|| {
        let shaders: String = SHADERS.iter().map(|(_, text)| *text).collect();
        sha256(shaders.as_bytes())[..8].to_string()
    });
    format!("{} {version}", adapter.description)
}

/// Whether this adapter's convolutions agree with the CPU's, which is tried once; if they do not, a warning says so on
/// stderr. `STEADFAST_CONVOLUTIONS=burn` trusts none.
pub fn trusted(device: &Device) -> bool {
    // With Burn's SPIR-V compiler WGSL does not run.
    let spirv = cfg!(feature = "spirv");
    if spirv || std::env::var("STEADFAST_CONVOLUTIONS").is_ok_and(|value| value == "burn") {
        return false;
    }
    let Some(adapter) = device::opened(device) else { return false };
    let key = key(&adapter);
    let trusted = known(&key, |known| known.trusted).unwrap_or_else(|| {
        let agrees = proof::agrees(device);
        learn(&key, |known| known.trusted = Some(agrees));
        agrees
    });
    if !trusted {
        static SAID: Once = Once::new();
        let name = &adapter.description;
        SAID.call_once(|| {
            eprintln!("warning: {name}: the convolution shaders give wrong results here; using Burn's, which are slower");
        });
    }
    trusted
}

/// Tiles that fit a pass, the default first.
fn candidates(pass: &Pass) -> Vec<Tile> {
    let columns = pass.grid[1];
    let outputs = pass.output[2] / FOUR;
    // Neighbours that are not there are computed in vain: at most one in three.
    let fits = |tile: &Tile| {
        let computed = columns.next_multiple_of(tile.columns);
        outputs.is_multiple_of(tile.vectors) && 3 * (computed - columns) <= computed
    };
    TILES.into_iter().filter(fits).collect()
}

pub(super) fn adapter(tensor: &CubeTensor) -> Option<device::Opened> {
    device::opened(&Device::from(DispatchDevice::Cube(tensor.device.clone())))
}

/// The tile for a pass: measured before, measured now, or the default. The software adapter always takes the default,
/// except with `STEADFAST_TUNER=on`; `off` takes it everywhere.
pub(super) fn choose(pass: &Pass, tensors: &[&CubeTensor; 3]) -> Tile {
    let candidates = candidates(pass);
    let Some(adapter) = adapter(tensors[0]) else { return candidates[0] };
    let tunes = match std::env::var("STEADFAST_TUNER").as_deref() {
        Ok("on") => true,
        Ok("off") => false,
        _ => !adapter.software,
    };
    if !tunes {
        return candidates[0];
    }
    let (key, shape) = (key(&adapter), pass.name());
    if let Some(tile) = known(&key, |known| known.tiles.get(&shape).copied()) {
        return tile;
    }
    let time = |tile: Tile| {
        let wait = || pollster::block_on(tensors[0].client.sync()).is_ok();
        // The first launch compiles.
        pass.launch(tile, tensors);
        let ready = wait();
        let started = Instant::now();
        (0..3).for_each(|_| pass.launch(tile, tensors));
        if ready && wait() { started.elapsed().as_secs_f64() } else { f64::INFINITY }
    };
    let times = candidates.iter().map(|&tile| (tile, time(tile)));
    let (fastest, _) = times.min_by(|one, two| one.1.total_cmp(&two.1)).expect("a default");
    learn(&key, |known| {
        known.tiles.insert(shape.clone(), fastest);
    });
    fastest
}
