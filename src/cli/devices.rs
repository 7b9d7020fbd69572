use clap::Args;
use serde::Serialize;
use steadfast_infer::largest;

use super::{Exit, say};
use crate::bail;
use crate::device::{self, Adapter, Choice, Device};
use crate::error::Result;
use crate::files::to_json;
use crate::kernel::self_test::{self, Check};

#[derive(Args)]
pub struct Devices {
    /// Run the parity of every shader with its reference on the chosen adapter
    #[arg(long)]
    self_test: bool,
    /// The adapter to test: auto (here also the software adapter), gpu, gpu:N or software
    #[arg(long, default_value = "auto")]
    device: Choice,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Listing {
    adapters: Vec<Adapter>,
    auto: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    self_test: Option<Tested>,
}

#[derive(Serialize)]
struct Tested {
    device: String,
    passed: bool,
    checks: Vec<Check>,
}

impl Devices {
    pub fn run(self) -> Result<Exit> {
        let adapters = device::adapters();
        let auto = device::auto_reason(&adapters);
        let self_test = if self.self_test { Some(self.test(&adapters)?) } else { None };
        let passed = self_test.as_ref().is_none_or(|tested| tested.passed);
        let listing = Listing { adapters, auto, self_test };
        if self.json {
            say(to_json(&listing).trim_end())?;
        } else {
            print_text(&listing)?;
        }
        Ok(if passed { Exit::Success } else { Exit::No })
    }

    fn test(&self, adapters: &[Adapter]) -> Result<Tested> {
        let has_gpu = adapters.iter().any(|adapter| adapter.flag.as_deref() == Some("gpu:0"));
        let choice = match self.device {
            Choice::Cpu => bail!("--device cpu: runs no shader; choose gpu or software"),
            Choice::Auto if has_gpu => Choice::Gpu(0),
            Choice::Auto => Choice::Software,
            other => other,
        };
        let device = Device::open(choice)?;
        let checks = self_test::run(&device);
        Ok(Tested { device: device.to_string(), passed: checks.iter().all(Check::passed), checks })
    }
}

fn print_text(listing: &Listing) -> Result<()> {
    let mib = |bytes: u64| bytes >> 20;
    for adapter in &listing.adapters {
        say(format!(
            "{:<9} {} ({}, {}, {}): binds {} MiB, buffers of {} MiB, workgroups of {}",
            adapter.flag.as_deref().unwrap_or("-"),
            adapter.name,
            adapter.api,
            adapter.kind,
            adapter.driver,
            mib(adapter.max_binding_bytes),
            mib(adapter.max_buffer_bytes),
            adapter.max_workgroup
        ))?;
    }
    say(format!("{:<9} {}", "cpu", Device::cpu()))?;
    say(listing.auto.to_string())?;
    if let Some(tested) = &listing.self_test {
        say(format!("self-test on {}", tested.device))?;
        for shader in crate::kernel::sources().map(|source| source.name) {
            let checks: Vec<_> = tested.checks.iter().filter(|check| check.shader == shader).collect();
            let passed = checks.iter().filter(|check| check.passed()).count();
            let worst = largest(checks.iter().map(|check| check.difference));
            say(format!(
                "  {shader:<15} {passed} of {} cases agree, largest difference {worst:.1e}",
                checks.len()
            ))?;
            for check in checks.iter().filter(|check| !check.passed()) {
                say(format!(
                    "    FAILED {}: {:.1e} > {:.1e}",
                    check.case, check.difference, check.tolerance
                ))?;
            }
        }
    }
    Ok(())
}
