//! Where tensors are computed: a GPU, the software adapter, or the CPU backend.
//!
//! Adapters are enumerated and opened through wgpu here, and Burn is handed the opened device.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Duration;

use serde::Serialize;

use crate::bail;
use crate::error::{Error, Result};
use steadfast_cpu as cpu;

/// What `--device` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// A real GPU when there is one, else the CPU.
    #[default]
    Auto,
    /// The first GPU, or the one with this number in the list of GPUs.
    Gpu(usize),
    /// The WGPU software adapter (llvmpipe, WARP): slow, for tests.
    Software,
    /// Burn's CPU backend.
    Cpu,
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "gpu" => Ok(Self::Gpu(0)),
            "software" => Ok(Self::Software),
            "cpu" => Ok(Self::Cpu),
            _ => match text.strip_prefix("gpu:").and_then(|n| n.parse().ok()) {
                Some(number) => Ok(Self::Gpu(number)),
                None => Err(format!("`{text}` is not auto, gpu, gpu:N, software or cpu")),
            },
        }
    }
}

/// An adapter as `steadfast devices` lists it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Adapter {
    /// The value of `--device` that takes it; none for a second software adapter.
    pub flag: Option<String>,
    /// The driver's name for the hardware.
    pub name: String,
    /// Vulkan, Metal or Dx12.
    pub api: String,
    /// Driver and its version.
    pub driver: String,
    /// Discrete GPU, integrated GPU, virtual GPU, software or other.
    pub kind: String,
    /// Largest buffer a shader can bind, in bytes.
    pub max_binding_bytes: u64,
    /// Largest buffer, in bytes.
    pub max_buffer_bytes: u64,
    /// Largest workgroup, in invocations.
    pub max_workgroup: u32,
}

/// An opened device.
#[derive(Debug, Clone)]
pub struct Device {
    /// The device as Burn knows it, without autodiff.
    pub burn: burn::tensor::Device,
    /// The largest part of a data set that one shader can bind, in bytes; `None` on the CPU.
    pub max_binding_bytes: Option<u64>,
    description: String,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.description)
    }
}

impl Device {
    /// The CPU backend, which is always there.
    pub fn cpu() -> Self {
        Self {
            burn: burn::tensor::Device::flex(),
            max_binding_bytes: None,
            description: format!("cpu ({}, {} threads)", cpu::name(), rayon::current_num_threads()),
        }
    }

    /// Opens what was asked for.
    ///
    /// # Errors
    /// No such adapter, or it refuses to open; the message names the remedy.
    pub fn open(choice: Choice) -> Result<Self> {
        check_environment()?;
        if choice == Choice::Cpu {
            return Ok(Self::cpu());
        }
        let adapters = find_adapters();
        let gpus = || {
            adapters
                .iter()
                .filter(|(adapter, _)| adapter.flag.as_deref().is_some_and(|f| f.starts_with("gpu")))
        };
        match choice {
            Choice::Cpu | Choice::Auto => gpus()
                .next()
                .map_or_else(|| Ok(Self::cpu()), |(info, adapter)| Self::open_adapter(info, adapter)),
            Choice::Gpu(number) => match gpus().nth(number) {
                Some((info, adapter)) => Self::open_adapter(info, adapter),
                None => bail!(
                    "--device gpu:{number}: {} GPU(s) found; see `steadfast devices`, install the GPU's Vulkan driver, or use --device cpu",
                    gpus().count()
                ),
            },
            Choice::Software => {
                match adapters.iter().find(|(adapter, _)| adapter.flag.as_deref() == Some("software")) {
                    Some((info, adapter)) => Self::open_adapter(info, adapter),
                    None => bail!(
                        "--device software: no software adapter; on Debian or Ubuntu: apt-get install mesa-vulkan-drivers"
                    ),
                }
            }
        }
    }

    fn open_adapter(info: &Adapter, adapter: &wgpu::Adapter) -> Result<Self> {
        // As CubeCL opens it: everything the adapter offers, except mapping of device memory.
        let request = wgpu::DeviceDescriptor {
            required_features: adapter.features().difference(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS),
            required_limits: adapter.limits(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            #[allow(unsafe_code, reason = "wgpu asks for it")]
            // SAFETY: the experimental features are only used by CubeCL, which checks for them.
            experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
            ..Default::default()
        };
        let failed = |cause: &dyn fmt::Display| {
            Error::device(&format!("cannot open {}: ", info.name), cause, "; try --device cpu")
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&request)).map_err(|e| failed(&e))?;
        DEVICES.write().unwrap_or_else(|poisoned| poisoned.into_inner()).push(device.clone());
        if let Some(after) = lost_after()? {
            let device = device.clone();
            std::thread::spawn(move || {
                std::thread::sleep(after);
                device.destroy();
            });
        }
        let setup = burn_wgpu::WgpuSetup {
            instance: instance().clone(),
            adapter: adapter.clone(),
            device,
            queue,
            backend: adapter.get_info().backend,
        };
        let burn = burn::tensor::Device::wgpu_options().setup(setup).init().map_err(|e| failed(&e))?;
        let description = format!("{} ({}, {}, {})", info.name, info.api, info.kind, info.driver);
        let software = adapter.get_info().device_type == wgpu::DeviceType::Cpu;
        let opened = Opened { description: description.clone(), software };
        OPENED.write().unwrap_or_else(|poisoned| poisoned.into_inner()).push((burn.clone(), opened));
        Ok(Self { burn, max_binding_bytes: Some(info.max_binding_bytes), description })
    }
}

/// The environment variables that choose how is computed, and what they may say.
const SWITCHES: [(&str, &[&str]); 3] = [
    ("STEADFAST_SIMD", &["none", "avx2", "avx512"]),
    ("STEADFAST_CONVOLUTIONS", &["own", "burn"]),
    ("STEADFAST_TUNER", &["on", "off"]),
];

/// For the test of a lost device: milliseconds after which it is.
const LOSE_DEVICE: &str = "STEADFAST_LOSE_DEVICE_AFTER_MS";

fn lost_after() -> Result<Option<Duration>> {
    let Ok(text) = std::env::var(LOSE_DEVICE) else { return Ok(None) };
    match text.parse() {
        Ok(after) => Ok(Some(Duration::from_millis(after))),
        Err(error) => bail!("{LOSE_DEVICE}={text}: {error}; unset it, it is for a test"),
    }
}

fn check_environment() -> Result<()> {
    for (name, values) in SWITCHES {
        if let Ok(value) = std::env::var(name)
            && !values.contains(&value.as_str())
        {
            bail!("{name}={value}: must be one of {}; unset it for the default", values.join(", "));
        }
    }
    Ok(())
}

/// The adapter of a device that this process opened.
#[derive(Debug, Clone)]
pub struct Opened {
    /// Adapter, API, kind and driver.
    pub description: String,
    /// Whether it computes on the CPU.
    pub software: bool,
}

static OPENED: RwLock<Vec<(burn::tensor::Device, Opened)>> = RwLock::new(Vec::new());

/// The adapter of a device, with autodiff or without.
pub fn opened(device: &burn::tensor::Device) -> Option<Opened> {
    let plain = device.clone().without_autodiff();
    let opened = OPENED.read().unwrap_or_else(|poisoned| poisoned.into_inner());
    opened.iter().find(|(device, _)| *device == plain).map(|(_, adapter)| adapter.clone())
}

/// Every device that this process opened.
static DEVICES: RwLock<Vec<wgpu::Device>> = RwLock::new(Vec::new());

/// What to do when computing failed with this cause.
pub fn remedy(cause: &str) -> String {
    let devices = DEVICES.read().unwrap_or_else(|poisoned| poisoned.into_inner());
    if devices.iter().any(is_lost) {
        return "the device was lost: check its driver, or use --device cpu".to_string();
    }
    match ran_out_of_memory(cause) {
        true => "out of memory: use a smaller --batch-size or --width, or --device cpu".to_string(),
        false => "check the device's driver, or use --device cpu".to_string(),
    }
}

/// Whether a device is gone. What is used of it fails in its own words; wgpu says it in a callback alone, when it is polled, and
/// CubeCL has that callback until here, where computing has ended.
fn is_lost(device: &wgpu::Device) -> bool {
    let lost = Arc::new(AtomicBool::new(false));
    let seen = lost.clone();
    device.set_device_lost_callback(move |_, _| seen.store(true, Ordering::Relaxed));
    let _ = device.poll(wgpu::PollType::Poll);
    lost.load(Ordering::Relaxed)
}

/// Whether a cause is that of an allocation, in the words of wgpu ("Out of Memory", "Not enough memory left"), of
/// CubeCL ("out of device memory allocating", "out-of-memory error", "can't allocate buffer of size") and of Rust's
/// collections ("memory allocation failed").
fn ran_out_of_memory(cause: &str) -> bool {
    let cause = cause.to_lowercase();
    let words =
        ["out of memory", "out-of-memory", "outofmemory", "out of device memory", "not enough memory"];
    let allocation = ["can't allocate", "memory allocation"];
    words.iter().chain(&allocation).any(|words| cause.contains(words))
}

fn instance() -> &'static wgpu::Instance {
    static INSTANCE: OnceLock<wgpu::Instance> = OnceLock::new();
    // Vulkan, Metal and DirectX 12: OpenGL would show the same hardware again, and prints to stderr while it looks.
    INSTANCE.get_or_init(|| {
        wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends: wgpu::Backends::PRIMARY,
            ..wgpu::InstanceDescriptor::new_without_display_handle()
        })
    })
}

/// Every adapter, best first.
pub fn adapters() -> Vec<Adapter> {
    find_adapters().into_iter().map(|(info, _)| info).collect()
}

/// How many `gpu:N` there are.
pub fn gpu_count() -> usize {
    adapters().iter().filter(|adapter| adapter.flag.as_deref().is_some_and(|f| f.starts_with("gpu"))).count()
}

fn find_adapters() -> Vec<(Adapter, wgpu::Adapter)> {
    let mut adapters = pollster::block_on(instance().enumerate_adapters(wgpu::Backends::PRIMARY));
    let rank = |info: &wgpu::AdapterInfo| match info.device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    };
    adapters.sort_by_key(|adapter| rank(&adapter.get_info()));
    let (mut gpus, mut software) = (0, false);
    let mut listed: Vec<(Adapter, wgpu::Adapter)> = Vec::new();
    for adapter in adapters {
        let info = adapter.get_info();
        let flag = match info.device_type {
            wgpu::DeviceType::Cpu if software => None,
            wgpu::DeviceType::Cpu => {
                software = true;
                Some("software".to_string())
            }
            _ => {
                gpus += 1;
                Some(format!("gpu:{}", gpus - 1))
            }
        };
        let limits = adapter.limits();
        let kind = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete GPU",
            wgpu::DeviceType::IntegratedGpu => "integrated GPU",
            wgpu::DeviceType::VirtualGpu => "virtual GPU",
            wgpu::DeviceType::Cpu => "software",
            wgpu::DeviceType::Other => "other",
        };
        let driver = format!("{} {}", info.driver, info.driver_info).trim().to_string();
        let max_binding_bytes = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        listed.push((
            Adapter {
                flag,
                name: info.name,
                api: format!("{:?}", info.backend),
                driver,
                kind: kind.to_string(),
                max_binding_bytes,
                max_buffer_bytes: limits.max_buffer_size,
                max_workgroup: limits.max_compute_invocations_per_workgroup,
            },
            adapter,
        ));
    }
    listed
}

/// Which adapter `auto` takes, and why.
pub fn auto_reason(adapters: &[Adapter]) -> String {
    match adapters.iter().find(|adapter| adapter.flag.as_deref() == Some("gpu:0")) {
        Some(gpu) => format!("auto takes gpu:0, {}: the first real GPU", gpu.name),
        None if adapters.iter().any(|adapter| adapter.kind == "software") => {
            "auto takes cpu: there is no real GPU, and the software adapter is slower than the CPU backend"
                .to_string()
        }
        None => "auto takes cpu: no adapter was found".to_string(),
    }
}
