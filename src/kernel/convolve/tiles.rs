//! How much of a convolution one invocation computes, and whether an adapter's answers can be trusted: found out once per
//! adapter, driver and version of the program, and kept in the user's cache folder. A tile changes no bit of a result.

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

/// An adapter with its driver, the program's version and the shaders: neither a new driver nor a new program inherits
/// anything.
fn key(adapter: &device::Opened) -> String {
    static VERSION: OnceLock<String> = OnceLock::new();
    let version = VERSION.get_or_init(|| {
        let shaders: String = SHADERS.iter().map(|(_, text)| *text).collect();
        format!("{} {}", env!("CARGO_PKG_VERSION"), &sha256(shaders.as_bytes())[..8])
    });
    format!("{} {version}", adapter.description)
}

/// Whether this adapter's convolutions agree with the CPU's, which is tried once; if they do not, a warning says so on
/// stderr. `STEADFAST_CONVOLUTIONS=burn` trusts none, `own` trusts without trying.
pub fn trusted(device: &Device) -> bool {
    match std::env::var("STEADFAST_CONVOLUTIONS").as_deref() {
        Ok("burn") => return false,
        Ok("own") => return true,
        _ => {}
    }
    let Some(adapter) = device::opened(device) else { return false };
    let key = key(&adapter);
    let warn = |what: &str| {
        static SAID: Once = Once::new();
        let name = &adapter.description;
        SAID.call_once(|| {
            eprintln!("warning: {name}: the convolution shaders {what}; using Burn's, which are slower")
        });
    };
    let trusted = known(&key, |known| known.trusted).or_else(|| {
        let agrees = proof::agrees(device)?;
        learn(&key, |known| known.trusted = Some(agrees));
        Some(agrees)
    });
    match trusted {
        Some(true) => {}
        Some(false) => warn("give wrong results here"),
        // Perhaps another program has the memory: the next process tries again.
        None => {
            warn("could not be tried");
            let mut adapters = lock();
            adapters.get_or_insert_with(read).entry(key).or_default().trusted = Some(false);
        }
    }
    trusted == Some(true)
}

/// Tiles that fit a pass, the default first.
fn candidates(pass: &Pass) -> Vec<Tile> {
    let columns = pass.grid[1];
    // Neighbours that are not there are computed in vain: at most one in three.
    let fits = |tile: &Tile| {
        let computed = columns.next_multiple_of(tile.columns);
        divides(pass, tile) && 3 * (computed - columns) <= computed
    };
    TILES.into_iter().filter(fits).collect()
}

/// Whether a tile computes every channel of a pass.
fn divides(pass: &Pass, tile: &Tile) -> bool {
    (pass.output[2] / FOUR).is_multiple_of(tile.vectors)
}

/// The tile for a pass: measured before, measured now, or the default. The software adapter always takes the default,
/// except with `STEADFAST_TUNER=on`; `off` takes it everywhere.
pub(super) fn choose(pass: &Pass, tensors: &[&CubeTensor; 3]) -> Tile {
    let default = candidates(pass)[0];
    let Some(adapter) = adapter(tensors[0]) else { return default };
    let tunes = match std::env::var("STEADFAST_TUNER").as_deref() {
        Ok("on") => true,
        Ok("off") => false,
        _ => !adapter.software,
    };
    // Without taps there are only zeros to write.
    if !tunes || pass.taps == [0, 0] {
        return default;
    }
    let (key, shape) = (key(&adapter), pass.name());
    // A file may say anything.
    let usable = |tile: &Tile| TILES.contains(tile) && divides(pass, tile);
    if let Some(tile) = known(&key, |known| known.tiles.get(&shape).copied()).filter(usable) {
        return tile;
    }
    static SAID: Once = Once::new();
    let name = &adapter.description;
    SAID.call_once(|| eprintln!("{name}: timing tiles of convolutions, once per shape; kept for next time"));
    let Some(fastest) = fastest(pass, tensors) else { return default };
    learn(&key, |known| {
        known.tiles.insert(shape.clone(), fastest);
    });
    fastest
}

/// The fastest tile whose answer is the default's, bit for bit; none if the device does not answer.
fn fastest(pass: &Pass, tensors: &[&CubeTensor; 3]) -> Option<Tile> {
    let output = tensors[2];
    let wait = || pollster::block_on(output.client.sync()).ok();
    let time = |tile: Tile| {
        // The first launch compiles.
        pass.launch(tile, tensors);
        wait()?;
        let round = || {
            let started = Instant::now();
            (0..4).for_each(|_| pass.launch(tile, tensors));
            wait().map(|()| started.elapsed().as_secs_f64())
        };
        (0..3).map(|_| round()).try_fold(f64::INFINITY, |least, seconds| Some(least.min(seconds?)))
    };
    let answer = |tile: Tile| {
        pass.launch(tile, tensors);
        output.client.read_one(output.handle.clone()).ok()
    };
    let default = candidates(pass)[0];
    // What is faster by less may be chance.
    let mut best = (0.95 * time(default)?, default);
    for tile in candidates(pass).into_iter().skip(1) {
        let seconds = time(tile)?;
        if seconds < best.0 {
            best = (seconds, tile);
        }
    }
    Some(if best.1 == default || answer(best.1)? == answer(default)? { best.1 } else { default })
}

/// What computes a tensor.
pub(super) fn adapter(tensor: &CubeTensor) -> Option<device::Opened> {
    device::opened(&Device::from(DispatchDevice::Cube(tensor.device.clone())))
}
