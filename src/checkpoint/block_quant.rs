//! llama.cpp's simplest block formats: 32 numbers with one scale.
//!
//! *Source*: `quantize_row_q8_0_ref` and `quantize_row_q4_0_ref` of ggml, number for number: the scale is rounded to f16
//! for storage, but numbers are divided by the one that is not.

use half::f16;

/// Eight bits: the scale is the largest magnitude over 127.
#[derive(Debug)]
pub struct Q8_0;

/// Four bits: the scale is the number of largest magnitude over −8.
#[derive(Debug)]
pub struct Q4_0;

const HALF: usize = 16;

impl Q8_0 {
    /// Numbers in a block.
    pub const ELEMENTS: usize = 32;
    /// Bytes of a block.
    pub const BYTES: usize = 34;

    /// Reads whole blocks.
    pub fn dequantise(bytes: &[u8], values: &mut [f32]) {
        for (values, block) in values.chunks_mut(Self::ELEMENTS).zip(bytes.as_chunks::<{ Self::BYTES }>().0) {
            let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
            for (value, byte) in values.iter_mut().zip(&block[2..]) {
                *value = f32::from(*byte as i8) * scale;
            }
        }
    }

    /// What `values` are after they were stored and read again; a last block may be short.
    pub fn round_trip(values: &mut [f32]) {
        for block in values.chunks_mut(Self::ELEMENTS) {
            let largest = block.iter().fold(0f32, |largest, v| largest.max(v.abs()));
            let scale = largest / 127.0;
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            let stored = f16::from_f32(scale).to_f32();
            block.iter_mut().for_each(|v| *v = (*v * inverse).round() * stored);
        }
    }
}

impl Q4_0 {
    /// Numbers in a block.
    pub const ELEMENTS: usize = 32;
    /// Bytes of a block.
    pub const BYTES: usize = 18;

    /// Reads whole blocks.
    pub fn dequantise(bytes: &[u8], values: &mut [f32]) {
        for (values, block) in values.chunks_mut(Self::ELEMENTS).zip(bytes.as_chunks::<{ Self::BYTES }>().0) {
            let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
            for (at, value) in values.iter_mut().enumerate() {
                let pair = block[2 + at % HALF];
                let nibble = if at < HALF { pair & 0xf } else { pair >> 4 };
                *value = (f32::from(nibble) - 8.0) * scale;
            }
        }
    }

    /// What `values` are after they were stored and read again; a last block may be short.
    pub fn round_trip(values: &mut [f32]) {
        for block in values.chunks_mut(Self::ELEMENTS) {
            let largest = block.iter().fold(0f32, |largest, v| if v.abs() > largest.abs() { *v } else { largest });
            let scale = largest / -8.0;
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            let stored = f16::from_f32(scale).to_f32();
            block.iter_mut().for_each(|v| *v = ((*v * inverse + 8.5).trunc().min(15.0) - 8.0) * stored);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_twice_is_rounding_once_and_errs_by_half_a_step() {
        let values: Vec<f32> = (0..64).map(|i| ((i * 37 % 64) as f32 - 31.5) / 16.0).collect();
        // The scale itself is stored with eleven bits.
        for (round, step) in [(Q8_0::round_trip as fn(&mut [f32]), 2.0 / 127.0), (Q4_0::round_trip, 2.0 / 8.0)] {
            let mut once = values.clone();
            round(&mut once);
            for (a, b) in values.iter().zip(&once) {
                assert!((a - b).abs() <= 1.01 * step, "{a} {b}");
            }
            let mut twice = once.clone();
            round(&mut twice);
            for (a, b) in once.iter().zip(&twice) {
                assert!((a - b).abs() <= 2e-3 * a.abs() + 1e-7, "{a} {b}");
            }
        }
        let mut zeros = [0.0; 32];
        Q4_0::round_trip(&mut zeros);
        Q8_0::round_trip(&mut zeros);
        assert_eq!(zeros, [0.0; 32]);
    }

    #[test]
    fn blocks_are_read_as_they_lie() {
        let mut block = [0u8; Q4_0::BYTES];
        block[..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        block[2] = 0xf0;
        let mut values = [1.0; 32];
        Q4_0::dequantise(&block, &mut values);
        assert_eq!((values[0], values[16], values[1]), (-4.0, 3.5, -4.0));
        let mut block = [0u8; Q8_0::BYTES];
        block[..2].copy_from_slice(&f16::from_f32(0.25).to_le_bytes());
        block[33] = 0x80;
        Q8_0::dequantise(&block, &mut values);
        assert_eq!((values[0], values[31]), (0.0, -32.0));
    }
}
