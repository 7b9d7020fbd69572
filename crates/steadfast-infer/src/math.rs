//! What `core` does not have: of the standard library where there is one, of libm elsewhere.

#[cfg(feature = "std")]
extern crate std;

/// The square root, correctly rounded in both.
pub fn sqrt(value: f32) -> f32 {
    #[cfg(feature = "std")]
    return value.sqrt();
    #[cfg(not(feature = "std"))]
    libm::sqrtf(value)
}

/// The exponential function.
pub fn exp(value: f32) -> f32 {
    #[cfg(feature = "std")]
    return value.exp();
    #[cfg(not(feature = "std"))]
    libm::expf(value)
}

/// The next whole number, halves away from zero.
pub fn round(value: f64) -> f64 {
    #[cfg(feature = "std")]
    return value.round();
    #[cfg(not(feature = "std"))]
    libm::round(value)
}
