//! Which tile of a convolution is fastest: measured once per adapter and shape. A tile changes no bit of a result.

use crate::observer;
use std::sync::Once;
use std::time::Instant;

use burn_wgpu::CubeTensor;

use super::adapters::{adapter, key, known, remember};
use super::pass::{Pass, TILES, Tile};

/// Tiles that fit a pass, the default first.
fn candidates(pass: &Pass) -> Vec<Tile> {
    let columns = pass.output[1];
    // Neighbours that are not there are computed in vain: at most one in three.
    let fits = |tile: &Tile| {
        let computed = columns.next_multiple_of(tile.columns);
        pass.divides(tile) && 3 * (computed - columns) <= computed
    };
    TILES.into_iter().filter(fits).collect()
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
    if !tunes {
        return default;
    }
    let (key, shape) = (key(&adapter), pass.name());
    // The cache file may be damaged.
    let usable = |tile: &Tile| TILES.contains(tile) && pass.divides(tile);
    if let Some(tile) = known(&key, |known| known.tiles.get(&shape).copied()).filter(usable) {
        return tile;
    }
    static SAID: Once = Once::new();
    let name = &adapter.description;
    SAID.call_once(|| {
        observer::warn(format!("{name}: timing tiles of convolutions, once per shape; kept for next time"));
    });
    let Some(fastest) = fastest(pass, tensors) else { return default };
    remember(&key, |known| {
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
