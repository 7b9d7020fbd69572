use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Args;

use super::{Exit, announce, say};
use crate::bail;
use crate::device::{Choice, Device};
use crate::error::{At, Result};
use crate::serve::{Broker, Limits, ServeOptions, WatchOptions, serve};

#[derive(Args)]
pub struct Serve {
    /// Bundles of `export`; each is called as its folder, or as the folder of a link `current`
    #[arg(required = true)]
    bundles: Vec<PathBuf>,
    /// Where requests are taken; other machines reach anything but 127.0.0.1, which then needs --token-file
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// A file with the token that requests bring as `Authorization: Bearer TOKEN`
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The certificate chain in PEM, for HTTPS
    #[arg(long, requires = "tls_key", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Its key in PEM
    #[arg(long, requires = "tls_cert", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Inspect the images of this folder as they come, each once
    #[arg(long, requires = "results", value_name = "FOLDER")]
    watch: Option<PathBuf>,
    /// Where the results of --watch go: a file of JSON lines that ends in .jsonl, or a folder for one such file a day
    #[arg(long, requires = "watch", value_name = "FILE.jsonl|DIR")]
    results: Option<PathBuf>,
    /// Move inspected files into DIR/pass, reject, unclear, none or unreadable
    #[arg(long, requires = "watch", value_name = "DIR")]
    move_to: Option<PathBuf>,
    /// Look into the folder every so many seconds, for shares of other machines, of which the system has no events
    #[arg(long, requires = "watch", value_name = "SECONDS")]
    poll: Option<f64>,
    /// Publish every part to this broker, as mqtt://HOST:PORT
    #[arg(long, requires = "topic", value_name = "URL")]
    mqtt: Option<String>,
    /// What MQTT topics begin with: parts go to TOPIC/parts, online or offline to TOPIC/state
    #[arg(long, requires = "mqtt")]
    topic: Option<String>,
    /// A file with USER:PASSWORD for the broker
    #[arg(long, requires = "mqtt", value_name = "FILE")]
    mqtt_login_file: Option<PathBuf>,
    /// Requests that wait for a bundle at most; more are answered with 503
    #[arg(long, default_value_t = Limits::default().queue)]
    queue: usize,
    /// Mebibytes of a request at most
    #[arg(long, default_value_t = Limits::default().body_bytes >> 20, value_name = "MIB")]
    max_body: usize,
    /// Where to compute: auto, gpu, gpu:N, software or cpu
    #[arg(long, default_value = "auto")]
    device: Choice,
}

impl Serve {
    pub fn run(self, stop: &'static AtomicBool) -> Result<Exit> {
        let poll = match self.poll {
            Some(seconds) if !(0.05..=86_400.0).contains(&seconds) => {
                bail!("--poll {seconds}: must be between 0.05 and 86400 seconds")
            }
            seconds => seconds.map(Duration::from_secs_f64),
        };
        for (flag, value) in [("--queue", self.queue), ("--max-body", self.max_body)] {
            if !(1..=1 << 20).contains(&value) {
                bail!("{flag} {value}: must be between 1 and {}", 1 << 20);
            }
        }
        let login = self.mqtt_login_file.as_deref().map(secret).transpose()?;
        let credentials = match login.as_deref().map(|login| login.split_once(':')) {
            None => None,
            Some(Some((user, password))) => Some((user.to_string(), password.to_string())),
            Some(None) => bail!("--mqtt-login-file: the file has no line USER:PASSWORD"),
        };
        let options = ServeOptions {
            bundles: self.bundles,
            listen: self.listen,
            token: self.token_file.as_deref().map(secret).transpose()?,
            tls: self.tls_cert.zip(self.tls_key).map(|(certificates, key)| [certificates, key]),
            limits: Limits { queue: self.queue, body_bytes: self.max_body << 20, ..Limits::default() },
            watch: self.watch.map(|folder| WatchOptions { folder, move_to: self.move_to, poll }),
            results: self.results,
            broker: self.mqtt.zip(self.topic).map(|(url, topic)| Broker { url, topic, credentials }),
        };
        let device = Device::open(self.device)?;
        announce(&device);
        serve(options, &device, stop, |address| _ = say(format!("serving at {address}")))?;
        Ok(Exit::Success)
    }
}

/// The first line of a file that only some may read.
fn secret(file: &Path) -> Result<String> {
    let text = std::fs::read_to_string(file).at("read", file)?;
    match text.lines().next().map(str::trim) {
        Some(line) if !line.is_empty() => Ok(line.to_string()),
        _ => bail!("{}: its first line is empty", file.display()),
    }
}
