//! Against class imbalance: every class equally often, or rare classes with a larger loss.

use crate::random::Key;

fn members(labels: &[u32], classes: usize) -> Vec<Vec<u32>> {
    let mut members = vec![Vec::new(); classes];
    labels.iter().enumerate().for_each(|(index, &label)| members[label as usize].push(index as u32));
    members
}

/// `count` of the examples with these labels in random order, every class equally often (give or take one), or in
/// proportion to the square `root` of its size. A class with too few examples begins again, in a new order, when all of
/// them were drawn. Every class needs an example.
pub fn sampled(labels: &[u32], classes: usize, root: bool, count: usize, key: Key) -> Vec<u32> {
    let members = members(labels, classes);
    let weight = |members: &Vec<u32>| if root { (members.len() as f64).sqrt() } else { 1.0 };
    let sum: f64 = members.iter().map(weight).sum();
    let mut wanted: Vec<usize> =
        members.iter().map(|members| (count as f64 * weight(members) / sum) as usize).collect();
    let missing = count - wanted.iter().sum::<usize>();
    let first = key.child(0, 0).permutation(classes);
    first[..missing].iter().for_each(|&class| wanted[class as usize] += 1);
    let mut drawn = Vec::with_capacity(count);
    for (class, (members, wanted)) in members.iter().zip(wanted).enumerate() {
        let passes = (0..).map(|pass| key.child(1 + class as u32, pass).permutation(members.len()));
        drawn.extend(passes.flatten().take(wanted).map(|place| members[place as usize]));
    }
    key.child(0, 1).permutation(count).into_iter().map(|place| drawn[place as usize]).collect()
}

/// The weight of each class in the loss, n/(K·n_c): one on average over the examples, and every class the same in sum.
pub fn weights(labels: &[u32], classes: usize) -> Vec<f32> {
    let share = labels.len() as f32 / classes as f32;
    members(labels, classes).iter().map(|members| share / members.len() as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 70 examples of class 0, 5 of class 1, 25 of class 2.
    fn labels() -> Vec<u32> {
        (0..100).map(|i| if i % 20 == 7 { 1 } else { if i % 4 == 0 { 2 } else { 0 } }).collect()
    }

    #[test]
    fn every_class_is_drawn_equally_often_and_none_twice_too_early() {
        let labels = labels();
        let draw = |epoch| sampled(&labels, 3, false, 64, Key::new(3).child(1, epoch));
        let drawn = draw(0);
        let mut times = vec![0; labels.len()];
        drawn.iter().for_each(|&example| times[example as usize] += 1);
        let times_of = |class: u32| -> Vec<i32> {
            times.iter().zip(&labels).filter(|(_, label)| **label == class).map(|(times, _)| *times).collect()
        };
        let counts: Vec<i32> = (0..3).map(|class| times_of(class).iter().sum()).collect();
        assert_eq!(counts.iter().sum::<i32>(), 64);
        assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
        // Within a class, nothing is drawn again before everything was drawn.
        for class in 0..3 {
            let times = times_of(class);
            assert!(
                times.iter().max().unwrap() - times.iter().min().unwrap() <= 1,
                "class {class}: {times:?}"
            );
        }
        assert_eq!(times_of(0).iter().max(), Some(&1));
        assert_eq!(times_of(1).len(), 5);
        assert_eq!(drawn, draw(0), "the same epoch gives the same order");
        assert_ne!(drawn, draw(1));
        let classes: Vec<u32> = drawn.iter().map(|&example| labels[example as usize]).collect();
        assert!(!classes.is_sorted(), "the classes are mixed");
    }

    #[test]
    fn classes_are_drawn_by_the_root_of_their_size() {
        let drawn = sampled(&labels(), 3, true, 100, Key::new(3));
        let count = |class| drawn.iter().filter(|&&example| labels()[example as usize] == class).count();
        // √70, √5 and √25 over their sum of 15.6: 53.6, 14.3 and 32.0.
        assert_eq!(drawn.len(), 100);
        assert!([53, 54].contains(&count(0)) && [14, 15].contains(&count(1)) && [32, 33].contains(&count(2)));
    }

    #[test]
    fn rare_classes_weigh_more() {
        let weights = weights(&labels(), 3);
        for (weight, count) in weights.iter().zip([70.0, 5.0, 25.0]) {
            assert!((weight - 100.0 / 3.0 / count).abs() < 1e-6, "{weights:?}");
        }
    }
}
