//! The epochs in which the constraint acts: between the milestones of the learning rate, not next to them.

/// Epochs left out on both sides of a milestone.
const HALF_WIDTH: usize = 1;

/// Windows between consecutive milestones, the first being 0 and the last the number of epochs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows(Vec<usize>);

impl Windows {
    /// From the epochs at which the learning rate falls, and the number of epochs.
    pub fn new(milestones: &[usize], epochs: usize) -> Self {
        Self([&[0], milestones, &[epochs]].concat())
    }

    /// Whether the constraint acts in this epoch (zero-based): start + half width < epoch < end - half width.
    pub fn contain(&self, epoch: usize) -> bool {
        self.0.windows(2).any(|pair| pair[0] + HALF_WIDTH < epoch && epoch + HALF_WIDTH < pair[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paper_schedule_acts_where_it_says() {
        let windows = Windows::new(&[100, 105], 110);
        let active: Vec<usize> = (0..110).filter(|&epoch| windows.contain(epoch)).collect();
        let expected: Vec<usize> = (2..=98).chain(102..=103).chain(107..=108).collect();
        assert_eq!(active, expected);
    }
}
