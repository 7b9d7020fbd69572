//! A batch from bytes: pick, crop, flip, scale to [0, 1], random start; see `shaders/gather_augment.wgsl`.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, backend_extension, fusion::custom::TensorSpec};
use burn::tensor::{DType, Int, Shape, Tensor};
use burn_wgpu::CubeBackend;
use rayon::prelude::*;
use steadfast_infer::BYTE;

use super::{Shader, empty_like, launch};
use crate::data::{ImageShape, Images};
use crate::random::{Key, unit};

/// The counter that draws crop and flip of an example; pixels use the counters below it.
const CROP: u32 = u32::MAX;

/// How a batch is drawn from the images it picks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// Key of all randomness, one per (seed, epoch, step).
    pub key: Key,
    /// The random start is uniform in ± this, clipped to [0, 1]; 0: the start is the image.
    pub range: f32,
    /// Pixels by which a random crop may shift, padding with zeros; 0: no crop.
    pub pad: u32,
    /// Whether half of the examples are mirrored left to right.
    pub flip: bool,
}

impl Draw {
    /// The images as they are.
    pub fn plain() -> Self {
        Self { key: Key::new(0), range: 0.0, pad: 0, flip: false }
    }
}

/// Which part of a data set a shard holds, and which rows of the picks form the batch.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// Shape of every image.
    pub shape: ImageShape,
    /// First row of the picks.
    pub begin: usize,
    /// Rows: the batch size.
    pub batch: usize,
    /// Position of the shard's first image in the data set.
    pub first: usize,
    /// Images in the shard.
    pub held: usize,
}

/// The bytes packed four to a word, little end first, as the shader reads them.
pub fn pack(bytes: &[u8]) -> Vec<i32> {
    let word = |chunk: &[u8]| {
        let mut four = [0; 4];
        four[..chunk.len()].copy_from_slice(chunk);
        i32::from_le_bytes(four)
    };
    bytes.chunks(4).map(word).collect()
}

/// Images and random starts, each `[batch, channels, height, width]` in [0, 1], from one shard of packed bytes on a
/// WGSL device. `picks` `[n, 2]` holds (position in the data set, example number) per row. `previous` is what earlier
/// shards returned; it shows through where this shard does not hold the image.
pub fn gather_augment(
    shard: Tensor<1, Int>,
    picks: Tensor<2, Int>,
    previous: Option<(Tensor<4>, Tensor<4>)>,
    extent: Extent,
    draw: Draw,
) -> (Tensor<4>, Tensor<4>) {
    let first_shard = previous.is_none();
    let device = shard.device();
    let (images, start) = previous.unwrap_or_else(|| {
        let nothing = Tensor::zeros([1, 1, 1, 1], &device);
        (nothing.clone(), nothing)
    });
    let (images, start) = <Dispatch as GatherOp>::gather_augment(
        shard.into_dispatch(),
        picks.into_dispatch(),
        images.into_dispatch(),
        start.into_dispatch(),
        (extent, draw, first_shard),
    );
    (Tensor::from_dispatch(images), Tensor::from_dispatch(start))
}

/// How far down and to the right the window of a crop begins in the padded image of an example, and whether it is
/// mirrored after that.
pub fn placement(draw: Draw, example: u32) -> (u32, u32, bool) {
    let words = draw.key.words(example, CROP);
    let span = 2 * draw.pad + 1;
    (words[0] % span, words[0] / span % span, draw.flip && words[1] >> 31 == 1)
}

/// The same from bytes in host memory, as a plain loop: `picks` are (position, example number). Images and starts, one
/// after the other.
pub fn reference(images: &Images, picks: &[(u32, u32)], draw: Draw) -> (Vec<f32>, Vec<f32>) {
    let ImageShape { channels, height, width } = images.shape;
    let len = images.shape.len();
    let mut values = vec![0.0; picks.len() * len];
    let mut starts = vec![0.0; picks.len() * len];
    let rows = values.par_chunks_exact_mut(len).zip(starts.par_chunks_exact_mut(len));
    rows.zip(picks.par_iter()).for_each(|((values, starts), &(position, example))| {
        let bytes = images.image(position as usize);
        let (down, right, mirrored) = placement(draw, example);
        let (down, right) = (down as usize, right as usize);
        let pad = draw.pad as usize;
        for channel in 0..channels {
            for row in 0..height {
                for column in 0..width {
                    let pixel = (channel * height + row) * width + column;
                    let column = if mirrored { width - 1 - column } else { column };
                    // Shifted by `pad` to stay unsigned; outside the image is zero padding.
                    let (row, column) = ((row + down).wrapping_sub(pad), (column + right).wrapping_sub(pad));
                    if row < height && column < width {
                        values[pixel] = f32::from(bytes[(channel * height + row) * width + column]) * BYTE;
                    }
                }
            }
        }
        if draw.range == 0.0 {
            starts.copy_from_slice(values);
            return;
        }
        steadfast_cpu::vectorise(|| {
            for (pixel, (start, value)) in starts.iter_mut().zip(values).enumerate() {
                let noise = unit(draw.key.words(example, pixel as u32)[0]) * 2.0 - 1.0;
                *start = (*value + draw.range * noise).clamp(0.0, 1.0);
            }
        });
    });
    (values, starts)
}

type Parameters = (Extent, Draw, bool);

fn output(
    _: &TensorSpec,
    _: &TensorSpec,
    _: &TensorSpec,
    _: &TensorSpec,
    parameters: &Parameters,
) -> (TensorSpec, TensorSpec) {
    let spec = TensorSpec::new(batch_shape(&parameters.0), DType::F32);
    (spec.clone(), spec)
}

fn batch_shape(extent: &Extent) -> Shape {
    Shape::new([extent.batch, extent.shape.channels, extent.shape.height, extent.shape.width])
}

#[backend_extension(Cube, Fusion)]
trait GatherOp: Backend {
    #[fusion(meta = output)]
    fn gather_augment(
        shard: IntTensor<Self>,
        picks: IntTensor<Self>,
        previous_images: FloatTensor<Self>,
        previous_start: FloatTensor<Self>,
        parameters: Parameters,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

impl GatherOp for CubeBackend {
    fn gather_augment(
        shard: IntTensor<Self>,
        picks: IntTensor<Self>,
        previous_images: FloatTensor<Self>,
        previous_start: FloatTensor<Self>,
        (extent, draw, first_shard): Parameters,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let shape = batch_shape(&extent);
        let elements = shape.num_elements();
        let images = empty_like(&previous_images, shape.clone());
        let start = empty_like(&previous_images, shape);
        let ImageShape { channels, height, width } = extent.shape;
        let counts = [elements, channels, height, width, extent.begin, extent.first, extent.held];
        let mut scalars: Vec<u32> = counts.iter().map(|&count| count as u32).collect();
        scalars.extend(draw.key.0);
        scalars.extend([draw.range.to_bits(), draw.pad, u32::from(draw.flip), u32::from(first_shard)]);
        let tensors = [&shard, &picks, &previous_images, &previous_start, &images, &start];
        launch(&Shader::new("gather_augment"), elements, &tensors, scalars);
        (images, start)
    }
}
