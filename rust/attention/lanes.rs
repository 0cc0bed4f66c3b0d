//! SIMD registers with the operations that attention needs.
//!
//! Every function is inlined into a caller compiled for a specific instruction set; see [`super`].

#[cfg(target_arch = "x86_64")]
#[allow(clippy::wildcard_imports)] // Intrinsics.
use std::arch::x86_64::*;

/// Constants for range reduction of the exponential: log2(e), and ln(2) in two parts.
const LOG2_E: f32 = std::f32::consts::LOG2_E;
const LN_2: f32 = std::f32::consts::LN_2;
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// Exponentials of smaller arguments (results below 1.6e-28) are flushed to 0, since products would
/// otherwise be subnormal, which is many times slower.
const LEAST: f32 = -64.0;
/// Minimax polynomial p in exp(r) = 1 + r + r^2 p(r), for |r| <= ln(2) / 2.
const POLYNOMIAL: [f32; 5] = [
    1.381_459_9e-3,
    8.368_717e-3,
    4.166_839e-2,
    1.666_652_1e-1,
    4.999_999_4e-1,
];

/// Permutations of four lanes that swap halves, and neighbors.
#[cfg(target_arch = "x86_64")]
const HALVES: i32 = 0b01_00_11_10;
#[cfg(target_arch = "x86_64")]
const NEIGHBORS: i32 = 0b10_11_00_01;

/// A SIMD register.
///
/// # Safety
/// An implementation accesses exactly [`Lanes::WIDTH`] elements, a divisor of 16, through a
/// pointer, of any alignment. Callers of its methods ensure that the processor supports its
/// instructions; callers of [`Lanes::load`] and [`Lanes::store`], that the pointer is valid for
/// reading or writing these elements.
pub(super) unsafe trait Lanes: Copy {
    /// Number of lanes.
    const WIDTH: usize;

    /// Broadcast a number to all lanes.
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn subtract(self, other: Self) -> Self;
    unsafe fn multiply(self, other: Self) -> Self;
    /// self * factor + term.
    unsafe fn multiply_add(self, factor: Self, term: Self) -> Self;
    /// Lane-wise maximum; `other` if either is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// Round to nearest.
    unsafe fn round(self) -> Self;
    /// self * 2^power, for integers from -126 to 127.
    unsafe fn scale(self, power: Self) -> Self;
    /// self, or 0 where a < b.
    unsafe fn unless_less(self, a: Self, b: Self) -> Self;
    /// Reduce over all lanes and broadcast the result.
    unsafe fn folded(self, combine: impl Fn(Self, Self) -> Self) -> Self;
    /// The first lane.
    unsafe fn first(self) -> f32;

    /// Sum of all lanes, broadcast.
    #[inline(always)]
    unsafe fn sum(self) -> Self {
        // SAFETY: the caller guarantees the instructions of these methods; no memory is accessed.
        unsafe { self.folded(|a, b| a.add(b)) }
    }

    /// Exponential to within 2 ulps; 0 below [`LEAST`].
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: the caller guarantees the instructions of these methods; no memory is accessed.
        unsafe {
            // NaN is preserved; results below the cutoff are replaced at the end.
            let power = self.multiply(Self::splat(LOG2_E)).round();
            let rest = power.multiply_add(Self::splat(-LN_2_HIGH), self);
            let rest = power.multiply_add(Self::splat(-LN_2_LOW), rest);
            rest.near_one(power).unless_less(self, Self::splat(LEAST))
        }
    }

    /// exp(self - y / log2(e)), without dividing y, which would add a rounding error as large as
    /// that of the difference.
    #[inline(always)]
    unsafe fn exp_minus(self, y: Self) -> Self {
        // SAFETY: the caller guarantees the instructions of these methods; no memory is accessed.
        unsafe {
            let x = self.multiply_add(Self::splat(LOG2_E), Self::splat(0.0).subtract(y));
            let power = x.round();
            let rest = x.subtract(power).multiply(Self::splat(LN_2));
            let least = Self::splat(LEAST * LOG2_E);
            rest.near_one(power).unless_less(x, least)
        }
    }

    /// exp(self) * 2^power, for arguments in the range of [`POLYNOMIAL`].
    #[inline(always)]
    unsafe fn near_one(self, power: Self) -> Self {
        // SAFETY: the caller guarantees the instructions of these methods; no memory is accessed.
        unsafe {
            let mut sum = Self::splat(POLYNOMIAL[0]);
            let mut i = 1;
            while i < POLYNOMIAL.len() {
                sum = sum.multiply_add(self, Self::splat(POLYNOMIAL[i]));
                i += 1;
            }
            let square = self.multiply(self);
            sum.multiply_add(square, self)
                .add(Self::splat(1.0))
                .scale(power)
        }
    }
}

/// Define binary operations of [`Lanes`].
macro_rules! operations {
    ($($name:ident($this:ident $(, $other:ident)*) => $register:expr,)*) => {$(
        #[inline(always)]
        unsafe fn $name($this $(, $other: Self)*) -> Self {
            // SAFETY: the caller guarantees the instructions of the type; no memory is accessed.
            #[allow(unused_unsafe)]
            unsafe { Self($register) }
        }
    )*};
}

/// Eight lanes without SIMD instructions.
#[derive(Clone, Copy)]
pub(super) struct Scalar([f32; 8]);

#[inline(always)]
fn each(a: Scalar, b: Scalar, combine: impl Fn(f32, f32) -> f32) -> [f32; 8] {
    std::array::from_fn(|lane| combine(a.0[lane], b.0[lane]))
}

// SAFETY: an array of eight elements is loaded and stored, without special instructions.
unsafe impl Lanes for Scalar {
    const WIDTH: usize = 8;

    operations! {
        add(self, other) => each(self, other, |a, b| a + b),
        subtract(self, other) => each(self, other, |a, b| a - b),
        multiply(self, other) => each(self, other, |a, b| a * b),
        multiply_add(self, factor, term) => each(self.multiply(factor), term, |a, b| a + b),
        max(self, other) => each(self, other, |a, b| if a > b { a } else { b }),
        round(self) => self.0.map(f32::round_ties_even),
        unless_less(self, a, b) => std::array::from_fn(|lane| {
            if a.0[lane] < b.0[lane] { 0.0 } else { self.0[lane] }
        }),
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 8])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller guarantees that the eight elements of the array are readable.
        Self(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller guarantees that the eight elements of the array are writable.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) };
    }

    #[inline(always)]
    unsafe fn scale(self, power: Self) -> Self {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // -126 to 127.
        Self(each(self, power, |a, b| {
            a * f32::from_bits(((b as i32 + 127) as u32) << 23)
        }))
    }

    #[inline(always)]
    unsafe fn folded(self, combine: impl Fn(Self, Self) -> Self) -> Self {
        [4, 2, 1].into_iter().fold(self, |x, half| {
            combine(x, Self(std::array::from_fn(|lane| x.0[lane ^ half])))
        })
    }

    #[inline(always)]
    unsafe fn first(self) -> f32 {
        self.0[0]
    }
}

/// Eight lanes with AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256);

// SAFETY: the eight elements of a register are loaded and stored; all instructions are of AVX2 and
// FMA.
#[cfg(target_arch = "x86_64")]
unsafe impl Lanes for Avx2 {
    const WIDTH: usize = 8;

    operations! {
        add(self, other) => _mm256_add_ps(self.0, other.0),
        subtract(self, other) => _mm256_sub_ps(self.0, other.0),
        multiply(self, other) => _mm256_mul_ps(self.0, other.0),
        multiply_add(self, factor, term) => _mm256_fmadd_ps(self.0, factor.0, term.0),
        max(self, other) => _mm256_max_ps(self.0, other.0),
        round(self) => {
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)
        },
        unless_less(self, a, b) => {
            _mm256_and_ps(self.0, _mm256_cmp_ps::<_CMP_NLT_UQ>(a.0, b.0))
        },
        scale(self, power) => {
            let bits = _mm256_add_epi32(_mm256_cvtps_epi32(power.0), _mm256_set1_epi32(127));
            _mm256_mul_ps(self.0, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(bits)))
        },
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller guarantees AVX2.
        Self(unsafe { _mm256_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller guarantees AVX2 and that eight elements are readable.
        Self(unsafe { _mm256_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller guarantees AVX2 and that eight elements are writable.
        unsafe { _mm256_storeu_ps(to, self.0) };
    }

    #[inline(always)]
    unsafe fn folded(self, combine: impl Fn(Self, Self) -> Self) -> Self {
        // SAFETY: the caller guarantees AVX2.
        unsafe {
            let x = combine(self, Self(_mm256_permute2f128_ps::<1>(self.0, self.0)));
            let x = combine(x, Self(_mm256_permute_ps::<HALVES>(x.0)));
            combine(x, Self(_mm256_permute_ps::<NEIGHBORS>(x.0)))
        }
    }

    #[inline(always)]
    unsafe fn first(self) -> f32 {
        // SAFETY: the caller guarantees AVX2.
        unsafe { _mm256_cvtss_f32(self.0) }
    }
}

/// Sixteen lanes with AVX-512.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512);

// SAFETY: the sixteen elements of a register are loaded and stored; all instructions are of AVX-512
// F.
#[cfg(target_arch = "x86_64")]
unsafe impl Lanes for Avx512 {
    const WIDTH: usize = 16;

    operations! {
        add(self, other) => _mm512_add_ps(self.0, other.0),
        subtract(self, other) => _mm512_sub_ps(self.0, other.0),
        multiply(self, other) => _mm512_mul_ps(self.0, other.0),
        multiply_add(self, factor, term) => _mm512_fmadd_ps(self.0, factor.0, term.0),
        max(self, other) => _mm512_max_ps(self.0, other.0),
        round(self) => {
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)
        },
        unless_less(self, a, b) => {
            _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(a.0, b.0), self.0)
        },
        scale(self, power) => _mm512_scalef_ps(self.0, power.0),
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller guarantees AVX-512 F.
        Self(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller guarantees AVX-512 F and that sixteen elements are readable.
        Self(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller guarantees AVX-512 F and that sixteen elements are writable.
        unsafe { _mm512_storeu_ps(to, self.0) };
    }

    #[inline(always)]
    unsafe fn folded(self, combine: impl Fn(Self, Self) -> Self) -> Self {
        // SAFETY: the caller guarantees AVX-512 F.
        unsafe {
            let x = combine(self, Self(_mm512_shuffle_f32x4::<HALVES>(self.0, self.0)));
            let x = combine(x, Self(_mm512_shuffle_f32x4::<NEIGHBORS>(x.0, x.0)));
            let x = combine(x, Self(_mm512_permute_ps::<HALVES>(x.0)));
            combine(x, Self(_mm512_permute_ps::<NEIGHBORS>(x.0)))
        }
    }

    #[inline(always)]
    unsafe fn first(self) -> f32 {
        // SAFETY: the caller guarantees AVX-512 F.
        unsafe { _mm512_cvtss_f32(self.0) }
    }
}
