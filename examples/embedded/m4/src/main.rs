//! Tests itself, then inspects the frames that were put beside it as `frames.bin`.

#![no_std]
#![no_main]

use core::fmt::Write;

use cortex_m_rt::entry;
use cortex_m_semihosting::debug::{self, EXIT_FAILURE, EXIT_SUCCESS};
use cortex_m_semihosting::hio;
use steadfast_model::{Classifier, FRAME_BYTES, LABELS};

static FRAMES: &[u8] = include_bytes!("../frames.bin");

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    debug::exit(EXIT_FAILURE);
    loop {}
}

#[entry]
fn main() -> ! {
    // `entry` makes these two a static each.
    static mut CLASSIFIER: Classifier = Classifier::new();
    static mut FRAME: [u8; FRAME_BYTES] = [0; FRAME_BYTES];
    let passed = inspect(CLASSIFIER, FRAME).is_some();
    debug::exit(if passed { EXIT_SUCCESS } else { EXIT_FAILURE });
    loop {}
}

fn inspect(classifier: &mut Classifier, frame: &mut [u8]) -> Option<()> {
    let mut out = hio::hstdout().ok()?;
    classifier.self_test(frame).ok()?;
    writeln!(out, "the self-test passed").ok()?;
    for frame in FRAMES.chunks_exact(FRAME_BYTES) {
        let verdict = classifier.classify(frame).ok()?;
        let said = match verdict.passes {
            None => "-",
            Some(true) => "pass",
            Some(false) => "REJECT",
        };
        write!(out, "{said} {}", LABELS[verdict.label]).ok()?;
        verdict.logits.iter().try_for_each(|logit| write!(out, " {logit:?}")).ok()?;
        writeln!(out).ok()?;
    }
    Some(())
}
