//! Every set of instructions against plain sums.

use half::f16;

use super::Dots;
use crate::cpu::int8::{Int8Tile, PackInt8, panel_bytes};
use crate::weights::{INT8_BLOCK, Int8Blocks};

const BLOCKS: usize = 3;
const K: usize = BLOCKS * INT8_BLOCK;

/// Values with every extreme beside every other.
fn value(i: usize, least: i32) -> i8 {
    let choices = [127, least, 0, -127, 127, 1, least, 126, -1, 127, 127, least];
    choices[i * 7 % choices.len()] as i8
}

#[test]
fn sums_are_exact_at_the_extremes() {
    for (dots, n) in [
        (Dots::Avx512Vnni, 32),
        (Dots::Avx512, 32),
        (Dots::AvxVnni, 16),
        (Dots::Avx2, 16),
        (Dots::Portable, 16),
    ] {
        if !dots.available() {
            continue;
        }
        // A file may hold -128; activations do not.
        let weights = Int8Blocks {
            scales: (0..n * BLOCKS).map(|i| f16::from_f32(0.5 + i as f32)).collect(),
            values: (0..n * K).map(|i| value(i / K * 5 + i, -128)).collect(),
        };
        let lanes: Vec<_> = (0..n).map(|lane| Some((&weights, lane))).collect();
        let mut panel = vec![0; panel_bytes(n, K)];
        PackInt8 { rows: &lanes, k: K }.run(&mut panel);
        for rows in 1..=dots.rows() {
            let x: Vec<i8> = (0..rows * K).map(|i| value(i / K * 3 + i, -127)).collect();
            let x_scale = |row: usize, block: usize| 0.25 + (row * BLOCKS + block) as f32;
            let stride = K + BLOCKS * 8;
            let mut input = vec![0_u8; rows * stride];
            for (row, to) in input.chunks_exact_mut(stride).enumerate() {
                let x = &x[row * K..][..K];
                to[..K].copy_from_slice(&x.iter().map(|x| x.cast_unsigned()).collect::<Vec<_>>());
                for (block, (to, x)) in to[K..].chunks_exact_mut(8).zip(x.chunks(32)).enumerate() {
                    let sum: i32 = x.iter().map(|&x| i32::from(x)).sum();
                    to[..4].copy_from_slice(&x_scale(row, block).to_ne_bytes());
                    to[4..].copy_from_slice(&(128 * sum).to_ne_bytes());
                }
            }
            let mut c = vec![f32::NAN; rows * n];
            let tile = Int8Tile {
                x: input.as_ptr(),
                x_stride: stride,
                w: panel.as_ptr(),
                blocks: BLOCKS,
                next: Some(panel.as_ptr()),
                c: c.as_mut_ptr(),
                c_stride: n,
            };
            // SAFETY: the instructions are there; all of it is as long as the tile says.
            unsafe { dots.tile(&tile, rows) };
            for (row, c) in c.chunks_exact(n).enumerate() {
                for (lane, &found) in c.iter().enumerate() {
                    let product = |k: usize| {
                        i32::from(weights.values[lane * K + k]) * i32::from(x[row * K + k])
                    };
                    // A saturated pair is far more off than the rounding of f32.
                    let expected = (0..BLOCKS).fold(0.0, |sum, block| {
                        let scale = weights.scales[lane * BLOCKS + block].to_f32();
                        let products: i32 = (block * 32..block * 32 + 32).map(product).sum();
                        sum + f64::from(scale * x_scale(row, block)) * f64::from(products)
                    });
                    let off = (f64::from(found) - expected).abs() / expected.abs().max(1.0);
                    assert!(off < 1e-6, "{dots:?}, {rows} rows: {found}, {expected}");
                }
            }
        }
    }
}
