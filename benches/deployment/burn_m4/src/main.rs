//! Computes a golden input with Burn's CPU backend: logits beside ours, instructions, and the most memory that was taken at a time.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::alloc::{GlobalAlloc, Layout};
use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor, TensorData, module};
use cortex_m_rt::entry;
use cortex_m_semihosting::debug::{self, EXIT_FAILURE, EXIT_SUCCESS};
use cortex_m_semihosting::hio;
use embedded_alloc::LlffHeap;

#[allow(dead_code, reason = "this program uses the exported network, not its kernels")]
#[path = "../model/micro/mod.rs"]
mod micro;
#[allow(dead_code, reason = "this program uses the exported network, not its kernels")]
#[path = "../model/model.rs"]
mod model;

use micro::{ConvShape, LANES, Op, Span, Weights};
use model::{GOLDEN_INPUTS, GOLDEN_LOGITS, MODEL};

const HEAP: usize = 14 << 20;

struct Counting(LlffHeap);

static USED: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let used = USED.load(Ordering::Relaxed) + layout.size();
        USED.store(used, Ordering::Relaxed);
        MOST.store(MOST.load(Ordering::Relaxed).max(used), Ordering::Relaxed);
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        USED.store(USED.load(Ordering::Relaxed) - layout.size(), Ordering::Relaxed);
        unsafe { self.0.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting(LlffHeap::empty());

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    if let Ok(mut out) = hio::hstdout() {
        let _ = writeln!(out, "{info}");
    }
    debug::exit(EXIT_FAILURE);
    loop {}
}

#[entry]
fn main() -> ! {
    static mut MEMORY: [u8; HEAP] = [0; HEAP];
    // SAFETY: this is the only use of it.
    unsafe { ALLOCATOR.0.init(MEMORY.as_mut_ptr() as usize, HEAP) };
    debug::exit(if run().is_some() { EXIT_SUCCESS } else { EXIT_FAILURE });
    loop {}
}

/// A layer with its weights as Burn holds them.
enum Layer {
    Conv(ConvShape, Tensor<4>, Tensor<1>),
    Linear(Tensor<2>, Tensor<1>),
    Pool,
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn floats(span: Span) -> Vec<f32> {
    MODEL.constants.floats[span.range()].to_vec()
}

fn weights(weights: Weights) -> Vec<f32> {
    match weights {
        Weights::Floats(span) => floats(span),
        Weights::Halves(_) => panic!("float32 only"),
    }
}

fn layer(op: &Op, device: &Device) -> Layer {
    match *op {
        Op::Conv { shape, weights: of, bias } => {
            let ([.., outputs], inputs, kernel) = (shape.output, shape.inputs_per_output(), shape.kernel);
            let (arranged, taps) = (weights(of), kernel * kernel);
            let value = |i: usize| {
                let (output, input, tap) = (i / taps / inputs, i / taps % inputs, i % taps);
                arranged[((output / LANES * taps + tap) * inputs + input) * LANES + output % LANES]
            };
            let values = (0..outputs * inputs * taps).map(value).collect();
            let kernels = tensor(values, [outputs, inputs, kernel, kernel], device);
            Layer::Conv(shape, kernels, tensor(floats(bias), [outputs], device))
        }
        Op::Linear { weights: of, bias } => {
            let (values, outputs) = (weights(of), bias.len);
            let inputs = values.len() / outputs;
            Layer::Linear(tensor(values, [inputs, outputs], device), tensor(floats(bias), [outputs], device))
        }
        Op::GlobalPool { .. } => Layer::Pool,
        _ => panic!("another layer"),
    }
}

fn run() -> Option<()> {
    let mut out = hio::hstdout().ok()?;
    let device = Device::flex();
    let layers: Vec<Layer> = MODEL.layers.iter().map(|of| layer(&of.op, &device)).collect();
    let held = USED.load(Ordering::Relaxed);
    MOST.store(held, Ordering::Relaxed);
    let [height, width, channels] = MODEL.input;
    let pixels = GOLDEN_INPUTS[0].iter().map(|&byte| f32::from(byte) * micro::BYTE).collect();
    let image = tensor(pixels, [1, height, width, channels], &device).permute([0, 3, 1, 2]);
    // Control, value, reload of CMSDK's timer 0.
    let timer = 0x4000_0000 as *mut u32;
    // SAFETY: the board has it there.
    unsafe {
        timer.add(2).write_volatile(u32::MAX);
        timer.add(1).write_volatile(u32::MAX);
        timer.write_volatile(1);
    }
    let before = unsafe { timer.add(1).read_volatile() };
    let input = Span { start: MODEL.input_start, len: height * width * channels };
    let mut values: Vec<(Span, Tensor<4>)> = alloc::vec![(input, image)];
    let mut logits = None;
    for (of, layer) in MODEL.layers.iter().zip(&layers) {
        let find = |span: Span| values.iter().rev().find(|(at, _)| *at == span).map(|(_, value)| value.clone());
        let input = find(of.input)?;
        let residual = of.residual.map(|span| find(span).expect("it is there"));
        let mut result = match layer {
            Layer::Conv(shape, weights, bias) => {
                let groups = if shape.depthwise { shape.input[2] } else { 1 };
                let options = ConvOptions::new([shape.stride; 2], [shape.padding; 2], [1, 1], groups);
                module::conv2d(input, weights.clone(), Some(bias.clone()), options)
            }
            Layer::Pool => input.mean_dim(3).mean_dim(2),
            Layer::Linear(weights, bias) => {
                let [_, inputs, ..] = input.dims();
                logits = Some(module::linear(input.reshape([1, inputs]), weights.clone(), Some(bias.clone())));
                break;
            }
        };
        if let Some(residual) = residual {
            result = result + residual;
        }
        if of.relu {
            result = burn::tensor::activation::relu(result);
        }
        // What lay there is read no more.
        values.retain(|(at, _)| at.start + at.len <= of.output.start || of.output.start + of.output.len <= at.start);
        values.push((of.output, result));
    }
    let logits: Vec<f32> = logits?.into_data().try_into_vec().ok()?;
    let after = unsafe { timer.add(1).read_volatile() };
    let far = logits.iter().zip(&GOLDEN_LOGITS[0]).map(|(one, other)| (one - other).abs());
    let far = far.max_by(f32::total_cmp)?;
    let most = MOST.load(Ordering::Relaxed);
    writeln!(out, "largest difference of a logit {far:e}").ok()?;
    writeln!(out, "{} instructions", u64::from(before - after) * 40).ok()?;
    writeln!(out, "weights on the heap {held} bytes, and {} more at most", most - held).ok()
}
