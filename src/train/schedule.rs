//! The learning rate of a step, and how much of ε its attack takes.

use crate::run::config::{Config, ScheduleKind};

/// Share of the steps in which one-cycle rises.
const ONE_CYCLE_RISE: f64 = 0.3;
/// Share in which cyclic does (Wong et al., *Fast is better than free*, ICLR 2020).
const CYCLIC_RISE: f64 = 0.5;

/// The courses of learning rate and ε over a run.
#[derive(Debug, Clone)]
pub struct Schedule {
    kind: ScheduleKind,
    peak: f64,
    epsilon_warmup: f64,
    milestones: Vec<usize>,
    steps_per_epoch: usize,
    steps: usize,
}

impl Schedule {
    /// The schedule of a configuration.
    pub fn new(config: &Config, steps_per_epoch: usize) -> Self {
        Self {
            kind: config.schedule,
            peak: config.lr(),
            epsilon_warmup: config.epsilon_warmup,
            milestones: config.milestones(),
            steps_per_epoch,
            steps: config.epochs * steps_per_epoch,
        }
    }

    /// Learning rate of `step` in `epoch`, both zero-based.
    pub fn lr(&self, epoch: usize, step: usize) -> f64 {
        match self.kind {
            ScheduleKind::Multistep => {
                let passed = self.milestones.iter().filter(|&&milestone| epoch >= milestone).count();
                self.peak * 0.1f64.powi(passed as i32)
            }
            ScheduleKind::OneCycle => self.triangle(epoch, step, ONE_CYCLE_RISE),
            ScheduleKind::Cyclic => self.triangle(epoch, step, CYCLIC_RISE),
            ScheduleKind::Cosine => {
                let progress = (epoch * self.steps_per_epoch + step) as f64 / self.steps as f64;
                self.peak * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
        }
    }

    /// The share of ε that the attack of a step takes: up linearly over the warm-up, then all of it.
    pub fn epsilon_share(&self, epoch: usize, step: usize) -> f32 {
        let progress = (epoch * self.steps_per_epoch + step + 1) as f64 / self.steps as f64;
        if progress < self.epsilon_warmup { (progress / self.epsilon_warmup) as f32 } else { 1.0 }
    }

    /// Up over this share of the steps, then down to almost zero.
    fn triangle(&self, epoch: usize, step: usize, rise: f64) -> f64 {
        let progress = (epoch * self.steps_per_epoch + step + 1) as f64 / self.steps as f64;
        self.peak * (progress / rise).min((1.0 - progress) / (1.0 - rise)).max(0.5 / self.steps as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::config::List;

    #[test]
    fn multistep_falls_at_its_milestones() {
        let config = Config { schedule: ScheduleKind::Multistep, epochs: 110, ..Config::default() };
        let schedule = Schedule::new(&config, 10);
        let expected = [(0, 0.1), (99, 0.1), (100, 0.01), (104, 0.01), (105, 0.001), (109, 0.001)];
        for (epoch, lr) in expected {
            assert!((schedule.lr(epoch, 3) - lr).abs() < 1e-12, "epoch {epoch}");
        }
        let own = Config { milestones: Some(List(vec![5])), ..config };
        assert_eq!(Schedule::new(&own, 10).lr(5, 0), 0.1 * 0.1);
    }

    #[test]
    fn cyclic_peaks_in_the_middle_and_cosine_falls_from_the_start() {
        let course = |schedule| -> Vec<f64> {
            let schedule = Schedule::new(&Config { schedule, epochs: 10, ..Config::default() }, 10);
            (0..100).map(|i| schedule.lr(i / 10, i % 10)).collect()
        };
        let cyclic = course(ScheduleKind::Cyclic);
        for (step, lr) in [(0, 0.002), (24, 0.05), (49, 0.1), (74, 0.05), (99, 0.0005)] {
            assert!((cyclic[step] - lr).abs() < 1e-9, "step {step}: {}", cyclic[step]);
        }
        let cosine = course(ScheduleKind::Cosine);
        let third = 0.05 * (1.0 + (0.25 * std::f64::consts::PI).cos());
        for (step, lr) in [(0, 0.1), (25, third), (50, 0.05)] {
            assert!((cosine[step] - lr).abs() < 1e-9, "step {step}: {}", cosine[step]);
        }
        assert!(cosine.is_sorted_by(|a, b| a > b) && cosine[99] > 0.0 && cosine[99] < 1e-4);
    }

    #[test]
    fn epsilon_rises_over_its_warm_up() {
        let share = |epsilon_warmup| -> Vec<f32> {
            let schedule = Schedule::new(&Config { epsilon_warmup, epochs: 10, ..Config::default() }, 10);
            (0..100).map(|i| schedule.epsilon_share(i / 10, i % 10)).collect()
        };
        assert!(share(0.0).iter().all(|&share| share == 1.0));
        let rising = share(0.5);
        for (step, expected) in [(0, 0.02), (24, 0.5), (49, 1.0), (99, 1.0)] {
            assert!((rising[step] - expected).abs() < 1e-6, "step {step}: {}", rising[step]);
        }
    }

    #[test]
    fn one_cycle_rises_to_the_peak_and_falls_to_almost_zero() {
        let schedule = Schedule::new(&Config { epochs: 10, ..Config::default() }, 10);
        let course: Vec<f64> = (0..100).map(|i| schedule.lr(i / 10, i % 10)).collect();
        let peak = course.iter().copied().max_by(f64::total_cmp).unwrap();
        assert!((peak - 0.1).abs() < 1e-9);
        assert!(
            (course[29] - peak).abs() < 1e-9 && course[0] < 0.004 && course[99] < 0.002 && course[99] > 0.0
        );
    }
}
