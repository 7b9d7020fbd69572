//! Figures of one attack over one split: a confusion matrix and what follows from it.

use serde::{Deserialize, Serialize};

use crate::fraction::percent;

/// One class predicted for more than this share of the examples...
const CONSTANT: f64 = 0.95;
/// ...though it makes up less than this share of them.
const ORDINARY: f64 = 0.9;

/// Figures of a class over fewer examples than this say next to nothing.
pub const FEW: u64 = 10;

/// The classes of fewer than [`FEW`] examples with their sizes, as in `crack (2)`; `None` where there are none.
pub fn few(sizes: impl Iterator<Item = u64>, classes: &[String]) -> Option<String> {
    let few = sizes.zip(classes).filter(|(size, _)| *size < FEW);
    let few: Vec<String> = few.map(|(size, class)| format!("{class} ({size})")).collect();
    (!few.is_empty()).then(|| few.join(", "))
}

/// A count out of a total.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// How many.
    pub count: u64,
    /// Out of how many.
    pub of: u64,
}

impl Count {
    /// As a share.
    pub fn rate(&self) -> f64 {
        self.count as f64 / self.of as f64
    }

    /// Per thousand.
    pub fn per_thousand(&self) -> f64 {
        1000.0 * self.count as f64 / self.of as f64
    }
}

/// The figures of a model on a split under one attack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The attack by name.
    pub attack: String,
    /// Examples measured.
    pub examples: u64,
    /// Share classified correctly.
    pub accuracy: f64,
    /// 95 % interval of that share (Wilson, 1927).
    #[serde(default)]
    pub interval: Option<[f64; 2]>,
    /// Mean of the recalls of the classes that occur.
    pub balanced_accuracy: f64,
    /// Recall by class, in label order; none for a class that does not occur.
    pub recall: Vec<Option<f64>>,
    /// Defective parts that pass as good, where good classes are known and there are defects.
    pub escapes: Option<Count>,
    /// Good parts that are rejected, where good classes are known and there are good parts.
    pub false_rejects: Option<Count>,
    /// Parts that are neither passed nor rejected, where the decision knows such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unclear: Option<Count>,
    /// `confusion[label][prediction]`.
    pub confusion: Vec<Vec<u64>>,
    /// Examples classified correctly under this and every attack before it.
    #[serde(default)]
    pub standing: Option<u64>,
    /// What each attack of a suite left standing; empty for a single attack.
    #[serde(default)]
    pub parts: Vec<Part>,
    /// Length of the longest perturbation, in the norm of the budget and in pixel units of [0, 1].
    #[serde(default)]
    pub longest: f32,
    /// Whether a pixel left [0, 1].
    #[serde(default)]
    pub outside: bool,
    /// Wall-clock seconds, attack included.
    pub seconds: f64,
}

/// One attack of a suite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// By name.
    pub attack: String,
    /// Examples that were still classified correctly after it.
    pub standing: u64,
    /// Wall-clock seconds.
    pub seconds: f64,
}

/// A point of the curve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Budget, in pixel units of [0, 1].
    pub epsilon: f32,
    /// Accuracy at it.
    pub accuracy: f64,
}

/// Figures under a condition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conditioned {
    /// By name.
    pub condition: String,
    /// 1 to 5.
    pub severity: usize,
    /// What was counted.
    pub figures: Figures,
}

/// The outcome for one example.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Predicted class.
    pub prediction: usize,
    /// Whether it passes as a good part; false without good classes.
    pub passes: bool,
    /// Whether it is neither passed nor rejected.
    #[serde(default)]
    pub unclear: bool,
}

impl Outcome {
    /// Of a prediction, and whether the part passes.
    pub fn new(prediction: usize, passes: bool) -> Self {
        Self { prediction, passes, unclear: false }
    }

    /// Whether the verdict about a part is wrong: a defect passes, or a good part is rejected. An unclear part is neither.
    pub fn is_wrong(&self, good: bool) -> bool {
        if good { !self.passes && !self.unclear } else { self.passes }
    }
}

impl Figures {
    /// From labels and outcomes, in the same order.
    pub fn new(attack: &str, labels: &[u32], outcomes: &[Outcome], classes: usize, good: &[usize]) -> Self {
        let mut confusion = vec![vec![0; classes]; classes];
        let (mut escapes, mut rejects) = (Count { count: 0, of: 0 }, Count { count: 0, of: 0 });
        for (&label, outcome) in labels.iter().zip(outcomes) {
            confusion[label as usize][outcome.prediction] += 1;
            let is_good = good.contains(&(label as usize));
            let counter = if is_good { &mut rejects } else { &mut escapes };
            counter.of += 1;
            counter.count += u64::from(outcome.is_wrong(is_good));
        }
        let recall: Vec<Option<f64>> = confusion
            .iter()
            .enumerate()
            .map(|(class, row): (usize, &Vec<u64>)| {
                let examples = row.iter().sum::<u64>();
                (examples > 0).then(|| row[class] as f64 / examples as f64)
            })
            .collect();
        let occurring: Vec<f64> = recall.iter().flatten().copied().collect();
        let correct: u64 = (0..classes).map(|class| confusion[class][class]).sum();
        let known = |count: Count| (!good.is_empty() && count.of > 0).then_some(count);
        Self {
            attack: attack.to_string(),
            examples: labels.len() as u64,
            accuracy: correct as f64 / labels.len().max(1) as f64,
            interval: Some(wilson(correct, labels.len() as u64)),
            balanced_accuracy: occurring.iter().sum::<f64>() / occurring.len().max(1) as f64,
            recall,
            escapes: known(escapes),
            false_rejects: known(rejects),
            unclear: None,
            confusion,
            standing: Some(correct),
            parts: Vec::new(),
            longest: 0.0,
            outside: false,
            seconds: 0.0,
        }
    }

    /// With the unclear parts among the outcomes counted.
    pub fn with_unclear(self, outcomes: &[Outcome]) -> Self {
        let count = outcomes.iter().filter(|outcome| outcome.unclear).count() as u64;
        Self { unclear: Some(Count { count, of: outcomes.len() as u64 }), ..self }
    }

    /// The class that is predicted for more than 95 % of the examples though it makes up less than 90 % of them.
    pub fn only_answer(&self) -> Option<usize> {
        let n = self.examples as f64;
        let predicted = |class: usize| self.confusion.iter().map(|row| row[class]).sum::<u64>() as f64;
        let mut sizes = self.class_sizes().enumerate();
        let only =
            sizes.find(|&(class, size)| predicted(class) > CONSTANT * n && (size as f64) < ORDINARY * n);
        only.map(|(class, _)| class)
    }

    /// Examples of each class.
    fn class_sizes(&self) -> impl Iterator<Item = u64> {
        self.confusion.iter().map(|row| row.iter().sum())
    }

    /// Whether plain accuracy misleads: the largest class has more than 1.5 times the examples of the smallest.
    pub fn is_unbalanced(&self) -> bool {
        let (largest, smallest) =
            (self.class_sizes().max().unwrap_or(0), self.class_sizes().min().unwrap_or(0));
        2 * largest > 3 * smallest
    }

    /// Of how many evenly spread examples a mean over the classes would have the standard error of the balanced accuracy.
    pub fn effective_examples(&self) -> f64 {
        let sizes = self.class_sizes().filter(|&size| size > 0);
        let (classes, inverse) = sizes.fold((0.0, 0.0), |(n, sum), size| (n + 1.0, sum + 1.0 / size as f64));
        classes * classes / f64::max(inverse, f64::MIN_POSITIVE)
    }

    /// Why nobody should use a model with these figures: one answer for everything, or a balanced accuracy that is not
    /// above chance by two standard errors.
    pub fn useless(&self, classes: &[String]) -> Option<String> {
        if let Some(class) = self.only_answer() {
            let name = classes.get(class).cloned().unwrap_or_else(|| format!("class {class}"));
            return Some(format!("{}: {name} is the answer to almost every image", self.attack));
        }
        let present = self.class_sizes().filter(|&size| size > 0).count() as f64;
        let chance = 1.0 / present.max(1.0);
        let error = (chance * (1.0 - chance) / self.effective_examples()).sqrt();
        let learned = present < 2.0 || self.balanced_accuracy > chance + 2.0 * error;
        (!learned).then(|| {
            format!(
                "{}: balanced accuracy is {}, and chance gives {}",
                self.attack,
                percent(self.balanced_accuracy),
                percent(chance)
            )
        })
    }

    /// The classes of [`FEW`] examples or more that it finds less than half as often as guessing would.
    pub fn not_found(&self) -> Vec<usize> {
        let few = 0.5 / self.class_sizes().filter(|&size| size > 0).count().max(1) as f64;
        let sizes = self.class_sizes().zip(&self.recall).enumerate();
        sizes
            .filter(|(_, (size, recall))| *size >= FEW && recall.is_some_and(|recall| recall < few))
            .map(|(class, _)| class)
            .collect()
    }

    /// What rests on fewer than [`FEW`] examples, class by class, as in `crack (2)`; `None` where nothing does.
    pub fn few(&self, classes: &[String]) -> Option<String> {
        few(self.class_sizes(), classes)
    }

    /// What "always the most frequent class" would score on the same labels: the row every table carries.
    pub fn majority(&self, good: &[usize]) -> Self {
        let classes = self.confusion.len();
        let count = |class: usize| self.confusion[class].iter().sum::<u64>();
        let majority = (0..classes).rev().max_by_key(|&class| count(class)).unwrap_or(0);
        let always = Outcome::new(majority, good.contains(&majority));
        let labels: Vec<u32> =
            (0..classes).flat_map(|class| vec![class as u32; count(class) as usize]).collect();
        Self::new("majority class", &labels, &vec![always; labels.len()], classes, good)
    }
}

/// The 95 % interval of a share of `count` in `of` (Wilson, *Probable inference, the law of succession, and statistical
/// inference*, 1927).
pub fn wilson(count: u64, of: u64) -> [f64; 2] {
    const Z: f64 = 1.959_963_984_540_054;
    if of == 0 {
        return [0.0, 1.0];
    }
    let (n, share) = (of as f64, count as f64 / of as f64);
    let centre = share + Z * Z / (2.0 * n);
    let half = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    [-1.0, 1.0].map(|side| ((centre + side * half) / (1.0 + Z * Z / n)).clamp(0.0, 1.0))
}

/// The rows of a table: the majority class first, then these.
pub fn with_majority(figures: Vec<Figures>, good: &[usize]) -> Vec<Figures> {
    let majority = figures.first().map(|first| first.majority(good));
    majority.into_iter().chain(figures).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_wilsons() {
        let near = |seen: [f64; 2], expected: [f64; 2]| {
            assert!((0..2).all(|i| (seen[i] - expected[i]).abs() < 5e-4), "{seen:?} for {expected:?}");
        };
        // 81 of 263, in Newcombe, *Interval estimation for the difference between independent proportions*, 1998, table I.
        near(wilson(81, 263), [0.2553, 0.3662]);
        near(wilson(0, 20), [0.0, 0.1611]);
        near(wilson(20, 20), [0.8389, 1.0]);
    }

    #[test]
    fn one_answer_and_chance_are_useless() {
        let labels: Vec<u32> = (0..300).map(|i| i % 3).collect();
        let figures = |predict: &dyn Fn(usize) -> usize| {
            let outcomes: Vec<_> = (0..300).map(|i| Outcome::new(predict(i), false)).collect();
            Figures::new("clean", &labels, &outcomes, 3, &[])
        };
        let names: Vec<String> = ["a", "b", "c"].map(String::from).to_vec();
        assert_eq!(
            figures(&|i| if i < 290 { 1 } else { 0 }).useless(&names).unwrap(),
            "clean: b is the answer to almost every image"
        );
        // Half right: chance is a third, its standard error 2.7 %.
        assert!(figures(&|i| if i % 2 == 0 { i % 3 } else { (i + 1) % 3 }).useless(&names).is_none());
        assert!(figures(&|i| (i / 3) % 3).useless(&names).unwrap().contains("chance gives 33.3 %"));
        assert_eq!(figures(&|i| i % 3 % 2).not_found(), [2]);
        let one = Figures::new("clean", &[0; 9], &[Outcome::new(0, false); 9], 3, &[]);
        assert!(one.useless(&names).is_none(), "one class occurs");
    }

    #[test]
    fn figures_of_a_small_case() {
        let labels = [0, 0, 0, 1, 2, 2];
        let outcome = |prediction| Outcome::new(prediction, prediction == 0);
        let outcomes = [0, 0, 1, 1, 1, 0].map(outcome);
        let figures = Figures::new("clean", &labels, &outcomes, 4, &[0]);
        assert_eq!(figures.accuracy, 0.5);
        assert_eq!(figures.recall, [Some(2.0 / 3.0), Some(1.0), Some(0.0), None]);
        assert!((figures.balanced_accuracy - 5.0 / 9.0).abs() < 1e-12);
        assert_eq!(figures.escapes, Some(Count { count: 1, of: 3 }));
        assert_eq!(figures.false_rejects, Some(Count { count: 1, of: 3 }));

        assert!(
            figures.useless(&[]).unwrap().contains("55.6 %, and chance gives 33.3 %"),
            "six images say little"
        );

        let majority = figures.majority(&[0]);
        assert_eq!((majority.accuracy, majority.escapes.unwrap().count), (0.5, 3));
        assert!((majority.balanced_accuracy - 1.0 / 3.0).abs() < 1e-12);
    }
}
