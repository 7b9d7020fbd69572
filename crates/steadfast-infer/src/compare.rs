/// The largest of some distances, 0 where there are none. A value that is not a number is infinitely large, so that no
/// tolerance lets it pass: `fold(0.0, f32::max)` would lose it.
pub fn largest(distances: impl IntoIterator<Item = f32>) -> f32 {
    distances
        .into_iter()
        .fold(0.0, |most, distance| if distance.is_nan() { f32::INFINITY } else { most.max(distance) })
}

/// The largest difference between two lists, value by value: infinite where a value is not a number, and where they have
/// different lengths.
pub fn largest_difference(one: &[f32], two: &[f32]) -> f32 {
    if one.len() != two.len() {
        return f32::INFINITY;
    }
    // Of two equal infinities the difference would not be a number.
    largest(one.iter().zip(two).map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_number_is_never_close() {
        assert_eq!(largest_difference(&[1.0, 2.0], &[1.5, 2.0]), 0.5);
        for (one, two) in
            [(&[f32::NAN, 1.0][..], &[0.0, 1.0][..]), (&[0.0, 1.0], &[0.0, f32::NAN]), (&[1.0], &[1.0, 1.0])]
        {
            assert_eq!(largest_difference(one, two), f32::INFINITY);
        }
        assert_eq!(largest_difference(&[f32::NAN], &[f32::NAN]), f32::INFINITY);
        assert_eq!(largest_difference(&[f32::INFINITY], &[f32::INFINITY]), 0.0);
        assert_eq!(largest([]), 0.0);
    }
}
