//! `steadfast serve`: bundles behind HTTP, folders that are watched, and results for those who collect them.

mod http;
mod infer;
mod listener;
mod metrics;
mod model;
mod mqtt;
mod results;
mod watch;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};
use steadfast_infer::{Classification, ImageShape, Verdict, confidence};

use crate::bail;
use crate::data::image::encode_values;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::observer;
use metrics::Metrics;
use model::{Answer, Loaded, Model, Refusal};
pub use mqtt::Broker;
pub use results::now;
pub use watch::WatchOptions;

/// Parts that the page shows.
const RECENT: usize = 24;
/// How often the disk is looked at for another bundle, and a signal for the end.
const LOOK: Duration = Duration::from_millis(500);

/// What is served, and to whom.
pub struct ServeOptions {
    /// The bundles.
    pub bundles: Vec<PathBuf>,
    /// Where requests are taken.
    pub listen: SocketAddr,
    /// What requests have to bring.
    pub token: Option<String>,
    /// Certificate chain and key in PEM, for HTTPS.
    pub tls: Option<[PathBuf; 2]>,
    /// What one client may ask for.
    pub limits: Limits,
    /// A folder whose images are inspected as they come.
    pub watch: Option<WatchOptions>,
    /// A file of JSON lines, or a folder for one such file a day.
    pub results: Option<PathBuf>,
    /// Where results are published.
    pub broker: Option<Broker>,
}

/// What clients may ask for.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of a request.
    pub body_bytes: usize,
    /// Requests that wait, for each bundle.
    pub queue: usize,
    /// Seconds until a request has to be answered.
    pub seconds: u64,
    /// Connections at a time.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { body_bytes: 64 << 20, queue: 256, seconds: 30, connections: 1024 }
    }
}

/// A part that was classified.
#[derive(Debug, Clone, Serialize)]
pub struct Part {
    /// Counted from 1 since the service started.
    pub number: u64,
    /// When, by RFC 3339 in UTC.
    pub time: String,
    /// The bundle by name.
    pub model: String,
    /// Its version.
    pub version: String,
    /// The file, or what the request called it.
    pub path: String,
    /// What was found.
    #[serde(flatten)]
    pub classification: Classification,
    /// The calibrated probabilities of all classes, in the order of the bundle's labels.
    pub shares: Vec<f32>,
    /// The network's answer.
    #[serde(skip)]
    pub logits: Vec<f32>,
}

/// A part that the page can show.
struct Recent {
    part: Part,
    loaded: Arc<Loaded>,
    image: Vec<f32>,
}

/// Everything that requests share.
struct Service {
    models: Vec<Arc<Model>>,
    metrics: Metrics,
    token: Option<String>,
    numbers: AtomicU64,
    recent: Mutex<VecDeque<Recent>>,
    /// Parts by verdict since the start.
    counts: Mutex<BTreeMap<&'static str, u64>>,
    results: Option<results::Results>,
    publisher: Option<mqtt::Publisher>,
}

/// As the page, the metrics and the protocol say it.
fn verdict_name(verdict: Option<Verdict>) -> &'static str {
    match verdict {
        Some(Verdict::Pass) => "pass",
        Some(Verdict::Reject) => "reject",
        Some(Verdict::Unclear) => "unclear",
        None => "none",
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Serves until `stop` is set, then answers what has begun and returns. `ready` hears the address where requests are taken.
///
/// # Errors
/// A bundle is refused, the address is taken, an address beyond this machine without a token, a folder or a file that cannot
/// be used.
pub fn serve(
    options: ServeOptions,
    device: &Device,
    stop: &'static AtomicBool,
    ready: impl FnOnce(&str),
) -> Result<()> {
    let ServeOptions { bundles, listen, token, tls, limits, watch, results, broker } = options;
    if !listen.ip().is_loopback() && token.is_none() {
        bail!("--listen {listen}: other machines can reach it, so --token-file is needed");
    }
    let models = bundles.iter().map(|path| Model::start(path, device, limits.queue));
    let models: Vec<Arc<Model>> = models.collect::<Result<_>>()?;
    let twice = (1..models.len()).find(|&i| models[..i].iter().any(|model| model.name == models[i].name));
    if let Some(i) = twice {
        bail!("two bundles are called {}; their folders need different names", models[i].name);
    }
    if watch.is_some() && models.len() != 1 {
        bail!("--watch: inspects with one bundle, not with {}", models.len());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::new(format!("no threads to serve with: {error}")))?;
    runtime.block_on(async {
        let results = results.map(results::Results::open).transpose()?;
        let watched = watch.map(|watch| watch::Watched::open(watch, results.as_ref())).transpose()?;
        let service = Arc::new(Service {
            metrics: Metrics::default(),
            token,
            numbers: AtomicU64::new(0),
            recent: Mutex::default(),
            counts: Mutex::default(),
            results,
            publisher: broker.map(mqtt::Publisher::start).transpose()?,
            models,
        });
        for model in &service.models {
            service.metrics.version(&model.name, &model.loaded().version, None);
        }
        let listener = listener::Listener::bind(listen, tls.as_ref()).await?;
        ready(&listener.address());
        let looking = tokio::spawn(look_for_bundles(service.clone()));
        let watching = watched.map(|watched| tokio::spawn(watched.run(service.clone(), stop)));
        listener.serve(http::router(service.clone(), &limits), &limits, stop).await;
        let outcome = match watching {
            Some(watching) => watching.await.unwrap_or_else(|_| bail!("--watch: it ended with a panic")),
            None => Ok(()),
        };
        looking.abort();
        if let Some(publisher) = &service.publisher {
            publisher.finish().await;
        }
        outcome
    })
}

/// Waits until it is set.
async fn set(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(LOOK / 5).await;
    }
}

/// Takes bundles that replaced those that answer.
async fn look_for_bundles(service: Arc<Service>) {
    let mut refused = vec![String::new(); service.models.len()];
    loop {
        tokio::time::sleep(LOOK).await;
        for (model, refused) in service.models.iter().zip(&mut refused) {
            let (before, looked, known) = (model.loaded().version.clone(), model.clone(), refused.clone());
            let found = tokio::task::spawn_blocking(move || looked.reload(&known)).await;
            match found.ok().flatten() {
                None => {}
                Some(Ok(version)) => {
                    service.metrics.reload(&model.name, "taken");
                    service.metrics.version(&model.name, &version, Some(&before));
                    observer::warn(format!("{}: version {version} answers from now on", model.name));
                }
                Some(Err((version, error))) => {
                    service.metrics.reload(&model.name, "refused");
                    observer::warn(format!(
                        "{}: version {version} is refused, {before} goes on answering: {error}",
                        model.name
                    ));
                    *refused = version;
                }
            }
        }
    }
}

impl Service {
    /// Counts, keeps and publishes what came of an input called `path`.
    fn note(
        &self,
        model: &Model,
        answer: std::result::Result<Answer, Refusal>,
        path: &str,
    ) -> std::result::Result<Vec<Part>, Refusal> {
        match &answer {
            Err(Refusal::Busy) => self.metrics.busy(&model.name),
            Err(Refusal::Unreadable(_)) => self.metrics.unreadable(&model.name),
            _ => {}
        }
        let Answer { loaded, images, outputs } = answer?;
        let bundle = &loaded.bundle;
        let size = bundle.manifest.input.shape().len();
        let temperature = bundle.manifest.calibration.map_or(1.0, |calibration| calibration.temperature);
        let mut parts = Vec::new();
        for ((logits, features), image) in
            outputs.of_images(bundle.manifest.labels.len()).zip(images.chunks_exact(size))
        {
            let part = Part {
                number: self.numbers.fetch_add(1, Ordering::Relaxed) + 1,
                time: results::now(),
                model: model.name.clone(),
                version: loaded.version.clone(),
                path: path.to_string(),
                classification: bundle.classification(logits, features),
                shares: (0..logits.len()).map(|class| confidence(logits, class, temperature)).collect(),
                logits: logits.to_vec(),
            };
            self.metrics.part(&model.name, &part.classification);
            if let Some(distance) = part.classification.distance {
                loaded.seen(distance);
            }
            *locked(&self.counts).entry(verdict_name(part.classification.verdict)).or_default() += 1;
            if let Some(publisher) = &self.publisher {
                publisher.publish(&part);
            }
            let mut recent = locked(&self.recent);
            recent.push_front(Recent { part: part.clone(), loaded: loaded.clone(), image: image.to_vec() });
            recent.truncate(RECENT);
            parts.push(part);
        }
        Ok(parts)
    }

    fn latency(&self, model: &Model, started: Instant) {
        self.metrics.latency(&model.name, started.elapsed().as_secs_f64());
    }

    /// What the page shows.
    fn state(&self) -> Value {
        let model = |model: &Arc<Model>| {
            let loaded = model.loaded();
            let manifest = &loaded.bundle.manifest;
            json!({
                "name": model.name,
                "version": loaded.version,
                "labels": manifest.labels,
                "good": manifest.good,
                "drift": loaded.drift(),
            })
        };
        let recent = locked(&self.recent);
        json!({
            "models": self.models.iter().map(model).collect::<Vec<_>>(),
            "counts": *locked(&self.counts),
            "parts": recent.iter().map(|recent| &recent.part).collect::<Vec<_>>(),
        })
    }

    /// What `/metrics` says.
    fn metrics(&self) -> String {
        for model in &self.models {
            self.metrics.drift(&model.name, model.loaded().drift());
        }
        self.metrics.text()
    }

    /// A recent part as the network saw it, in PNG.
    fn image(&self, number: u64) -> Option<Vec<u8>> {
        self.with_recent(number, |loaded, image, _| {
            Some(encode_values(image, loaded.bundle.manifest.input.shape()))
        })
    }

    /// Where the network looked for the label of a recent part, in PNG: grey, white where most.
    fn map(&self, number: u64) -> Option<Vec<u8>> {
        self.with_recent(number, |loaded, image, class| {
            let map = loaded.bundle.activation_map(image, class)?;
            let shape = ImageShape { channels: 1, height: map.rows, width: map.columns };
            Some(encode_values(&map.values, shape))
        })
    }

    fn with_recent<T>(
        &self,
        number: u64,
        run: impl FnOnce(&Loaded, &[f32], usize) -> Option<T>,
    ) -> Option<T> {
        let (loaded, image, class) = {
            let recent = locked(&self.recent);
            let recent = recent.iter().find(|recent| recent.part.number == number)?;
            let class = steadfast_infer::argmax(&recent.part.logits);
            (recent.loaded.clone(), recent.image.clone(), class)
        };
        run(&loaded, &image, class)
    }
}
