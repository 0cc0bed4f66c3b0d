//! Tests of attention against naive double-precision loops, with every instruction set.

use super::cross::CrossAttention;
use super::windows::WindowAttention;
use crate::cpu_features::Instructions;

/// Pseudorandom numbers in [-1, 1), determined by the seed.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        #[allow(clippy::cast_precision_loss)] // 24 bits.
        let value = (state >> 40) as f32;
        value / f32::from(1_u16 << 12) / 2048.0 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn close(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1.0_f64, |most, x| most.max(x.abs()));
    for (place, (&found, expected)) in found.iter().zip(expected).enumerate() {
        // Sums of up to a few hundred products, each rounded to 2^-24.
        let difference = (f64::from(found) - expected).abs();
        assert!(
            difference <= 5e-6 * largest,
            "{what} {place}: {found}, {expected}"
        );
    }
}

/// Inputs of one query, and the derivatives of its output.
struct NaiveQuery {
    d: usize,
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
}

impl NaiveQuery {
    fn weights(&self, query: &[f64], added: &[f64]) -> Vec<f64> {
        #[allow(clippy::cast_precision_loss)]
        let scale = 1.0 / (self.d as f64).sqrt();
        let scores: Vec<f64> = (self.keys.iter().zip(added))
            .map(|(key, added)| dot(query, key) * scale + added)
            .collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let all: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let sum: f64 = all.iter().sum();
        all.iter().map(|weight| weight / sum).collect()
    }

    fn read(&self, query: &[f64], added: &[f64]) -> Vec<f64> {
        let mut out = vec![0.0; self.d];
        for (weight, value) in self.weights(query, added).iter().zip(&self.values) {
            out.iter_mut()
                .zip(value)
                .for_each(|(out, x)| *out += weight * x);
        }
        out
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn wide(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().copied().map(f64::from).collect()
}

fn cross_case(
    keys: usize,
    head_width: usize,
    unmasked: Option<Vec<Vec<u32>>>,
    instructions: Instructions,
) -> CrossAttention {
    CrossAttention {
        samples: 2,
        queries: 13,
        keys,
        heads: 3,
        head_width,
        unmasked,
        threads: 2,
        instructions,
    }
}

/// Weighted sum of the output, with weights `grad`, in double precision.
fn cross_loss(attention: &CrossAttention, tensors: [&[f64]; 3], grad: &[f64]) -> (f64, Vec<f64>) {
    let (n, m, h, d) = (
        attention.queries,
        attention.keys,
        attention.heads,
        attention.head_width,
    );
    let row = |tensor: &[f64], sample: usize, tokens: usize, token: usize, head: usize| {
        tensor[((sample * tokens + token) * h + head) * d..][..d].to_vec()
    };
    let mut out = vec![0.0; attention.samples * n * h * d];
    for (sample, head) in (0..attention.samples).flat_map(|b| (0..h).map(move |head| (b, head))) {
        let every: Vec<u32> = (0..).take(m).collect();
        let real = attention
            .unmasked
            .as_ref()
            .map_or(&every, |real| &real[sample]);
        let rows = |tensor: &[f64]| {
            (real
                .iter()
                .map(|&key| row(tensor, sample, m, key as usize, head)))
            .collect()
        };
        let plain = NaiveQuery {
            d,
            keys: rows(tensors[1]),
            values: rows(tensors[2]),
        };
        for i in 0..n {
            let query = row(tensors[0], sample, n, i, head);
            let to = &mut out[((sample * n + i) * h + head) * d..][..d];
            to.copy_from_slice(&plain.read(&query, &vec![0.0; real.len()]));
        }
    }
    (dot(&out, grad), out)
}

#[test]
fn cross_attention_equals_naive_loops() {
    let some = vec![vec![0, 3, 4, 20], (0..17).collect()];
    // Fewer keys than queries, more keys, and so many keys that they are processed in blocks.
    let many = vec![(0..100).chain(105..401).collect(), (3..99).collect()];
    for (keys, width, real, instructions) in [
        (7, 32, None),
        (21, 32, None),
        (21, 32, Some(some.clone())),
        (401, 32, None),
        (401, 32, Some(many)),
        (7, 20, None),
        (21, 5, Some(some)),
        (801, 23, None),
    ]
    .into_iter()
    .flat_map(|(keys, width, real)| {
        Instructions::available().map(move |set| (keys, width, real.clone(), set))
    }) {
        let attention = cross_case(keys, width, real, instructions);
        let row = attention.heads * attention.head_width;
        let counts = [2 * 13 * row, 2 * keys * row, 2 * keys * row];
        let tensors = [0, 1, 2].map(|i| numbers(counts[i], i as u64 + 1));
        let grad = numbers(counts[0], 9);
        let inputs = [0, 1, 2].map(|i| &tensors[i][..]);
        let mut out = vec![f32::NAN; counts[0]];
        let mut logsumexp = vec![f32::NAN; 2 * 3 * 13];
        attention.forward(inputs, &mut out, &mut logsumexp).unwrap();
        let exact = [0, 1, 2].map(|i| wide(&tensors[i]));
        let (_, expected) = cross_loss(&attention, [0, 1, 2].map(|i| &exact[i][..]), &wide(&grad));
        close(&out, &expected, "out");
        assert!(logsumexp.iter().all(|sum| sum.is_finite()));
        let mut found = counts.map(|count| vec![f32::NAN; count]);
        let of = found.each_mut().map(|of| &mut of[..]);
        attention
            .backward(&grad, inputs, (&out, &logsumexp), of)
            .unwrap();
        for (i, found) in found.iter().enumerate() {
            // Compare some elements of each tensor with finite differences.
            for place in (0..counts[i]).step_by(counts[i] / 37) {
                let mut shifted = exact.clone();
                let mut loss = |step: f64| {
                    shifted[i][place] = exact[i][place] + step;
                    cross_loss(&attention, [0, 1, 2].map(|i| &shifted[i][..]), &wide(&grad)).0
                };
                let expected = (loss(1e-5) - loss(-1e-5)) / 2e-5;
                close(&found[place..=place], &[expected], "gradient");
            }
        }
    }
}

#[test]
fn masked_keys_may_hold_anything() {
    let attention = cross_case(21, 20, Some(vec![vec![1, 2], vec![]]), Instructions::best());
    let row = attention.heads * attention.head_width;
    let query = numbers(2 * 13 * row, 1);
    let mut key = numbers(2 * 21 * row, 2);
    for (place, value) in key.iter_mut().enumerate() {
        if !(row..3 * row).contains(&place) {
            *value = f32::NAN;
        }
    }
    let inputs = [&query[..], &key, &key];
    let mut out = vec![f32::NAN; query.len()];
    let mut logsumexp = vec![f32::NAN; 2 * 3 * 13];
    attention.forward(inputs, &mut out, &mut logsumexp).unwrap();
    assert!(out[..13 * row].iter().all(|x| x.is_finite() && *x != 0.0));
    assert!(out[13 * row..].iter().all(|&x| x == 0.0));
    assert!(
        logsumexp[3 * 13..]
            .iter()
            .all(|&sum| sum == f32::NEG_INFINITY)
    );
    let mut found = [query.len(), key.len(), key.len()].map(|count| vec![f32::NAN; count]);
    let of = found.each_mut().map(|of| &mut of[..]);
    attention
        .backward(&query, inputs, (&out, &logsumexp), of)
        .unwrap();
    for (i, found) in found.iter().enumerate() {
        let read = if i == 0 { 0..13 * row } else { row..3 * row };
        for (place, value) in found.iter().enumerate() {
            assert!(value.is_finite() && (read.contains(&place) || *value == 0.0));
        }
    }
}

fn windows_case(width: usize, threads: usize, instructions: Instructions) -> WindowAttention {
    WindowAttention {
        samples: 2,
        map: (5, 7),
        heads: 2,
        head_width: width,
        window: 3,
        shift: 1,
        sizes: Some(vec![(5, 7), (2, 4)]),
        threads,
        instructions,
    }
}

#[test]
fn windows_are_the_same_with_any_number_of_threads_and_any_instructions() {
    for width in [16, 20, 3] {
        compare_windows(width);
    }
}

fn compare_windows(width: usize) {
    let row = 2 * width;
    let mut plain = None;
    for instructions in Instructions::available() {
        let run = |threads| {
            let attention = windows_case(width, threads, instructions);
            let sizes = [2 * 35 * 3 * row, 25 * 2, 3 * row];
            let [qkv, table, bias] = sizes.map(|n| numbers(n, n as u64));
            let grad = numbers(2 * 35 * row, 5);
            let inputs = [&qkv[..], &table, &bias];
            let mut all = [2 * 35 * row, qkv.len(), table.len(), bias.len()].map(|n| vec![0.0; n]);
            let [out, grad_qkv, grad_table, grad_bias] = &mut all;
            attention.forward(inputs, out).unwrap();
            let grads = [&mut grad_qkv[..], grad_table, grad_bias];
            attention.backward(&grad, inputs, grads).unwrap();
            all
        };
        let found = run(1);
        assert_eq!(found, run(3));
        // The scalar loops run first; Python tests compare the widest registers with a reference.
        let plain = plain.get_or_insert_with(|| found.clone());
        for (found, plain) in found.iter().zip(&*plain) {
            close(found, &wide(plain), "windows");
        }
    }
}

#[test]
fn wrong_sizes_are_rejected() {
    let attention = windows_case(16, 1, Instructions::best());
    let [qkv, table, bias] = [2 * 35 * 96, 25 * 2, 95].map(|n| numbers(n, 1));
    let inputs = [&qkv[..], &table, &bias];
    let error = attention
        .forward(inputs, &mut [0.0; 2 * 35 * 32])
        .unwrap_err();
    assert!(error.to_string().contains("expected 96 elements, got 95"));
}

#[test]
fn sizes_that_overflow_are_rejected() {
    // 16 samples of 2^60 keys would be 2^64 elements, which wraps to none.
    let attention = CrossAttention {
        samples: 16,
        queries: 1,
        keys: 1 << 60,
        heads: 1,
        head_width: 1,
        unmasked: None,
        threads: 1,
        instructions: Instructions::best(),
    };
    let (mut out, mut logsumexp) = ([0.0; 16], [0.0; 16]);
    let error = attention
        .forward([&[0.0; 16], &[], &[]], &mut out, &mut logsumexp)
        .unwrap_err();
    assert!(error.to_string().starts_with("key: expected "), "{error}");
}

#[test]
fn heads_without_keys_have_zeros() {
    let attention = CrossAttention {
        samples: 1,
        queries: 2,
        keys: 0,
        heads: 3,
        head_width: 5,
        unmasked: None,
        threads: 1,
        instructions: Instructions::best(),
    };
    let (mut out, mut logsumexp) = ([1.0; 30], [0.0; 6]);
    attention
        .forward([&[1.0; 30], &[], &[]], &mut out, &mut logsumexp)
        .unwrap();
    assert!(out.iter().all(|&value| value == 0.0));
    assert!(logsumexp.iter().all(|&value| value == f32::NEG_INFINITY));
}

/// On a processor without AVX-512, these instructions would end the process.
#[test]
fn instructions_are_those_of_the_processor_or_fewer() {
    let attention = CrossAttention {
        samples: 1,
        queries: 1,
        keys: 1,
        heads: 1,
        head_width: 1,
        unmasked: None,
        threads: 1,
        instructions: Instructions::Avx512,
    };
    let (mut out, mut logsumexp) = ([0.0], [0.0]);
    attention
        .forward([&[1.0], &[1.0], &[3.0]], &mut out, &mut logsumexp)
        .unwrap();
    assert!((out[0] - 3.0).abs() < 1e-6);
}
