//! The `immunise` binary: thread settings, then the command line.

use std::env;
use std::process::ExitCode;

/// Tensors come and go by the thousand, and the system allocator hands every large one back to the kernel.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: no other thread has been started yet, so nothing reads the environment at the same time. candle's own
        // pool spins; our kernels use rayon's.
        unsafe { env::set_var("CANDLE_NUM_THREADS", "1") };
    }
    ExitCode::from(immunise::cli::main())
}
