//! Whether two samples come from one distribution (Kolmogorov and Smirnov).

/// The largest distance of the two empirical distribution functions, 0 to 1; 0 where a sample is empty.
pub fn statistic(one: &[f32], other: &[f32]) -> f64 {
    if one.is_empty() || other.is_empty() {
        return 0.0;
    }
    let [mut one, mut other] = [one.to_vec(), other.to_vec()];
    one.sort_by(f32::total_cmp);
    other.sort_by(f32::total_cmp);
    let share = |sorted: &[f32], value: f32| {
        sorted.partition_point(|&before| before <= value) as f64 / sorted.len() as f64
    };
    let distances = one.iter().chain(&other).map(|&value| (share(&one, value) - share(&other, value)).abs());
    distances.max_by(f64::total_cmp).unwrap_or(0.0)
}

/// How probable a statistic as large as this is for samples of these sizes from one distribution: the asymptotic series with the
/// correction of Stephens (*Use of the Kolmogorov-Smirnov, Cramér-von Mises and related statistics without extensive tables*, 1970).
pub fn p_value(statistic: f64, one: usize, other: usize) -> f64 {
    let size = (one as f64 * other as f64 / (one + other).max(1) as f64).sqrt();
    let lambda = (size + 0.12 + 0.11 / size.max(f64::MIN_POSITIVE)) * statistic;
    if lambda < 0.2 {
        // The series converges slowly there, and the value is 1 to 12 digits.
        return 1.0;
    }
    let term = |k: i32| {
        let sign = if k % 2 == 1 { 2.0 } else { -2.0 };
        sign * (-2.0 * f64::from(k * k) * lambda * lambda).exp()
    };
    (1..=100).map(term).sum::<f64>().clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_and_probabilities_are_the_known_ones() {
        let one: Vec<f32> = (0..100).map(|i| i as f32 / 100.0).collect();
        let other: Vec<f32> = (0..80).map(|i| 0.2 + i as f32 / 80.0).collect();
        // By its definition in numpy.
        assert!((statistic(&one, &other) - 0.21).abs() < 1e-6, "{}", statistic(&one, &other));
        assert_eq!(statistic(&one, &one), 0.0);
        assert_eq!(statistic(&[0.0; 3], &[1.0; 5]), 1.0);
        assert_eq!(statistic(&[], &other), 0.0);
        // The 5 % point of the Kolmogorov distribution is 1.358.
        let size = (50.0_f64 * 50.0 / 100.0).sqrt();
        let at = 1.358 / (size + 0.12 + 0.11 / size);
        assert!((p_value(at, 50, 50) - 0.05).abs() < 2e-4, "{}", p_value(at, 50, 50));
        assert_eq!(p_value(0.0, 50, 50), 1.0);
        assert!(p_value(1.0, 50, 50) < 1e-20);
    }

    #[test]
    fn samples_of_one_distribution_are_seldom_told_apart() {
        let sample = |key: u32, count: u32| -> Vec<f32> {
            let key = crate::random::Key::new(5).child(key, 0);
            (0..count).map(|i| key.uniform(0, i)).collect()
        };
        let alarms = (0..400).filter(|&i| {
            let (one, other) = (sample(2 * i, 120), sample(2 * i + 1, 90));
            p_value(statistic(&one, &other), 120, 90) < 0.05
        });
        let alarms = alarms.count();
        assert!((5..35).contains(&alarms), "{alarms} of 400, and 20 are expected");
    }
}
