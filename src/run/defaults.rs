//! The defaults of a configuration, written once: flags and files take them from here.

use super::config::{
    Augment, Balance, Config, Guard, Method, MethodSettings, OptimizerKind, ScheduleKind, Statistics,
    default_backbone_lr, default_rollbacks, default_w3,
};
use crate::fraction::Fraction;
use crate::model::Arch;

impl Default for Config {
    fn default() -> Self {
        Self {
            arch: Arch::default(),
            width: None,
            stem: None,
            init: None,
            keep_head: false,
            freeze: 0,
            backbone_lr: default_backbone_lr(),
            method: Method::default(),
            smooth: None,
            preset: None,
            initialize: false,
            statistics: Statistics::default(),
            base: MethodSettings::default(),
            epsilon: Fraction::of_255(8.0),
            epsilon_warmup: 0.0,
            alpha: None,
            epochs: 30,
            batch_size: 128,
            optimizer: OptimizerKind::default(),
            awp: None,
            lr: None,
            schedule: ScheduleKind::OneCycle,
            milestones: None,
            momentum: 0.9,
            weight_decay: None,
            no_decay_norm: false,
            clip_norm: None,
            ema: None,
            balance: Balance::default(),
            label_factor: 0.6,
            gamma_max: 0.03,
            w1: 0.0,
            w2: 1.0,
            w3: default_w3(),
            guard: Guard::default(),
            guard_every: None,
            validate_every: None,
            max_rollbacks: default_rollbacks(),
            augment: Augment::CROP_FLIP,
            seed: 0,
            image_size: None,
            limit: None,
            val_fraction: None,
            skip_broken: false,
            good: Vec::new(),
        }
    }
}

#[cfg(all(test, feature = "cli"))]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn no_flag_gives_the_defaults() {
        #[derive(Parser)]
        struct Flags {
            #[command(flatten)]
            config: Config,
        }
        assert_eq!(Flags::parse_from(["train"]).config, Config::default());
    }
}
