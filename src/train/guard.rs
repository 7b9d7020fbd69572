//! The guard against catastrophic overfitting: when an epoch counts as collapsed, and what is tightened after going back.

use super::{EpochEnded, Trainer};
use crate::converge::gate::GateKind;
use crate::error::Result;
use crate::evaluate::figures::Figures;
use crate::files;
use crate::fraction::percent;
use crate::kernel::converge_loss::EpochSums;
use crate::observer;
use crate::random::Key;
use crate::run::Which;
use crate::run::checkpoint::Watch;
use crate::run::config::{Config, Guard, Smooth};
use crate::run::log::{Check, GuardRecord};

/// A copy of `last` as it was at the end of the last validated epoch, while `last` is further.
const GOOD: &str = "good.safetensors";
/// Stream of random keys below the seed.
const ROLLBACK: u32 = 4;
/// Standard errors by which an accuracy has to fall before that is no accident of the validation part.
const ERRORS: f64 = 3.0;
/// FGSM above PGD by more than this, while PGD falls, is a network that has learned to defeat one step.
const GAP: f64 = 0.2;
/// Factor on α, and on the random start, when they are tightened.
const SMALLER: f64 = 0.75;
const LARGER: f32 = 2.0;

impl Watch {
    /// Why a network with these figures (clean, FGSM, PGD-10) counts as collapsed, if it does.
    ///
    /// By accuracy, or by `balanced` accuracy: PGD below half its own peak by more than three standard errors; or FGSM more than 20 points above PGD while PGD is
    /// below its peak by more than three standard errors of the difference, or is less than half of FGSM while FGSM is as
    /// high as clean accuracy, within one standard error, or is less than a tenth of FGSM; or one class predicted for more than 95 % of the images, though it
    /// makes up less than 90 % and was not the only one before. The first figures only set the marks.
    pub fn judge(
        &mut self,
        [clean, fgsm, pgd]: &[Figures; 3],
        first: bool,
        balanced: bool,
    ) -> Option<String> {
        let of = |figures: &Figures| if balanced { figures.balanced_accuracy } else { figures.accuracy };
        let n = if balanced { pgd.effective_examples() } else { pgd.examples as f64 };
        let name = if balanced { "balanced accuracy" } else { "accuracy" };
        let (benign, one_step, accuracy) = (of(clean), of(fgsm), of(pgd));
        let error = |share: f64| (share * (1.0 - share) / n).sqrt();
        let half = self.peak / 2.0;
        let dropped = self.peak - accuracy > ERRORS * error(self.peak).hypot(error(accuracy));
        // One step of ε has become as easy as none: a large gap alone is normal at a large budget.
        let harmless = benign - one_step < error(benign).hypot(error(one_step));
        let useless = accuracy < one_step / if harmless { 2.0 } else { 10.0 };
        let only = clean.only_answer();
        let verdict = if accuracy < half - ERRORS * error(half) {
            Some(format!(
                "{name} under PGD-10 is {}, less than half of its peak of {}",
                percent(accuracy),
                percent(self.peak)
            ))
        } else if one_step - accuracy > GAP && (dropped || useless) {
            Some(format!(
                "{name} is {} clean, {} under FGSM, but {} under PGD-10, with a peak of {}",
                percent(benign),
                percent(one_step),
                percent(accuracy),
                percent(self.peak)
            ))
        } else {
            only.filter(|_| self.varied).map(|class| {
                let predicted: u64 = clean.confusion.iter().map(|row| row[class]).sum();
                format!(
                    "class {class} is predicted for {} of the images",
                    percent(predicted as f64 / clean.examples as f64)
                )
            })
        };
        self.peak = self.peak.max(accuracy);
        self.varied |= only.is_none();
        verdict.filter(|_| !first)
    }
}

impl Trainer<'_> {
    /// Whether anything is judged. Clean training has no robustness to lose.
    pub(super) fn guarded(&self) -> bool {
        self.run.config.guard != Guard::Off && self.config().method.is_adversarial()
    }

    /// Whether a collapse makes this run go back: there is an epoch to go back to.
    pub(super) fn may_roll_back(&self) -> bool {
        self.guarded() && self.run.config.guard == Guard::Rollback && self.state.epoch > 0
    }

    /// Before `last` is overwritten with what is not validated, what it holds of the last validated epoch is kept for a
    /// rollback.
    pub(super) fn keep_good(&self) -> Result<()> {
        let (good, last) = (self.run.file(GOOD), self.run.checkpoint_file(Which::Last));
        if self.state.step > 0 && self.may_roll_back() && !good.exists() {
            files::write_atomically(&good, &files::read(&last)?)?;
        }
        Ok(())
    }

    /// The end of an epoch is in `last` itself.
    pub(super) fn forget_good(&self) {
        let _ = std::fs::remove_file(self.run.file(GOOD));
    }

    /// All randomness of the run, other after every rollback.
    pub(super) fn key(&self) -> Key {
        let key = Key::new(self.run.config.seed);
        match self.state.watch.rollbacks {
            0 => key,
            rollbacks => key.child(ROLLBACK, rollbacks),
        }
    }

    /// Goes back from the middle of an epoch, which gets a short line in the log.
    pub(super) fn give_up_epoch(&mut self, reason: &str) -> Result<()> {
        let epoch = self.state.epoch + 1;
        let guard = GuardRecord {
            collapsed: true,
            reason: Some(reason.to_string()),
            rolled_back: true,
            rollbacks: self.state.watch.rollbacks,
            checks: std::mem::take(&mut self.state.checks),
        };
        observer::warn(format!("epoch {epoch}: COLLAPSED: {reason}"));
        self.state.log.push(serde_json::json!({ "epoch": epoch, "guard": guard }).to_string());
        self.roll_back()
    }

    /// Goes back to the last good epoch and on with a tighter training.
    pub(super) fn roll_back(&mut self) -> Result<()> {
        let good = self.run.file(GOOD);
        let mut checkpoint = match good.exists() {
            true => self.run.read_checkpoint(&good)?,
            false => self.run.checkpoint(Which::Last)?,
        };
        checkpoint.state.log = std::mem::take(&mut self.state.log);
        checkpoint.state.watch.rollbacks += 1;
        let before = self.config().smooth().gate;
        let after = tightened(&self.run.config, checkpoint.state.watch.rollbacks).config.smooth().gate;
        if before.is_none() && after.is_some() {
            // Without a benign pass these are no means of benign losses.
            checkpoint.means.clear();
        }
        self.restore(checkpoint)?;
        self.start_clock();
        // A kill from here on finds a run that has gone back already.
        self.write_checkpoint(Which::Last)?;
        self.forget_good();
        let Watch { rollbacks, .. } = self.state.watch;
        let most = self.run.config.max_rollbacks;
        observer::warn(match rollbacks > most {
            true => {
                format!("back at epoch {}; it has gone back {most} times already and stops", self.state.epoch)
            }
            false => format!(
                "back at epoch {}, rollback {rollbacks} of {most}: goes on with {}",
                self.state.epoch, self.tightened.last
            ),
        });
        Ok(())
    }

    /// Why these figures count as a collapse, if they do. While classes are drawn equally often but lie unevenly, plain
    /// accuracy falls as the rare ones are learned.
    pub(super) fn judge(&mut self, figures: &[Figures; 3]) -> Option<String> {
        let balanced = self.config().balance.samples() && figures[0].is_unbalanced();
        let first = self.state.validation.is_empty();
        self.state.watch.judge(figures, first, balanced)
    }

    /// Whether the guard measures before this step of the epoch, and has not done so yet.
    pub(super) fn check_is_due(&self, step: usize) -> bool {
        let due = self.run.config.guard_every.is_some_and(|every| step > 0 && step.is_multiple_of(every));
        due && self.guarded() && self.state.checks.last().is_none_or(|check| check.step != step)
    }

    /// Measures the network within an epoch.
    pub(super) fn check(&mut self) -> Result<EpochEnded> {
        let sums = self.read_sums()?;
        let Some((figures, _)) = self.validate()? else { return Ok(EpochEnded::Interrupted) };
        let reason = self.judge(&figures);
        let step = self.state.step;
        self.state.checks.push(Check::new(step, &figures, &sums, reason.is_some()));
        let Some(reason) = reason else { return Ok(EpochEnded::Finished) };
        if self.may_roll_back() {
            return Ok(EpochEnded::Collapsed(format!("at step {step}, {reason}")));
        }
        observer::warn(format!("epoch {}, step {step}: COLLAPSED: {reason}", self.state.epoch + 1));
        Ok(EpochEnded::Finished)
    }
}

impl Check {
    fn new(step: usize, [_, fgsm, pgd]: &[Figures; 3], sums: &EpochSums, collapsed: bool) -> Self {
        let mean = |sum: f64| sum / sums.examples;
        Self {
            step,
            collapsed,
            fgsm: fgsm.accuracy,
            pgd_10: pgd.accuracy,
            adversarial_loss: mean(sums.adversarial_loss),
            benign_loss: mean(sums.benign_loss),
            abnormal_share: mean(sums.abnormal),
            fire_rate: if sums.gates > 0.0 { sums.fired / sums.gates } else { 0.0 },
        }
    }
}

/// What a training goes on with after it went back.
#[derive(Debug, Clone, PartialEq)]
pub struct Tightened {
    /// The configuration.
    pub config: Config,
    /// Attack steps more than the base method takes.
    pub more_steps: u32,
    /// Factor on the random start.
    pub noise: f32,
    /// What was changed last, in words.
    pub last: String,
}

/// The configuration after `rollbacks` rollbacks. In this order, leaving out what a method does not have, and from the
/// beginning again after the last: one attack step more, the constraint on where it was off, a smaller α, a larger
/// random start.
pub fn tightened(config: &Config, rollbacks: u32) -> Tightened {
    let mut after =
        Tightened { config: config.clone(), more_steps: 0, noise: 1.0, last: "nothing".to_string() };
    let measures: [fn(&mut Tightened) -> Option<String>; 4] = [more_steps, constrain, shorten, spread];
    let mut taken = 0;
    for measure in measures.iter().cycle() {
        if taken == rollbacks || !config.method.is_adversarial() {
            break;
        }
        if let Some(last) = measure(&mut after) {
            after.last = last;
            taken += 1;
        }
    }
    after
}

fn more_steps(to: &mut Tightened) -> Option<String> {
    match to.config.method.with_more_steps() {
        Some(method) => to.config.method = method,
        None if to.config.method.takes_one_step() => to.more_steps += 1,
        None => return None,
    }
    Some("one attack step more".to_string())
}

fn constrain(to: &mut Tightened) -> Option<String> {
    let smooth = match to.config.smooth() {
        Smooth { gate: None, centre } => Smooth { gate: Some(GateKind::Batch), centre },
        _ => return None,
    };
    // Which preset is in force may depend on whether a constraint was named.
    (to.config.preset, to.config.smooth) = (Some(to.config.preset()), Some(smooth));
    Some("the constraint on batch means".to_string())
}

fn shorten(to: &mut Tightened) -> Option<String> {
    let epsilon = to.config.epsilon.get();
    // Without a budget there is no step to take a share of.
    let share = if epsilon > 0.0 { to.config.alpha() / epsilon } else { 1.0 };
    let alpha = to.config.alpha.clone().unwrap_or_else(|| to.config.epsilon.scaled(share.into()));
    let alpha = alpha.scaled(SMALLER);
    let words = format!("a smaller attack step of {alpha}");
    to.config.alpha = Some(alpha);
    Some(words)
}

fn spread(to: &mut Tightened) -> Option<String> {
    to.config.method.can_spread().then(|| {
        to.noise *= LARGER;
        format!("a random start {} times as large", to.noise)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::figures::Outcome;
    use crate::run::config::Preset;

    /// Of 500 images of five classes, `correct` are classified correctly, and the others as the next class.
    fn figures(correct: usize) -> Figures {
        let labels: Vec<u32> = (0..500).map(|i| i % 5).collect();
        let outcome = |i: usize| Outcome::new((i + usize::from(i >= correct)) % 5, false);
        Figures::new("pgd-10", &labels, &(0..500).map(outcome).collect::<Vec<_>>(), 5, &[])
    }

    fn judge(watch: &mut Watch, fgsm: usize, pgd: usize) -> Option<String> {
        watch.judge(&[figures(400), figures(fgsm), figures(pgd)], false, false)
    }

    #[test]
    fn a_fall_below_half_the_peak_is_a_collapse() {
        let mut watch = Watch::default();
        assert_eq!(judge(&mut watch, 250, 200), None);
        // Half of 40 %, less three standard errors of 1.79 %: 14.6 %, 73 images.
        assert_eq!(judge(&mut watch, 150, 74), None);
        assert!(judge(&mut watch, 150, 73).unwrap().contains("14.6 %, less than half of its peak of 40.0 %"));
        assert_eq!(watch.peak, 0.4);
    }

    #[test]
    fn uneven_classes_are_judged_by_balanced_accuracy() {
        // 450 images of class 0, 50 of class 1, of which so many are classified correctly.
        let figures = |first: usize, second: usize| {
            let labels: Vec<u32> = (0..500).map(|i| u32::from(i >= 450)).collect();
            let right = |i: usize| if i < 450 { i < first } else { i - 450 < second };
            let outcome = |i: usize| Outcome::new(usize::from(right(i) == (i >= 450)), false);
            Figures::new("pgd-10", &labels, &(0..500).map(outcome).collect::<Vec<_>>(), 2, &[])
        };
        let judge = |watch: &mut Watch, first, second| {
            watch.judge(
                &[figures(first, second), figures(first, second), figures(first, second)],
                false,
                true,
            )
        };
        let mut watch = Watch::default();
        assert_eq!(judge(&mut watch, 430, 5), None);
        // Plain accuracy falls below half of its peak, 87 %; balanced accuracy does not fall.
        assert_eq!(judge(&mut watch, 150, 40), None);
        assert!(judge(&mut watch, 20, 1).unwrap().contains("balanced accuracy under PGD-10 is 3.2 %"));
    }

    #[test]
    fn fgsm_far_above_a_falling_pgd_is_a_collapse() {
        let mut watch = Watch::default();
        // A large budget: the gap is wide from the beginning, but nothing falls.
        assert_eq!(judge(&mut watch, 330, 200), None);
        assert_eq!(judge(&mut watch, 330, 160), None, "8 points are within the errors of 500 images");
        assert!(judge(&mut watch, 330, 150).unwrap().contains("66.0 % under FGSM, but 30.0 % under PGD-10"));
        assert_eq!(judge(&mut watch, 245, 150), None, "19 points");
    }

    #[test]
    fn fgsm_as_harmless_as_nothing_is_a_collapse_even_where_pgd_was_never_high() {
        let mut watch = Watch::default();
        let weak = [figures(170), figures(175), figures(10)];
        assert_eq!(watch.judge(&weak, true, false), None, "not trained yet");
        assert!(watch.judge(&weak, false, false).is_some());
        assert_eq!(
            watch.judge(&[figures(400), figures(300), figures(31)], false, false),
            None,
            "one step still hurts"
        );
        assert!(
            watch.judge(&[figures(400), figures(300), figures(29)], false, false).is_some(),
            "less than a tenth"
        );
        assert_eq!(
            watch.judge(&[figures(400), figures(395), figures(200)], false, false),
            None,
            "PGD is half of FGSM"
        );
    }

    #[test]
    fn one_class_for_everything_is_a_collapse_unless_the_data_are_like_that() {
        let figures = |labels: &[u32], prediction: usize| {
            let outcomes = vec![Outcome::new(prediction, false); labels.len()];
            Figures::new("clean", labels, &outcomes, 3, &[])
        };
        let even: Vec<u32> = (0..300).map(|i| i % 3).collect();
        let constant = [figures(&even, 1), figures(&even, 1), figures(&even, 1)];
        let mut watch = Watch::default();
        assert_eq!(watch.judge(&constant, false, false), None, "not trained yet");
        watch.varied = true;
        assert!(watch.judge(&constant, false, false).unwrap().contains("class 1 is predicted for 100.0 %"));
        let mostly: Vec<u32> = (0..300).map(|i| u32::from(i < 280)).collect();
        assert_eq!(
            watch.judge(&[figures(&mostly, 1), figures(&mostly, 1), figures(&mostly, 1)], false, false),
            None
        );
    }

    #[test]
    fn without_a_budget_the_attack_step_stays_a_number() {
        let config = Config { epsilon: "0".parse().unwrap(), smooth: Some(Smooth::B), ..Config::default() };
        let shortened = tightened(&config, 2);
        assert_eq!(shortened.last, "a smaller attack step of 0");
        assert_eq!(shortened.config.alpha(), 0.0);
    }

    #[test]
    fn what_is_tightened_follows_the_documented_order() {
        let words = |config: &Config| -> Vec<String> {
            (1..=5).map(|rollbacks| tightened(config, rollbacks).last).collect()
        };
        let base = Config { smooth: Some(Smooth::NONE), ..Config::default() };
        assert_eq!(tightened(&base, 0).config, base);
        assert_eq!(
            words(&base),
            [
                "one attack step more",
                "the constraint on batch means",
                "a smaller attack step of 7.5/255",
                "a random start 2 times as large",
                "one attack step more"
            ]
        );
        let unnamed = tightened(&Config::default(), 2).config;
        assert_eq!((unnamed.preset(), unnamed.smooth()), (Preset::Auto, Smooth::B), "the preset stays");
        let all = tightened(&base, 5);
        assert_eq!((all.more_steps, all.noise, all.config.smooth()), (2, 2.0, Smooth::B));
        let pgd = Config { method: "pgd-2".parse().unwrap(), ..Config::default() };
        assert_eq!(tightened(&pgd, 1).config.method.to_string(), "pgd-3");
        assert_eq!(words(&pgd)[1], "a smaller attack step of 1.5/255", "b was on");
        let mep = Config { method: "fgsm-mep".parse().unwrap(), ..base };
        assert_eq!(words(&mep)[..2], ["the constraint on batch means", "a smaller attack step of 6/255"]);
    }
}
