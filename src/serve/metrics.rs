//! What `/metrics` says, in the format of OpenMetrics.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets, linear_buckets};
use prometheus_client::registry::Registry;
use steadfast_infer::Classification;

use super::verdict_name;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Of {
    model: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PartOf {
    model: String,
    verdict: String,
    label: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Version {
    model: String,
    version: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    model: String,
    outcome: String,
}

type Histograms = Family<Of, Histogram>;
type Gauges = Family<Of, Gauge<f64, AtomicU64>>;

/// All of them.
pub struct Metrics {
    registry: Registry,
    parts: Family<PartOf, Counter>,
    unreadable: Family<Of, Counter>,
    busy: Family<Of, Counter>,
    latency: Histograms,
    confidence: Histograms,
    margin: Histograms,
    distance: Histograms,
    version: Family<Version, Gauge>,
    reloads: Family<Outcome, Counter>,
    drift: Gauges,
}

fn latencies() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 14))
}

fn shares() -> Histogram {
    Histogram::new(linear_buckets(0.1, 0.1, 10))
}

fn margins() -> Histogram {
    Histogram::new(linear_buckets(-10.0, 1.0, 21))
}

fn distances() -> Histogram {
    Histogram::new(linear_buckets(0.1, 0.1, 20))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("steadfast");
        let metrics = Self {
            parts: Family::default(),
            unreadable: Family::default(),
            busy: Family::default(),
            latency: Family::new_with_constructor(latencies),
            confidence: Family::new_with_constructor(shares),
            margin: Family::new_with_constructor(margins),
            distance: Family::new_with_constructor(distances),
            version: Family::default(),
            reloads: Family::default(),
            drift: Family::default(),
            registry: Registry::default(),
        };
        let Self { parts, unreadable, busy, latency, confidence, margin, distance, .. } = &metrics;
        registry.register("parts", "Parts classified, by verdict and label", parts.clone());
        registry.register("unreadable", "Images that could not be read", unreadable.clone());
        registry.register("busy", "Requests refused because the queue was full", busy.clone());
        registry.register("latency_seconds", "From a request to its answer", latency.clone());
        registry.register("confidence", "Confidence in the label", confidence.clone());
        registry.register("margin", "Best good logit less best defect logit", margin.clone());
        registry.register(
            "distance",
            "Distance from the training data; out of distribution beyond 1",
            distance.clone(),
        );
        registry.register("bundle", "The bundle that answers", metrics.version.clone());
        registry.register("reloads", "Bundles found on the disk, taken or refused", metrics.reloads.clone());
        registry.register(
            "drift",
            "Kolmogorov-Smirnov distance of the last 500 parts from the validation part, 0 to 1",
            metrics.drift.clone(),
        );
        Self { registry, ..metrics }
    }
}

impl Metrics {
    /// One part.
    pub fn part(&self, model: &str, part: &Classification) {
        let of = Of { model: model.to_string() };
        self.parts
            .get_or_create(&PartOf {
                model: model.to_string(),
                verdict: verdict_name(part.verdict).to_string(),
                label: part.label.clone(),
            })
            .inc();
        self.confidence.get_or_create(&of).observe(part.confidence.into());
        if let Some(margin) = part.margin {
            self.margin.get_or_create(&of).observe(margin.into());
        }
        if let Some(distance) = part.distance {
            self.distance.get_or_create(&of).observe(distance.into());
        }
    }

    /// The time of a request.
    pub fn latency(&self, model: &str, seconds: f64) {
        self.latency.get_or_create(&Of { model: model.to_string() }).observe(seconds);
    }

    /// An image that could not be read.
    pub fn unreadable(&self, model: &str) {
        self.unreadable.get_or_create(&Of { model: model.to_string() }).inc();
    }

    /// A request that found the queue full.
    pub fn busy(&self, model: &str) {
        self.busy.get_or_create(&Of { model: model.to_string() }).inc();
    }

    /// The bundle that answers now.
    pub fn version(&self, model: &str, version: &str, before: Option<&str>) {
        let of = |version: &str| Version { model: model.to_string(), version: version.to_string() };
        if let Some(before) = before {
            self.version.remove(&of(before));
        }
        self.version.get_or_create(&of(version)).set(1);
    }

    /// A bundle that was found on the disk.
    pub fn reload(&self, model: &str, outcome: &str) {
        let outcome = Outcome { model: model.to_string(), outcome: outcome.to_string() };
        self.reloads.get_or_create(&outcome).inc();
    }

    /// How far the last parts of a model are from the validation part, where that is known.
    pub fn drift(&self, model: &str, drift: Option<f64>) {
        let of = Of { model: model.to_string() };
        match drift {
            Some(drift) => _ = self.drift.get_or_create(&of).set(drift),
            None => _ = self.drift.remove(&of),
        }
    }

    /// The text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
