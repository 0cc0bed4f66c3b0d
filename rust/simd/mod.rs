//! Runtime dispatch of portable loops, which are compiled a second time with AVX2 and FMA; the
//! output is the same.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;

/// Adding this to a number between -2^22 and 2^22 leaves the number, rounded to nearest even, in
/// the low bits of the sum, which is a vectorizable cast.
pub(crate) const INTEGER: f32 = 12_582_912.0;

/// A loop for [`run`]. Everything it calls must be inlined; otherwise, it is compiled only for the
/// baseline.
pub(crate) trait SimdLoop {
    /// Run the loop, compiled with the caller's instruction set.
    fn run(self);
}

/// Run a loop with AVX2 and FMA if the processor supports them.
pub(crate) fn run(work: impl SimdLoop) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has AVX2 and FMA, as checked.
        unsafe { run_avx2(work) };
        return;
    }
    work.run();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2(work: impl SimdLoop) {
    work.run();
}
