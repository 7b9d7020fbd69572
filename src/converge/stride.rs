//! The convergence stride γ: how far a loss may move from last epoch's mean before it counts as an outlier.

/// How the distance d between the benign means of adjacent epochs is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StrideRule {
    /// d = |u - u₋₂|: the paper.
    Absolute,
    /// d = u - u₋₂: the released code, where a falling loss always gives γ_min.
    Signed,
}

/// γ = min(max(d, γ_min), γ_max).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stride {
    /// Largest γ.
    pub max: f32,
    /// Smallest γ.
    pub min: f32,
    /// How d is taken.
    pub rule: StrideRule,
}

impl Stride {
    /// γ from last epoch's mean benign loss and that of the epoch before.
    pub fn gamma(&self, last: f32, before: f32) -> f32 {
        let distance = match self.rule {
            StrideRule::Absolute => (last - before).abs(),
            StrideRule::Signed => last - before,
        };
        distance.max(self.min).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gamma_is_clamped_and_its_sign_follows_the_preset() {
        let paper = Stride { max: 0.03, min: 0.02, rule: StrideRule::Absolute };
        for (last, before, gamma) in
            [(2.0, 2.5, 0.03), (2.5, 2.0, 0.03), (2.0, 2.001, 0.02), (2.0, 2.025, 0.025)]
        {
            assert!((paper.gamma(last, before) - gamma).abs() < 1e-6, "{last} {before}");
        }
        let signed = Stride { rule: StrideRule::Signed, ..paper };
        assert_eq!(signed.gamma(2.0, 2.5), 0.02, "a falling loss gives the smallest stride");
        assert_eq!(signed.gamma(2.5, 2.0), 0.03);
    }
}
