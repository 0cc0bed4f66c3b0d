//! Loops that are compiled again for the wider instructions of the processor at hand; the same bytes
//! come out.

/// Added to a number between -2^22 and 2^22, it leaves the number in the low bits of the sum, rounded
/// to nearest with ties to even: a cast that every instruction set has for many numbers at once.
pub(crate) const INTEGER: f32 = 12_582_912.0;

/// A loop to be run by [`run`]. Whatever it calls must be inlined, or is compiled once only.
pub(crate) trait SimdLoop {
    /// Run the loop with the instructions of its caller.
    fn run(self);
}

/// Run a loop with the widest instructions that the processor has.
pub(crate) fn run(work: impl SimdLoop) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has the features that the function is compiled for.
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
