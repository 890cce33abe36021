//! The `immunise` binary: thread settings, then the command line.

use std::env;
use std::process::ExitCode;
use std::thread;

/// Tensors come and go by the thousand, and the system allocator hands every large one back to the kernel.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // candle's own pool spins; our kernels use rayon's. Without a number candle counts cores for every product of matrices,
    // and reads /proc/cpuinfo for it.
    let workers = thread::available_parallelism().map_or(1, usize::from).to_string();
    for (name, value) in [("CANDLE_NUM_THREADS", "1"), ("RAYON_NUM_THREADS", &*workers)] {
        if env::var_os(name).is_none() {
            // SAFETY: no other thread has been started yet, so nothing reads the environment at the same time.
            unsafe { env::set_var(name, value) };
        }
    }
    ExitCode::from(immunise::cli::main())
}
