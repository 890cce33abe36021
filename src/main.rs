//! The `immunise` binary: thread settings, then the command line.

use std::env;
use std::ffi::c_long;
use std::process::ExitCode;

use libmimalloc_sys::{mi_option_get, mi_option_set, mi_option_t, mi_option_use_numa_nodes};

/// Tensors come and go by the thousand, and the system allocator hands every large one back to the kernel.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay`, which the bindings leave out between its neighbours: milliseconds until freed memory goes back.
const PURGE_DELAY: mi_option_t = mi_option_use_numa_nodes - 1;

/// What one training step frees the next one takes: given back after a second, a fifth of a step's time is spent on zeroed pages.
const A_MINUTE: c_long = 60_000;

fn main() -> ExitCode {
    if env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
        // SAFETY: both calls read or write one integer of the allocator.
        unsafe {
            debug_assert_eq!(mi_option_get(PURGE_DELAY), 1000, "the allocator's default, else this is another option");
            mi_option_set(PURGE_DELAY, A_MINUTE);
        }
    }
    // SAFETY: no other thread has been started yet.
    unsafe { immunise::math::float::settle_threads() };
    ExitCode::from(immunise::cli::main())
}
