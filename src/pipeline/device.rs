//! Which device computes, and how reports name it and the host's arithmetic.

use candle_core::Device;

use crate::{Error, Result};

/// The device that `auto`, `cpu`, `cuda` or `cuda:N` means; `auto` takes a GPU where this build and machine have one.
///
/// # Errors
/// [`Error::Usage`] for another word; [`Error::Tensor`] when the GPU cannot be opened.
pub fn parse(text: &str) -> Result<Device> {
    match text {
        "cpu" => Ok(Device::Cpu),
        "auto" => Ok(Device::cuda_if_available(0)?),
        _ => {
            let ordinal = match text.strip_prefix("cuda") {
                Some("") => Some(0),
                Some(rest) => rest.strip_prefix(':').and_then(|n| n.parse::<usize>().ok()),
                None => None,
            };
            match ordinal {
                Some(ordinal) => Ok(Device::new_cuda(ordinal)?),
                None => Err(Error::usage(format!("expected `auto`, `cpu`, `cuda` or `cuda:N`, got `{text}`"))),
            }
        }
    }
}

/// `cpu`, `cuda` or `metal`.
#[must_use]
pub fn kind(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    }
}

/// The widest vector instructions that the host has: sums of other widths round differently.
#[must_use]
pub fn simd() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return "avx512";
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return "avx2";
        }
        "sse2"
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        if cfg!(target_arch = "aarch64") { "neon" } else { "scalar" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_nobody_knows_is_a_usage_error() {
        for text in ["gpu", "cuda:x", "cuda0", ""] {
            assert_eq!(parse(text).unwrap_err().exit_code(), 2, "{text}");
        }
        assert_eq!(kind(&parse("cpu").unwrap()), "cpu");
    }
}
