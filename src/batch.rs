//! Batches: the images of a data set, in an order, on the device.
//!
//! On a WGSL device the bytes are uploaded once, in shards below the binding limit, and every batch is gathered there;
//! a set too large to stay is packed by a thread ahead of the training and sent batch by batch. On the CPU the plain loop
//! reads the bytes where they are.

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};

use burn::tensor::{Int, Tensor, TensorData};

use crate::data::Images;
use crate::device::Device;
use crate::kernel::gather_augment::{self, Draw, Shard, gather_augment};

/// Data sets above this many bytes are streamed instead of kept on the device.
const RESIDENT_BYTES: usize = 2 << 30;
/// Batches packed ahead of the one in use.
const AHEAD: usize = 2;

/// Images, random starts `[batch, channels, height, width]` and labels `[batch]`, all without autodiff.
#[derive(Clone)]
pub struct Batch {
    /// The (augmented) images in [0, 1].
    pub images: Tensor<4>,
    /// The attack's random start round them.
    pub start: Tensor<4>,
    /// Class indices.
    pub labels: Tensor<1, Int>,
}

/// The images of one part of a data set, ready to be gathered into batches.
pub struct Loader {
    images: Arc<Images>,
    device: Device,
    store: Store,
    batch: usize,
}

enum Store {
    /// Bytes stay in host memory and are read there.
    Host,
    /// Bytes are on the device.
    Resident(Vec<Shard>),
    /// Bytes stay in host memory and are sent with each batch.
    Streamed,
}

/// An order of examples, uploaded once; its batches are slices of it.
pub struct Order {
    examples: Arc<[u32]>,
    /// Id of the random stream of each row: the index of its image, another where the image comes again.
    rng_ids: Vec<u32>,
    /// What a thread packs ahead, where batches are sent one by one.
    ahead: Mutex<Option<Ahead>>,
    /// `[rows, 2]`: position of the image where the bytes lie, id of the random stream.
    rows: Tensor<2, Int>,
    labels: Tensor<1, Int>,
}

/// Packed batches in order, from the one named first.
struct Ahead {
    next: usize,
    batches: Receiver<Vec<i32>>,
    /// The batch before `next`: attacks that restart ask for it again.
    last: Vec<i32>,
}

impl Ahead {
    /// Starts a thread that packs batch after batch. It ends when the receiver is gone.
    fn start(images: Arc<Images>, examples: Arc<[u32]>, batch: usize, first: usize) -> Self {
        let (send, batches) = std::sync::mpsc::sync_channel(AHEAD);
        std::thread::spawn(move || {
            let packed = |examples: &[u32]| gather_augment::pack(&images.select(examples).bytes);
            let _ = examples.chunks(batch).skip(first).try_for_each(|examples| send.send(packed(examples)));
        });
        Self { next: first, batches, last: Vec::new() }
    }
}

impl Order {
    /// Examples, padded to whole batches.
    pub fn examples(&self) -> &[u32] {
        &self.examples
    }

    /// Id of the random stream of each: an example that comes again is cropped, mirrored and started anew.
    pub fn rng_ids(&self) -> &[u32] {
        &self.rng_ids
    }
}

impl Loader {
    /// Keeps `images` ready for batches of `batch`.
    pub fn new(images: Arc<Images>, batch: usize, device: &Device) -> Self {
        Self::with_limit(images, batch, device, RESIDENT_BYTES)
    }

    /// As [`Loader::new`], streaming above `resident_bytes`.
    pub fn with_limit(images: Arc<Images>, batch: usize, device: &Device, resident_bytes: usize) -> Self {
        let store = match device.max_binding_bytes {
            None => Store::Host,
            Some(_) if images.bytes.len() > resident_bytes => Store::Streamed,
            Some(limit) => {
                Store::Resident(gather_augment::upload(&images.bytes, images.shape, limit, device))
            }
        };
        Self { images, device: device.clone(), store, batch }
    }

    /// The images behind this loader.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// Batch size.
    pub fn batch_size(&self) -> usize {
        self.batch
    }

    /// Uploads an order of example indices. Its length is padded to whole batches by repeating the last example.
    pub fn order(&self, mut examples: Vec<u32>) -> Order {
        let padded = examples.len().next_multiple_of(self.batch);
        examples.resize(padded, *examples.last().expect("an order has examples"));
        self.upload(examples)
    }

    fn upload(&self, examples: Vec<u32>) -> Order {
        let streamed = matches!(self.store, Store::Streamed);
        let position = |row: usize, example: u32| if streamed { (row % self.batch) as u32 } else { example };
        let mut seen = vec![0; self.images.len()];
        let count = self.images.len() as u32;
        let rng_id = |&example: &u32| {
            let id = example + count * seen[example as usize];
            seen[example as usize] += 1;
            id
        };
        let rng_ids: Vec<u32> = examples.iter().map(rng_id).collect();
        let pairs = examples.iter().zip(&rng_ids).enumerate();
        let pairs =
            pairs.flat_map(|(row, (&example, &id))| [position(row, example) as i32, id as i32]).collect();
        let labels =
            examples.iter().map(|&example| self.images.labels[example as usize] as i32).collect::<Vec<_>>();
        let rows = examples.len();
        Order {
            rows: ints(pairs, [rows, 2], &self.device),
            labels: ints(labels, [rows], &self.device),
            examples: examples.into(),
            rng_ids,
            ahead: Mutex::new(None),
        }
    }

    /// Batch number `index` of an order, with everything random drawn as `draw` says.
    pub fn batch(&self, order: &Order, index: usize, draw: Draw) -> Batch {
        let packed = || self.packed_ahead(order, index);
        self.gather(order, index * self.batch, self.batch, packed, draw)
    }

    /// A batch of just these examples, at most the batch size.
    pub fn pick(&self, examples: &[u32], draw: Draw) -> Batch {
        let order = self.upload(examples.to_vec());
        let packed = || gather_augment::pack(&self.images.select(examples).bytes);
        self.gather(&order, 0, examples.len(), packed, draw)
    }

    fn gather(
        &self,
        order: &Order,
        begin: usize,
        size: usize,
        packed: impl FnOnce() -> Vec<i32>,
        draw: Draw,
    ) -> Batch {
        let labels = order.labels.clone().narrow(0, begin, size);
        let shape = self.images.shape;
        let rows = begin..begin + size;
        let (images, start) = match &self.store {
            Store::Host => {
                let ids = order.rng_ids[rows.clone()].iter().copied();
                let pairs: Vec<_> = order.examples[rows].iter().copied().zip(ids).collect();
                let (images, start) = gather_augment::reference(&self.images.bytes, shape, &pairs, draw);
                let dims = [size, shape.channels, shape.height, shape.width];
                let tensor = |values| Tensor::from_data(TensorData::new(values, dims), &self.device.burn);
                (tensor(images), tensor(start))
            }
            Store::Resident(shards) => gather_augment(shards, &order.rows, rows, shape, draw),
            Store::Streamed => {
                let shard = Shard::new(packed(), 0, size, &self.device);
                gather_augment(&[shard], &order.rows, rows, shape, draw)
            }
        };
        Batch { images, start, labels }
    }

    fn packed_ahead(&self, order: &Order, index: usize) -> Vec<i32> {
        let mut ahead = order.ahead.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(ahead) = ahead.as_ref().filter(|ahead| ahead.next == index + 1) {
            return ahead.last.clone();
        }
        let mut current = ahead
            .take()
            .filter(|ahead| ahead.next == index)
            .unwrap_or_else(|| Ahead::start(self.images.clone(), order.examples.clone(), self.batch, index));
        let words = current.batches.recv().expect("the thread packs every batch of the order");
        current.next += 1;
        current.last.clone_from(&words);
        *ahead = Some(current);
        words
    }
}

fn ints<const D: usize>(values: Vec<i32>, shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(values, shape), &device.burn)
}
