//! AVX2 shuffles used by several modules.

#[allow(clippy::wildcard_imports)] // Intrinsics.
use std::arch::x86_64::*;

/// Bytes per register, and per half; shuffles work within a half.
pub(crate) const BYTES: usize = 32;
pub(crate) const HALF: usize = 16;
/// Shuffle index that produces 0.
pub(crate) const NONE: u8 = 0x80;

#[repr(C, align(32))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowSpan(pub [u8; BYTES]);

/// # Safety
/// 32 bytes must be readable.
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) unsafe fn load(bytes: *const u8) -> __m256i {
    // SAFETY: the caller guarantees that the 32 bytes are readable.
    unsafe { _mm256_loadu_si256(bytes.cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn line(bytes: &RowSpan) -> __m256i {
    // SAFETY: the array has 32 bytes.
    unsafe { load(bytes.0.as_ptr()) }
}

/// For each of three 16-byte groups, the source indices of its bytes in the sixteen values of each
/// channel, in both halves.
static MERGE: [[RowSpan; 3]; 3] = {
    let mut index = [[RowSpan([NONE; BYTES]); 3]; 3];
    let mut place = 0;
    while place < 3 * HALF {
        let line = &mut index[place / HALF][place % 3].0;
        line[place % HALF] = (place / 3).to_le_bytes()[0];
        line[HALF + place % HALF] = line[place % HALF];
        place += 1;
    }
    index
};

/// Shuffle three registers, each with its own index, and combine them.
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn gather(sources: [__m256i; 3], index: &[RowSpan; 3]) -> __m256i {
    let first = _mm256_shuffle_epi8(sources[0], line(&index[0]));
    let second = _mm256_shuffle_epi8(sources[1], line(&index[1]));
    let third = _mm256_shuffle_epi8(sources[2], line(&index[2]));
    _mm256_or_si256(_mm256_or_si256(first, second), third)
}

/// Store 32 pixels.
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn merge_planes(planes: [__m256i; 3], pixels: &mut [u8; 3 * BYTES]) {
    let start = pixels.as_mut_ptr();
    for (output, index) in MERGE.iter().enumerate() {
        let merged = gather(planes, index);
        let (low, high) = (
            _mm256_castsi256_si128(merged),
            _mm256_extracti128_si256::<1>(merged),
        );
        // SAFETY: six times 16 bytes are stored, the length of the array.
        unsafe {
            _mm_storeu_si128(start.add(output * HALF).cast(), low);
            _mm_storeu_si128(start.add((output + 3) * HALF).cast(), high);
        }
    }
}
