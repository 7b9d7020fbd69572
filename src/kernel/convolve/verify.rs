//! Whether the convolutions of an adapter are right.

use std::sync::Once;

use burn::tensor::Device;

use super::adapters::{key, known, remember, remember_for_now};
use super::parity;
use crate::device;
use crate::observer;

/// Whether this adapter's convolutions agree with the CPU's, which is tried once; if they do not, a warning says so on
/// stderr. `STEADFAST_CONVOLUTIONS=burn` refuses every adapter, `own` accepts every one untried.
pub fn is_verified(device: &Device) -> bool {
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
            observer::warn(format!(
                "warning: {name}: the convolution shaders {what}; using Burn's, which are slower"
            ))
        });
    };
    let verified = known(&key, |known| known.verified).or_else(|| {
        let agrees = parity::agrees(device)?;
        remember(&key, |known| known.verified = Some(agrees));
        Some(agrees)
    });
    match verified {
        Some(true) => {}
        Some(false) => warn("give wrong results here"),
        // Perhaps another program has the memory: the next process tries again.
        None => {
            warn("could not be tried");
            remember_for_now(&key, |known| known.verified = Some(false));
        }
    }
    verified == Some(true)
}
