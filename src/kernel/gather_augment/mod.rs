//! A batch from bytes: pick, shift, turn, mirror, scale to [0, 1], blur, light, noise, random start; see `shaders/gather_augment.wgsl`.

mod reference;

use std::ops::Range;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, backend_extension, fusion::custom::TensorSpec};
use burn::tensor::{DType, Int, Shape, Tensor, TensorData};
use burn_wgpu::CubeBackend;
pub use reference::{placement, reference};
use steadfast_infer::{ImageShape, largest, largest_difference};

use super::check::{Check, Kernel, read};
use super::shader::{Shader, Source, empty_like, runs_wgsl};
use crate::device::Device;
use crate::random::Key;

static GATHER_AUGMENT: Source =
    Source::new("gather_augment", include_str!("../../../shaders/gather_augment.wgsl"));

/// Its shader and checks.
pub static KERNEL: Kernel = Kernel { sources: &[&GATHER_AUGMENT], variants: Vec::new, checks };

/// The counter that draws what moves the pixels of an example; those of its pixels are below [`NOISE_COUNTER`].
pub(super) const CROP: u32 = u32::MAX;
/// The counter that draws its light.
pub(super) const LIGHT_COUNTER: u32 = CROP - 1;
/// The counter that draws whether it is blurred, and how much noise it gets.
pub(super) const GRAIN: u32 = CROP - 2;
/// The first counter of the noise of its pixels.
pub(super) const NOISE_COUNTER: u32 = 1 << 31;

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
    /// Whether examples are turned by a random number of quarter turns, of half turns where they are not square.
    pub turn: bool,
    /// Whether half of the examples are blurred: 1 2 1 in both directions.
    pub blur: bool,
    /// Contrast changes by a random factor in 1 ± this, brightness by half as much in both directions; 0: neither.
    pub light: f32,
    /// Normal noise is added, of a standard deviation that is uniform in 0 to this for each example; 0: none.
    pub noise: f32,
}

impl Draw {
    /// The images as they are.
    pub fn plain() -> Self {
        Self {
            key: Key::new(0),
            range: 0.0,
            pad: 0,
            flip: false,
            turn: false,
            blur: false,
            light: 0.0,
            noise: 0.0,
        }
    }

    /// Whether images get other values than those of the bytes.
    fn changes_values(&self) -> bool {
        self.blur || self.light > 0.0 || self.noise > 0.0
    }
}

/// A part of a data set on a WGSL device.
pub struct Shard {
    /// Position of its first image in the data set.
    first: usize,
    /// Images in it.
    held: usize,
    /// Their bytes as [`pack`] leaves them.
    words: Tensor<1, Int>,
}

impl Shard {
    /// Uploads `held` images, packed, the first of which has position `first` in the data set.
    pub fn new(words: Vec<i32>, first: usize, held: usize, device: &Device) -> Self {
        let count = words.len();
        Self { first, held, words: Tensor::from_data(TensorData::new(words, [count]), &device.burn) }
    }
}

/// Uploads images of `shape`, `bytes` of them one after the other, in shards of at most `limit` bytes each.
pub fn upload(bytes: &[u8], shape: ImageShape, limit: u64, device: &Device) -> Vec<Shard> {
    debug_assert!(runs_wgsl(&device.burn));
    let images = bytes.len() / shape.len();
    // Packing may add three bytes.
    let per_shard = ((limit as usize - 3) / shape.len()).max(1);
    let count = images.div_ceil(per_shard).max(1);
    let per_shard = images.div_ceil(count).max(1);
    let parts = bytes.chunks(per_shard * shape.len()).enumerate();
    parts
        .map(|(index, bytes)| Shard::new(pack(bytes), index * per_shard, bytes.len() / shape.len(), device))
        .collect()
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

/// Images and random starts, each `[rows, channels, height, width]` in [0, 1], from the shards of a data set. `picks`
/// `[n, 2]` holds (position in the data set, id of the random stream) per row, of which `rows` form the batch.
///
/// # Panics
/// There is no shard.
pub fn gather_augment(
    shards: &[Shard],
    picks: &Tensor<2, Int>,
    rows: Range<usize>,
    shape: ImageShape,
    draw: Draw,
) -> (Tensor<4>, Tensor<4>) {
    let gathered = shards.iter().fold(None, |previous: Option<(Tensor<4>, Tensor<4>)>, shard| {
        let first_shard = previous.is_none();
        // What earlier shards left shows through where this one does not hold the image.
        let (images, start) = previous.unwrap_or_else(|| {
            let nothing = Tensor::zeros([1, 1, 1, 1], &shard.words.device());
            (nothing.clone(), nothing)
        });
        let Shard { first, held, .. } = *shard;
        let extent = Extent { shape, begin: rows.start, batch: rows.len(), first, held };
        let (images, start) = <Dispatch as GatherOp>::gather_augment(
            shard.words.clone().into_dispatch(),
            picks.clone().into_dispatch(),
            images.into_dispatch(),
            start.into_dispatch(),
            (extent, draw, first_shard),
        );
        Some((Tensor::from_dispatch(images), Tensor::from_dispatch(start)))
    });
    gathered.expect("at least one shard")
}

/// Which part of a data set a shard holds, and which rows of the picks form the batch.
#[derive(Debug, Clone, Copy)]
struct Extent {
    /// Shape of every image.
    shape: ImageShape,
    /// First row of the picks.
    begin: usize,
    /// Rows: the batch size.
    batch: usize,
    /// Position of the shard's first image in the data set.
    first: usize,
    /// Images in the shard.
    held: usize,
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
        let tensors = [&shard, &picks, &previous_images, &previous_start, &images, &start];
        Shader::new(&GATHER_AUGMENT)
            .launch()
            .set("ELEMENTS", elements)
            .set_each(["CHANNELS", "HEIGHT", "WIDTH"], [channels, height, width])
            .set_each(["BEGIN", "FIRST", "HELD"], [extent.begin, extent.first, extent.held])
            .set_each(["KEY_0", "KEY_1"], draw.key.0)
            .set("RANGE", draw.range)
            .set("PAD", draw.pad)
            .set_each(["FLIP", "TURN", "BLUR"], [draw.flip, draw.turn, draw.blur])
            .set_each(["LIGHT", "NOISE"], [draw.light, draw.noise])
            .set("IS_FIRST_SHARD", first_shard)
            .run(elements, &tensors);
        (images, start)
    }
}

fn checks(device: &Device) -> Vec<Check> {
    let mut checks = Vec::new();
    for (shape, count, limit) in
        [((1, 1, 1), 3, u64::MAX), ((3, 7, 5), 10, u64::MAX), ((2, 16, 16), 9, 1100), ((3, 32, 32), 6, 7000)]
    {
        let shape = ImageShape { channels: shape.0, height: shape.1, width: shape.2 };
        let key = Key::new(2).child(count, shape.len() as u32);
        let bytes: Vec<u8> = (0..count * shape.len() as u32).map(|i| key.words(0, i)[0] as u8).collect();
        let changed = Draw { blur: true, light: 0.2, noise: 0.1, ..Draw::plain() };
        let draws = [
            ("plain", Draw::plain()),
            (
                "crop, flip and start",
                Draw { key: key.child(7, 7), range: 8.0 / 255.0, pad: 2, flip: true, ..Draw::plain() },
            ),
            ("turn", Draw { key: key.child(9, 9), turn: true, ..Draw::plain() }),
            ("all", Draw { key: key.child(10, 10), pad: 1, flip: true, turn: true, ..changed }),
            ("blur, light and noise", Draw { key: key.child(11, 11), range: 0.05, ..changed }),
            ("a start as wide as the box", Draw { key: key.child(8, 8), range: 1.0, ..Draw::plain() }),
        ];
        let limit = device.max_binding_bytes.unwrap_or(u64::MAX).min(limit);
        for resident in [true, false] {
            for (name, draw) in draws {
                let storage = if resident { "resident" } else { "streamed" };
                checks.push(Check {
                    shader: "gather_augment",
                    case: format!("{}x{}x{}, {name}, {storage}", shape.channels, shape.height, shape.width),
                    difference: worst_of_batches(&bytes, shape, resident.then_some(limit), draw, device),
                    // Where values are computed, a compiler may or may not join products and sums.
                    tolerance: if draw.changes_values() { 5e-7 } else { 2e-7 },
                });
            }
        }
    }
    checks
}

/// The largest difference over all batches of a shuffled data set: gathered from shards of at most `limit` bytes, or
/// with none from the bytes of each batch alone.
fn worst_of_batches(bytes: &[u8], shape: ImageShape, limit: Option<u64>, draw: Draw, device: &Device) -> f32 {
    const BATCH: usize = 4;
    let count = bytes.len() / shape.len();
    let mut order = Key::new(5).permutation(count);
    // Whole batches: the last image comes again, with another random stream.
    let (last, padding) = (order[count - 1], count.next_multiple_of(BATCH) - count);
    order.resize(count + padding, last);
    let again = |row: usize| row.saturating_sub(count - 1) * count;
    let picks: Vec<(u32, u32)> =
        order.iter().enumerate().map(|(row, &image)| (image, image + again(row) as u32)).collect();
    let resident = limit.map(|limit| upload(bytes, shape, limit, device));
    let mut worst: f32 = 0.0;
    for (index, batch) in picks.chunks(BATCH).enumerate() {
        let ints = |pairs: &[[i32; 2]]| -> Tensor<2, Int> {
            Tensor::from_data(TensorData::new(pairs.concat(), [pairs.len(), 2]), &device.burn)
        };
        let (images, start) = match &resident {
            Some(shards) => {
                let all: Vec<_> = picks.iter().map(|&(image, id)| [image as i32, id as i32]).collect();
                let rows = index * BATCH..(index + 1) * BATCH;
                gather_augment(shards, &ints(&all), rows, shape, draw)
            }
            None => {
                let image = |&(image, _): &(u32, u32)| &bytes[image as usize * shape.len()..][..shape.len()];
                let sent = pack(&batch.iter().map(image).collect::<Vec<_>>().concat());
                let rows: Vec<_> = (0..).zip(batch).map(|(row, &(_, id))| [row, id as i32]).collect();
                gather_augment(&[Shard::new(sent, 0, BATCH, device)], &ints(&rows), 0..BATCH, shape, draw)
            }
        };
        let (plain, plain_start) = reference(bytes, shape, batch, draw);
        // Where pixels only move, images are bytes over 255: they must be the same bits.
        let images = read(images);
        let difference = match draw.changes_values() {
            true => largest_difference(&images, &plain),
            false if images == plain => 0.0,
            false => f32::INFINITY,
        };
        worst = largest([worst, difference, largest_difference(&read(start), &plain_start)]);
    }
    worst
}
