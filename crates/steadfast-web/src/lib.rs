//! Inspection in the browser: [`steadfast_infer`] as WebAssembly without bindings. `scripts/web` puts it into one page.
//!
//! JavaScript asks for a [`buffer`], writes into it, and calls a function; that returns [`OK`] or [`FAILED`] and leaves a text
//! ([`text`], [`text_len`]), the answer or the reason in one line. The files of a bundle are handed over by [`put_file`];
//! [`open`] checks them and [`inspect`] classifies a picture. The functions whose names begin with `gpu` serve a page that
//! computes the convolutions by WebGPU.
//!
//! No pointer comes in: JavaScript writes only into memory that a buffer here owns.

// Only there: on other machines a function called `open` would take the place of the C library's.
#![cfg_attr(
    target_arch = "wasm32",
    allow(unsafe_code, reason = "`no_mangle` counts as unsafe; there is no unsafe block")
)]

mod gpu;
mod session;

use std::cell::RefCell;
use std::sync::Once;

use session::{Session, in_one_line};

/// What a function returns that did what it was asked for.
pub const OK: u32 = 0;
/// What a function returns whose text says why it failed.
pub const FAILED: u32 = 1;

/// The buffer for the name of a file.
pub const NAME: u32 = 0;
/// The buffer for the contents of a file.
pub const CONTENTS: u32 = 1;

#[derive(Default)]
struct Module {
    name: Vec<u8>,
    contents: Vec<u8>,
    /// What `gpu_input` and its like leave for JavaScript.
    floats: Vec<f32>,
    session: Session,
}

impl Module {
    /// The buffers, which are empty afterwards.
    fn taken(&mut self) -> (String, Vec<u8>) {
        let name = String::from_utf8_lossy(&std::mem::take(&mut self.name)).into_owned();
        (name, std::mem::take(&mut self.contents))
    }
}

// A module of WebAssembly has one thread, and nothing here calls back into JavaScript.
thread_local! {
    static MODULE: RefCell<Module> = RefCell::default();
    static TEXT: RefCell<String> = const { RefCell::new(String::new()) };
}

fn say(text: String) {
    TEXT.with_borrow_mut(|said| *said = text);
}

/// Runs a function of the session and leaves its text.
fn answer(run: impl FnOnce(&mut Module) -> steadfast_infer::Result<String>) -> u32 {
    static HOOK: Once = Once::new();
    // A panic ends in a trap; JavaScript reads its text afterwards and makes a new module.
    HOOK.call_once(|| std::panic::set_hook(Box::new(|info| say(in_one_line(&info.to_string())))));
    // After a trap without a panic, no text of before may stand there.
    say(String::new());
    let (code, text) = match MODULE.with_borrow_mut(run) {
        Ok(text) => (OK, text),
        Err(error) => (FAILED, in_one_line(&error.to_string())),
    };
    say(text);
    code
}

/// Memory for `len` bytes of [`NAME`] or [`CONTENTS`], valid until the next call; null where there is not enough.
#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn buffer(which: u32, len: usize) -> *mut u8 {
    MODULE.with_borrow_mut(|module| {
        let buffer = if which == NAME { &mut module.name } else { &mut module.contents };
        *buffer = Vec::new();
        if buffer.try_reserve_exact(len).is_err() {
            return std::ptr::null_mut();
        }
        buffer.resize(len, 0);
        buffer.as_mut_ptr()
    })
}

/// The text that the last function left, in UTF-8, valid until the next call.
#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn text() -> *const u8 {
    TEXT.with_borrow(|text| text.as_ptr())
}

/// Bytes of [`text`].
#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn text_len() -> usize {
    TEXT.with_borrow(String::len)
}

/// Takes a file of a bundle: [`NAME`] is its name in the bundle, such as `golden/00.png`.
#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn put_file() -> u32 {
    answer(|module| {
        let (name, contents) = module.taken();
        module.session.put(name, contents);
        Ok(String::new())
    })
}

/// Opens the bundle of the files that were put, which are given up, and runs its self-test. The text describes it in JSON.
#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn open() -> u32 {
    answer(|module| module.session.open())
}

/// Classifies the picture in [`CONTENTS`]. The text is the line that `steadfast inspect --json --logits` prints, with
/// [`NAME`] as its path; of a picture that cannot be read, too.
#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn inspect() -> u32 {
    answer(|module| {
        let (name, contents) = module.taken();
        module.session.inspect(&name, &contents)
    })
}

/// Says in JSON what WebGPU has to compute, and leaves the constants as [`floats`].
#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn gpu_plan() -> u32 {
    answer(|module| {
        let (plan, floats) = module.session.gpu_plan()?;
        module.floats = floats;
        Ok(plan)
    })
}

/// Leaves golden input `index` as [`floats`], as the plan takes it.
#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn gpu_golden(index: usize) -> u32 {
    answer(|module| {
        module.floats = module.session.gpu_golden(index)?;
        Ok(String::new())
    })
}

/// Leaves the picture in [`CONTENTS`] as [`floats`], as the plan takes it.
#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn gpu_input() -> u32 {
    answer(|module| {
        let (_, contents) = module.taken();
        module.floats = module.session.gpu_input(&contents)?;
        Ok(String::new())
    })
}

/// Checks the features of all golden inputs, one after the other in [`CONTENTS`], against the golden logits. The text is the
/// largest difference.
#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn gpu_check() -> u32 {
    answer(|module| {
        let (_, features) = module.taken();
        module.session.gpu_check(&features)
    })
}

/// As [`inspect`], of the features in [`CONTENTS`] that WebGPU gave for a picture.
#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn gpu_answer() -> u32 {
    answer(|module| {
        let (name, features) = module.taken();
        module.session.gpu_answer(&name, &features)
    })
}

/// The float32 that the last function left, valid until the next call.
#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn floats() -> *const f32 {
    MODULE.with_borrow(|module| module.floats.as_ptr())
}

/// How many [`floats`] there are.
#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
pub extern "C" fn floats_len() -> usize {
    MODULE.with_borrow(|module| module.floats.len())
}
