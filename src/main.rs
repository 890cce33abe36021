//! The `immunise` binary: thread settings, then the command line.

use std::process::ExitCode;

/// Tensors come and go by the thousand, and the system allocator hands every large one back to the kernel.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // SAFETY: no other thread has been started yet.
    unsafe { immunise::math::float::settle_threads() };
    ExitCode::from(immunise::cli::main())
}
