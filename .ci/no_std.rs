//! A program without the standard library that reads a bundle and classifies an image. `.ci/run` compiles it against
//! `steadfast-infer` without default features. It brings its own panic handler, and the standard library's would be a
//! second one: so it does not compile as soon as any crate below it needs the standard library.

#![no_std]

extern crate alloc;

use alloc::vec::Vec;
use core::alloc::{GlobalAlloc, Layout};

use steadfast_infer::{Bundle, Error};

struct NoMemory;

// SAFETY: it never hands out memory, which an allocator may do at any time.
unsafe impl GlobalAlloc for NoMemory {
    unsafe fn alloc(&self, _: Layout) -> *mut u8 {
        core::ptr::null_mut()
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static ALLOCATOR: NoMemory = NoMemory;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Whether the part on `image` passes, by a bundle whose files `read` gives by name.
pub fn passes(read: &mut dyn FnMut(&str) -> Result<Vec<u8>, Error>, image: &[f32]) -> Result<bool, Error> {
    let bundle = Bundle::read(read)?;
    let logits = bundle.network()?.logits(image);
    Ok(bundle.manifest.decision().passes(&logits))
}
