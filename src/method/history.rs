//! One perturbation per training image, kept over the epochs.

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use rayon::prelude::*;

use crate::data::ImageShape;
use crate::device::Device;
use crate::kernel::gather_augment::{Draw, placement};
use crate::model::state_dict::{StateDict, Values, read_values};

/// Histories above this many bytes stay in host memory.
const RESIDENT_BYTES: usize = 2 << 30;

/// A tensor of the shape of an image for every training image, zero at first.
pub struct History {
    shape: ImageShape,
    device: burn::tensor::Device,
    /// Whether it is cropped and mirrored as the image is.
    aligned: bool,
    store: Store,
}

#[allow(clippy::large_enum_variant, reason = "a run has two at most")]
enum Store {
    /// `[images, values]` on the device.
    Resident(Tensor<2>),
    /// The same in host memory: on the CPU, or where it does not fit into one binding of the device. There each step
    /// reads its rows back.
    Host(Vec<f32>),
}

impl History {
    /// For `count` images. A batch that may hold an image twice needs host memory, where the later one counts; writing
    /// one row twice is not defined on a device.
    pub fn new(count: usize, shape: ImageShape, device: &Device, aligned: bool, repeats: bool) -> Self {
        let bytes = (4 * count * shape.len()) as u64;
        let store = match device.max_binding_bytes {
            Some(limit) if !repeats && bytes <= limit.min(RESIDENT_BYTES as u64) => {
                Store::Resident(Tensor::zeros([count, shape.len()], &device.burn))
            }
            _ => Store::Host(vec![0.0; count * shape.len()]),
        };
        Self { shape, device: device.burn.clone(), aligned, store }
    }

    /// Sets every value from (image, place in the image).
    pub fn fill(&mut self, value: impl Fn(u32, u32) -> f32 + Sync) {
        let len = self.shape.len();
        let count = match &self.store {
            Store::Resident(rows) => rows.dims()[0],
            Store::Host(values) => values.len() / len,
        };
        let mut values = vec![0.0; count * len];
        values.par_chunks_exact_mut(len).enumerate().for_each(|(image, row)| {
            row.iter_mut().enumerate().for_each(|(i, place)| *place = value(image as u32, i as u32));
        });
        self.replace(values);
    }

    fn replace(&mut self, values: Vec<f32>) {
        let len = self.shape.len();
        match &mut self.store {
            Store::Host(held) => *held = values,
            Store::Resident(rows) => {
                let shape = [values.len() / len, len];
                *rows = Tensor::from_data(TensorData::new(values, shape), &self.device);
            }
        }
    }

    /// What is kept of a batch's images `[batch, channels, height, width]`, as the batch shows them: `examples` are the
    /// images, `draw` is how they were cropped and mirrored.
    pub fn take(&self, examples: &[u32], draw: Draw) -> Tensor<4> {
        let kept = self.rows(examples);
        match self.aligned {
            true => Grid::shown(examples, draw, self.shape, &self.device).gather(kept).0,
            false => kept,
        }
    }

    /// Keeps `values` of a batch's images. Aligned, what the crop left out stays as it was.
    pub fn put(&mut self, examples: &[u32], draw: Draw, values: Tensor<4>) {
        let values = match self.aligned {
            true => {
                let (moved, inside) = Grid::back(examples, draw, self.shape, &self.device).gather(values);
                self.rows(examples).mask_where(inside, moved)
            }
            false => values,
        };
        let (count, len) = (examples.len(), self.shape.len());
        match &mut self.store {
            Store::Resident(rows) => {
                let places = places(examples, &self.device);
                let values = values.reshape([count, len]);
                *rows = std::mem::replace(rows, Tensor::zeros([1, 1], &self.device)).select_assign(
                    0,
                    places,
                    values,
                    IndexingUpdateOp::Assign,
                );
            }
            Store::Host(held) => {
                let values: Vec<f32> = values.into_data().try_into_vec().expect("float32");
                for (&example, values) in examples.iter().zip(values.chunks_exact(len)) {
                    held[example as usize * len..][..len].copy_from_slice(values);
                }
            }
        }
    }

    fn rows(&self, examples: &[u32]) -> Tensor<4> {
        let ImageShape { channels, height, width } = self.shape;
        let dims = [examples.len(), channels, height, width];
        match &self.store {
            Store::Resident(rows) => rows.clone().select(0, places(examples, &self.device)).reshape(dims),
            Store::Host(held) => {
                let len = self.shape.len();
                let row = |&example: &u32| &held[example as usize * len..][..len];
                let values: Vec<f32> = examples.iter().flat_map(row).copied().collect();
                Tensor::from_data(TensorData::new(values, dims), &self.device)
            }
        }
    }

    /// What has to be saved, under `name`.
    pub fn state(&self, name: &str) -> StateDict {
        let values = match &self.store {
            Store::Resident(rows) => read_values(rows.clone()),
            Store::Host(held) => {
                let len = self.shape.len();
                Values { shape: vec![held.len() / len, len], data: held.clone() }
            }
        };
        StateDict::from([(name.to_string(), values)])
    }

    /// Continues from what was saved under `name`.
    pub fn load(&mut self, state: &mut StateDict, name: &str) {
        if let Some(values) = state.remove(name) {
            self.replace(values.data);
        }
    }
}

fn places(examples: &[u32], device: &burn::tensor::Device) -> Tensor<1, Int> {
    let places: Vec<i32> = examples.iter().map(|&example| example as i32).collect();
    Tensor::from_data(TensorData::new(places, [examples.len()]), device)
}

/// Where each row and column of a batch's images comes from, per image; negative or too large: from nowhere.
struct Grid {
    rows: Tensor<2, Int>,
    columns: Tensor<2, Int>,
}

impl Grid {
    /// From the image to what the batch shows of it.
    fn shown(examples: &[u32], draw: Draw, shape: ImageShape, device: &burn::tensor::Device) -> Self {
        Self::new(examples, draw, shape, device, |at, [down, right, mirrored], width| {
            let column = if mirrored != 0 { width - 1 - at } else { at };
            [at + down, column + right]
        })
    }

    /// From what the batch shows back to the image.
    fn back(examples: &[u32], draw: Draw, shape: ImageShape, device: &burn::tensor::Device) -> Self {
        Self::new(examples, draw, shape, device, |at, [down, right, mirrored], width| {
            let column = at - right;
            [at - down, if mirrored != 0 { width - 1 - column } else { column }]
        })
    }

    fn new(
        examples: &[u32],
        draw: Draw,
        shape: ImageShape,
        device: &burn::tensor::Device,
        from: impl Fn(i32, [i32; 3], i32) -> [i32; 2],
    ) -> Self {
        let pad = draw.pad;
        let list = |side: usize, axis: usize| {
            let sources = |&example: &u32| {
                let (down, right, mirrored) = placement(draw, example);
                let shift = [down as i32 - pad as i32, right as i32 - pad as i32, i32::from(mirrored)];
                let from = &from;
                (0..side as i32).map(move |at| from(at, shift, shape.width as i32)[axis])
            };
            let values: Vec<i32> = examples.iter().flat_map(sources).collect();
            Tensor::<2, Int>::from_data(TensorData::new(values, [examples.len(), side]), device)
        };
        Self { rows: list(shape.height, 0), columns: list(shape.width, 1) }
    }

    /// The values that arrive, zero where nothing does, and where something does.
    fn gather(self, values: Tensor<4>) -> (Tensor<4>, Tensor<4, burn::tensor::Bool>) {
        let dims @ [batch, _, height, width] = values.dims();
        let inside = |index: &Tensor<2, Int>, side: usize| {
            index.clone().greater_equal_elem(0).bool_and(index.clone().lower_elem(side as i32))
        };
        let rows_inside = inside(&self.rows, height).reshape([batch, 1, height, 1]).expand(dims);
        let columns_inside = inside(&self.columns, width).reshape([batch, 1, 1, width]).expand(dims);
        let inside = rows_inside.bool_and(columns_inside);
        let rows = self.rows.clamp(0, height as i32 - 1).reshape([batch, 1, height, 1]).expand(dims);
        let columns = self.columns.clamp(0, width as i32 - 1).reshape([batch, 1, 1, width]).expand(dims);
        let moved = values.gather(2, rows).gather(3, columns);
        (moved.mask_fill(inside.clone().bool_not(), 0.0), inside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::gather_augment;
    use crate::random::Key;

    const SHAPE: ImageShape = ImageShape { channels: 2, height: 5, width: 4 };

    fn check(device: &Device) {
        let draw = Draw { key: Key::new(5), range: 0.0, pad: 2, flip: true, ..Draw::plain() };
        let images =
            crate::data::Images::new(SHAPE, (0..6 * 40).map(|i| (i % 251 + 1) as u8).collect(), vec![0; 6]);
        let picks: Vec<(u32, u32)> = [4, 1, 3, 0].map(|example| (example, example)).to_vec();
        let examples: Vec<u32> = picks.iter().map(|pick| pick.0).collect();
        let (shown, _) = gather_augment::reference(&images.bytes, SHAPE, &picks, draw);
        let tensor =
            |values: Vec<f32>| Tensor::<4>::from_data(TensorData::new(values, [4, 2, 5, 4]), &device.burn);
        for aligned in [false, true] {
            let mut history = History::new(6, SHAPE, device, aligned, false);
            history.fill(|image, place| {
                f32::from(images.image(image as usize)[place as usize]) * steadfast_infer::BYTE
            });
            let read = |tensor: Tensor<4>| tensor.into_data().try_into_vec::<f32>().unwrap();
            let whole = |history: &History| history.state("h").remove("h").unwrap().data;
            let before = whole(&history);
            let taken = read(history.take(&examples, draw));
            assert_eq!(taken == shown, aligned, "shown as the image is");
            // What was taken and put back changes nothing.
            history.put(&examples, draw, tensor(taken.clone()));
            assert_eq!(whole(&history), before);
            history.put(&examples, draw, tensor(taken.iter().map(|value| value + 1.0).collect()));
            let changed: Vec<usize> =
                (0..6).filter(|i| whole(&history)[i * 40..][..40] != before[i * 40..][..40]).collect();
            assert_eq!(changed, [0, 1, 3, 4]);
            if !aligned {
                assert!(
                    whole(&history)[..40]
                        .iter()
                        .zip(&before)
                        .all(|(now, before)| (now - before - 1.0).abs() < 1e-6)
                );
            }
            let mut other = History::new(6, SHAPE, device, aligned, true);
            other.load(&mut history.state("h"), "h");
            assert_eq!(whole(&other), whole(&history));
        }
    }

    #[test]
    fn a_history_follows_its_images_on_the_cpu() {
        check(&Device::cpu());
    }

    #[test]
    fn a_history_follows_its_images_on_the_software_adapter() {
        check(
            &Device::open(crate::device::Choice::Software)
                .expect("a software WGPU adapter; run scripts/test"),
        );
    }
}
