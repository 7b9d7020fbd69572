//! The program `steadfast`.

// Training on the CPU frees and allocates the same large buffers in every step; glibc returns them to the system each
// time, and half of the run goes into page faults.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    steadfast::profile::process_starts();
    // Mesa's device selection layer looks for a desktop and complains on stderr where there is none; adapters are
    // chosen here, so it is not needed.
    #[allow(unsafe_code, reason = "the standard library asks for it")]
    // SAFETY: no other thread runs yet.
    unsafe {
        std::env::set_var("NODEVICE_SELECT", "1")
    };
    steadfast::cli::main()
}
