//! Floating-point mode and vectorised elementary functions on slices.
//!
//! Adam's second moments and the gradients of a nearly solved task go denormal, and every operation on a denormal costs
//! a hundred cycles: adversarial training of a small model slowed down by a factor of 17. So every compute thread
//! flushes denormals to zero. `exp` is our own polynomial because the C library's is a call per element; it is accurate
//! to 2 units in the last place, which a test holds it to.

/// Makes this thread flush denormals to zero (inputs and results). A no-op where the CPU has no such mode.
pub fn flush_denormals() {
    #[cfg(target_arch = "x86_64")]
    {
        let mut control: u32 = 0;
        // SAFETY: `stmxcsr`/`ldmxcsr` only store and load the SSE control register of this thread; setting FTZ (bit 15)
        // and DAZ (bit 6) changes rounding of denormals and nothing else, and every x86-64 CPU has both bits.
        unsafe {
            std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut control, options(nostack, preserves_flags));
            control |= (1 << 15) | (1 << 6);
            std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const control, options(nostack, preserves_flags));
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        let mut control: u64;
        // SAFETY: reads and writes this thread's FPCR; FZ (bit 24) only flushes denormals.
        unsafe {
            std::arch::asm!("mrs {}, fpcr", out(reg) control, options(nomem, nostack));
            control |= 1 << 24;
            std::arch::asm!("msr fpcr, {}", in(reg) control, options(nostack));
        }
    }
}

/// Sets the variables that candle and rayon take their numbers of threads from, where the user has not.
///
/// candle's own pool spins; our kernels use rayon's. Without a number candle counts cores for every product of matrices, and
/// reads `/proc/cpuinfo` for it.
///
/// # Safety
/// To be called before any other thread is started: none may read the environment meanwhile.
pub unsafe fn settle_threads() {
    let workers = std::thread::available_parallelism().map_or(1, usize::from).to_string();
    for (name, value) in [("CANDLE_NUM_THREADS", "1"), ("RAYON_NUM_THREADS", &*workers)] {
        if std::env::var_os(name).is_none() {
            // SAFETY: the caller's promise: there is no other thread yet.
            unsafe { std::env::set_var(name, value) };
        }
    }
}

/// Sets up the process's worker threads once: as many as `threads`, each flushing denormals. Later calls do nothing.
pub fn start_workers(threads: Option<usize>) {
    flush_denormals();
    let mut builder = rayon::ThreadPoolBuilder::new().start_handler(|_| flush_denormals());
    if let Some(threads) = threads {
        builder = builder.num_threads(threads);
    }
    // An error means that the pool exists already, which is the state asked for.
    let _ = builder.build_global();
}

/// `exp(x)`, accurate to 2 units in the last place on `[-87, 88]`, saturating outside. Inlines into vector loops.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let (excess, scale) = exp_parts(x);
    (excess + 1.0) * scale
}

/// `tanh(x)`, accurate to 3 units in the last place. Inlines into vector loops.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    // tanh(x) = (e^2x − 1) / (e^2x + 1); the parts give e^2x − 1 without cancellation. Beyond ±10 it is ±1 in f32.
    let (excess, scale) = exp_parts(2.0 * x.clamp(-10.0, 10.0));
    let less_one = excess * scale + (scale - 1.0);
    less_one / (less_one + 2.0)
}

/// `(q, s)` with `exp(x) = (q + 1) · s`, `s` a power of two and `q` small.
#[inline(always)]
fn exp_parts(x: f32) -> (f32, f32) {
    // exp(x) = 2^n · exp(r), r in ±ln2/2; ln 2 is split so that n·ln2 cancels exactly.
    let x = x.clamp(-87.0, 88.0);
    // Adding 1.5·2²³ rounds to an integer and leaves it in the low bits.
    let shifted = x * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = shifted - 12_582_912.0;
    let r = x - n * 0.693_359_4;
    let r = r + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    // n is an integer in -126..=127 here, so the shifted exponent is a valid one. Taken from the bits: a conversion to an integer
    // checks for NaN value by value, and keeps the loop from being vectorised.
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    (p * r * r + r, scale)
}

/// In-place softmax of the first `len` entries of a row; the rest becomes zero. Returns the log of the normaliser
/// (maximum included).
#[inline(always)]
pub fn softmax_prefix(row: &mut [f32], start: usize, len: usize) -> f32 {
    let (masked, rest) = row.split_at_mut(start);
    masked.fill(0.0);
    let (live, dead) = rest.split_at_mut(len - start);
    dead.fill(0.0);
    let top = live.iter().fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m });
    live.iter_mut().for_each(|v| *v = exp(*v - top));
    let sum = sum(live);
    let inverse = 1.0 / sum;
    live.iter_mut().for_each(|v| *v *= inverse);
    top + sum.ln()
}

/// Sum in eight interleaved lanes: vectorises, and the order of additions is fixed whatever the SIMD width.
#[inline(always)]
pub fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0_f32; 8];
    let chunks = values.chunks_exact(8);
    let tail: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value;
        }
    }
    fold(lanes) + tail
}

/// Dot product in eight interleaved lanes, as [`sum`].
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0_f32; 8];
    let (left, right) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f32 = left.remainder().iter().zip(right.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in left.zip(right) {
        for i in 0..8 {
            lanes[i] += x[i] * y[i];
        }
    }
    fold(lanes) + tail
}

/// Squared distance of two rows in eight interleaved lanes, as [`sum`].
#[inline(always)]
pub fn squares(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0_f32; 8];
    let (left, right) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f32 = left.remainder().iter().zip(right.remainder()).map(|(x, y)| (x - y) * (x - y)).sum();
    for (x, y) in left.zip(right) {
        for i in 0..8 {
            let d = x[i] - y[i];
            lanes[i] += d * d;
        }
    }
    fold(lanes) + tail
}

#[inline(always)]
fn fold(l: [f32; 8]) -> f32 {
    ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_to_two_units_in_the_last_place() {
        for i in -8_600..=8_700 {
            let x = i as f32 * 0.01;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            let unit = exact * f64::from(f32::EPSILON);
            assert!((ours - exact).abs() <= 2.0 * unit, "exp({x}) = {ours}, exact {exact}");
        }
    }

    #[test]
    fn tanh_is_accurate_to_three_units_in_the_last_place() {
        for i in -1_200..=1_200 {
            for scale in [0.01, 1e-5] {
                let x = i as f32 * scale;
                let (ours, exact) = (f64::from(tanh(x)), f64::from(x).tanh());
                let unit = exact.abs() * f64::from(f32::EPSILON);
                assert!((ours - exact).abs() <= 3.0 * unit, "tanh({x}) = {ours}, exact {exact}");
            }
        }
    }

    #[test]
    fn workers_flush_denormals() {
        start_workers(None);
        let smallest = std::hint::black_box(f32::MIN_POSITIVE);
        assert_eq!(smallest / std::hint::black_box(4.0), 0.0);
        let in_pool = rayon::broadcast(|_| std::hint::black_box(f32::MIN_POSITIVE) / std::hint::black_box(4.0));
        assert!(in_pool.iter().all(|v| *v == 0.0), "{in_pool:?}");
    }

    #[test]
    fn softmax_masks_both_ends_and_sums_to_one() {
        let mut row = [9.0, 1.0, 2.0, 3.0, 9.0];
        let log = softmax_prefix(&mut row, 1, 4);
        assert_eq!((row[0], row[4]), (0.0, 0.0));
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        let expected = (1_f32.exp() + 2_f32.exp() + 3_f32.exp()).ln();
        assert!((log - expected).abs() < 1e-5);
    }
}
