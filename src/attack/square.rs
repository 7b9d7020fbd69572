//! Square Attack (Andriushchenko, Croce, Flammarion and Hein, *Square Attack: a query-efficient black-box adversarial
//! attack via random search*, ECCV 2020) as AutoAttack runs it: 5,000 queries, the size of the squares not rescaled to them.
//! All examples of a query share one square, as in the authors' code.

use burn::tensor::{Tensor, TensorData};

use super::entry::{Entry, one};
use super::objective::Margin;
use super::{Attack, Budget, Goal, Kind, Norm, Objective, Round, choose, logits};
use crate::batch::Batch;
use crate::model::Forward;
use crate::random::{Key, unit};

/// Queries after which a stage ends and misclassified examples are left out. Most are misclassified early.
const STAGES: [u32; 14] = [0, 10, 50, 200, 500, 1000, 1500, 2000, 2500, 3000, 3500, 4000, 4500, 5000];
/// Queries after which the share of pixels in the square is halved.
const HALVED: [u32; 9] = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000];
/// That share at the beginning.
const SHARE: f64 = 0.8;
/// Streams of random numbers.
const PLACE: u32 = 0;
const TURN: u32 = 1;
const QUERY: u32 = 2;
/// And those above, one for each place that has signs.
const SIGN: u32 = 3;

pub(super) const ENTRY: Entry = Entry {
    names: &["square"],
    parse: |name, _| if name == "square" { one(Square::default()) } else { Ok(None) },
};

/// `square`: looks at logits only. Skips examples that are already misclassified.
pub struct Square {
    /// How many of its stages it takes: 13 make 5,000 queries, 3 make 200.
    pub stages: u32,
}

impl Default for Square {
    fn default() -> Self {
        Self { stages: STAGES.len() as u32 - 1 }
    }
}

impl Attack for Square {
    fn name(&self) -> String {
        match STAGES.get(self.stages as usize) {
            Some(&queries) if queries < 5000 => format!("square-{queries}"),
            _ => "square".to_string(),
        }
    }

    fn kind(&self) -> Kind {
        Kind { goal: Goal::WrongClass, sees_gradients: false, iterated: true }
    }

    fn rounds(&self) -> u32 {
        self.stages
    }

    fn continues_previous_round(&self, round: u32) -> bool {
        round > 0
    }

    fn skips_misclassified(&self) -> bool {
        true
    }

    fn run(&self, model: &dyn Forward, batch: &Batch, budget: Budget, round: &Round) -> Tensor<4> {
        let stage = round.index as usize;
        let mut best = match (stage, budget.norm) {
            (0, Norm::Linf) => stripes(&batch.images, budget.epsilon, round),
            (0, Norm::L2) => tiles(&batch.images, budget.epsilon, round),
            _ => batch.start.clone(),
        };
        let margins = |images: &Tensor<4>| Margin.values(logits(model, images.clone()), &batch.labels);
        let mut highest = margins(&best);
        for query in STAGES[stage]..STAGES[stage + 1] {
            let draw = Draw { key: round.key.child(QUERY, query), examples: round.examples };
            let tried = match budget.norm {
                Norm::Linf => square(&batch.images, best.clone(), budget.epsilon, query, &draw),
                Norm::L2 => bump(&batch.images, best.clone(), budget.epsilon, query, &draw),
            };
            let margin = margins(&tried);
            // A misclassified example stays as it is; a margin of zero counts as misclassified.
            let standing = highest.clone().lower_elem(0.0);
            let better =
                margin.clone().greater(highest.clone()).bool_or(margin.clone().greater_equal_elem(0.0));
            let better = better.bool_and(standing);
            best = choose(&better, tried, best);
            highest = highest.mask_where(better, margin);
        }
        best
    }
}

/// What a query draws.
struct Draw<'a> {
    key: Key,
    examples: &'a [u32],
}

impl Draw<'_> {
    /// The upper left corner of a window of this side. Never at the last place, as in the authors' code.
    fn corner(&self, number: u32, side: usize, [_, _, height, width]: [usize; 4]) -> [usize; 2] {
        let [down, right] = self.key.words(PLACE, number).map(unit);
        [(down * (height - side) as f32) as usize, (right * (width - side) as f32) as usize]
    }

    /// A sign for every example and channel, `[batch, channels, 1, 1]`.
    fn signs(&self, number: u32, channels: usize, like: &Tensor<4>) -> Tensor<4> {
        let signs_of = |&example: &u32| {
            let key = self.key.child(SIGN + number, example);
            (0..channels as u32).map(move |channel| sign(key, channel))
        };
        let signs: Vec<f32> = self.examples.iter().flat_map(signs_of).collect();
        Tensor::from_data(TensorData::new(signs, [self.examples.len(), channels, 1, 1]), &like.device())
    }
}

/// Vertical stripes of ±ε, one pixel wide.
fn stripes(images: &Tensor<4>, epsilon: f32, round: &Round) -> Tensor<4> {
    let [batch, channels, height, width] = images.dims();
    let signs: Vec<f32> = round
        .examples
        .iter()
        .flat_map(|&example| {
            let key = round.key.child(SIGN, example);
            (0..(channels * width) as u32).map(move |stripe| sign(key, stripe))
        })
        .collect();
    let signs = Tensor::<4>::from_data(TensorData::new(signs, [batch, channels, 1, width]), &images.device());
    (images.clone() + signs.expand([batch, channels, height, width]) * epsilon).clamp(0.0, 1.0)
}

/// Side of the square of a query, in pixels.
pub fn side(query: u32, height: usize, width: usize) -> usize {
    let halvings = HALVED.iter().filter(|&&after| query > after).count();
    let share = SHARE / f64::from(1u32 << halvings);
    let side = (share * (height * width) as f64).sqrt().round_ties_even() as usize;
    side.max(1).min(height.min(width))
}

/// L∞: ±2ε in a random square, the same one and of the same sign by channel for all examples.
fn square(images: &Tensor<4>, best: Tensor<4>, epsilon: f32, query: u32, draw: &Draw) -> Tensor<4> {
    let shape = best.dims();
    let [_, channels, height, width] = shape;
    let side = side(query, height, width);
    let [top, left] = draw.corner(0, side, shape);
    let mut change = vec![0.0; channels * height * width];
    for channel in 0..channels {
        let value = 2.0 * epsilon * sign(draw.key.child(SIGN, 0), channel as u32);
        for row in top..top + side {
            let first = (channel * height + row) * width + left;
            change[first..first + side].fill(value);
        }
    }
    let change = TensorData::new(change, [1, channels, height, width]);
    let change = Tensor::<4>::from_data(change, &best.device()).expand(shape);
    Norm::Linf.project(images.clone(), best + change, epsilon)
}

/// L2, to begin with: five by five tiles, each a bump and a hollow, the sign drawn by example, channel and tile.
fn tiles(images: &Tensor<4>, epsilon: f32, round: &Round) -> Tensor<4> {
    let [batch, channels, height, width] = images.dims();
    let side = (height / 5).clamp(1, width);
    let margin = (height - (5 * side).min(height)) / 2;
    let draw = Draw { key: round.key, examples: round.examples };
    let mut change = images.zeros_like();
    let places = |length: usize| (margin..).step_by(side).take_while(move |from| from + side <= length);
    for (number, (top, left)) in
        places(height).flat_map(|top| places(width).map(move |left| (top, left))).enumerate()
    {
        let number = number as u32;
        let tile = pattern(side, draw.key.words(TURN, number)[0] >> 31 == 1, images)
            * draw.signs(number, channels, images);
        change = change.slice_assign([0..batch, 0..channels, top..top + side, left..left + side], tile);
    }
    Norm::L2.project(images.clone(), images.clone() + Norm::L2.unit(change) * epsilon, epsilon)
}

/// L2: what is in one random window is given to another, as a bump and a hollow on top of what is there.
fn bump(images: &Tensor<4>, best: Tensor<4>, epsilon: f32, query: u32, draw: &Draw) -> Tensor<4> {
    let shape = best.dims();
    let [batch, channels, height, width] = shape;
    // Odd, and at least three.
    let side = (side(query, height, width).max(3) | 1).min(height.min(width));
    let [to, from] = [0, 1].map(|number| draw.corner(number, side, shape));
    let window = |[top, left]: [usize; 2]| [0..batch, 0..channels, top..top + side, left..left + side];
    let change = best - images.clone();
    // By example and channel, `[batch, channels, 1, 1]`.
    let squares = |part: Tensor<4>| {
        let [_, _, rows, columns] = part.dims();
        let flat = part.reshape([batch, channels, rows * columns]);
        (flat.clone() * flat).sum_dim(2).reshape([batch, channels, 1, 1])
    };
    let there = change.clone().slice(window(to));
    let emptied = change
        .clone()
        .slice_assign(window(from), Tensor::zeros([batch, channels, side, side], &change.device()));
    // Of both windows together: what they hold goes, or moves.
    let cleared = emptied.clone().slice_assign(window(to), there.zeros_like());
    let windows = (squares(change.clone()) - squares(cleared)).clamp_min(0.0);
    let spare =
        (Norm::L2.length(change.clone()).square().neg() + epsilon * epsilon).clamp_min(0.0) / channels as f32;
    let shape_of =
        pattern(side, draw.key.words(TURN, 0)[0] >> 31 == 1, &change) * draw.signs(0, channels, &change);
    let added = shape_of + there.clone() / (squares(there).sqrt() + 1e-12);
    let added = added.clone() / (squares(added).sqrt() + 1e-12) * (windows + spare).sqrt();
    let change = emptied.slice_assign(window(to), added);
    Norm::L2.project(images.clone(), images.clone() + Norm::L2.unit(change) * epsilon, epsilon)
}

/// A bump above a hollow, of length 1, `[1, 1, side, side]`; side by side when turned. Each falls off from its middle in square
/// rings, as one over the ring's number squared.
pub fn pattern(side: usize, turned: bool, like: &Tensor<4>) -> Tensor<4> {
    let mut values = vec![0.0f32; side * side];
    let mut half = |first: usize, rows: usize, sign: f32| {
        if rows == 0 {
            return;
        }
        let (row_rings, column_rings) = (rows / 2 + 1, side / 2 + 1);
        let mut part = vec![0.0f32; rows * side];
        for ring in 0..row_rings.max(column_rings) {
            let range =
                |middle: usize, length: usize| middle.saturating_sub(ring)..(middle + ring + 1).min(length);
            for row in range(row_rings - 1, rows) {
                for column in range(column_rings - 1, side) {
                    part[row * side + column] += 1.0 / ((ring + 1) * (ring + 1)) as f32;
                }
            }
        }
        let length = part.iter().map(|value| value * value).sum::<f32>().sqrt();
        for (value, part) in values[first * side..].iter_mut().zip(&part) {
            *value = sign * part / length;
        }
    };
    half(0, side / 2, 1.0);
    half(side / 2, side - side / 2, -1.0);
    let length = values.iter().map(|value| value * value).sum::<f32>().sqrt();
    let at = |row: usize, column: usize| if turned { column * side + row } else { row * side + column };
    let values: Vec<f32> = (0..side * side).map(|i| values[at(i / side, i % side)] / length).collect();
    Tensor::from_data(TensorData::new(values, [1, 1, side, side]), &like.device())
}

fn sign(key: Key, index: u32) -> f32 {
    if key.words(0, index)[0] >> 31 == 0 { 1.0 } else { -1.0 }
}
