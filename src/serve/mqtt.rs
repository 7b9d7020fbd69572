//! Results for PLCs and other listeners by MQTT: JSON on `TOPIC/parts`, and `online` or `offline`, retained, on `TOPIC/state`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rumqttc::{AsyncClient, Event, LastWill, MqttOptions, Outgoing, Packet, QoS};

use super::Part;
use crate::bail;
use crate::error::Result;
use crate::observer;

/// Messages that wait while the broker is away; more are dropped, for the results file has all of them.
const WAITING: usize = 1024;
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Between two tries to reach the broker.
const RETRY: Duration = Duration::from_secs(2);
/// Within which what waits has to leave when the service stops.
const FINISH: Duration = Duration::from_secs(3);

/// Where results are published.
#[derive(Debug, Clone)]
pub struct Broker {
    /// `mqtt://HOST:PORT`.
    pub url: String,
    /// What topics begin with.
    pub topic: String,
    /// User and password.
    pub credentials: Option<(String, String)>,
}

/// Publishes parts.
pub struct Publisher {
    client: AsyncClient,
    topic: String,
    /// Whether somebody was told that messages are dropped.
    said: AtomicBool,
    left: Arc<AtomicBool>,
}

impl Publisher {
    /// Begins to connect; goes on trying for as long as it takes.
    ///
    /// # Errors
    /// The address is none.
    pub fn start(broker: Broker) -> Result<Self> {
        let Broker { url, topic, credentials } = broker;
        let address = url.strip_prefix("mqtt://").map(|rest| rest.trim_end_matches('/'));
        let parsed = address.and_then(|address| match address.rsplit_once(':') {
            Some((host, port)) => Some((host, port.parse().ok()?)),
            None => Some((address, 1883)),
        });
        let Some((host, port)) = parsed.filter(|(host, _)| !host.is_empty()) else {
            bail!("--mqtt {url}: an address looks like mqtt://HOST:1883");
        };
        if topic.is_empty() || topic.contains(['#', '+']) {
            bail!("--topic {topic}: a topic to publish on has no # or +");
        }
        let mut options = MqttOptions::new(format!("steadfast-{}", std::process::id()), host, port);
        options.set_keep_alive(KEEP_ALIVE);
        options.set_last_will(LastWill::new(state(&topic), "offline", QoS::AtLeastOnce, true));
        if let Some((user, password)) = credentials {
            options.set_credentials(user, password);
        }
        let (client, mut events) = AsyncClient::new(options, WAITING);
        let (to, left, gone) = (client.clone(), Arc::new(AtomicBool::new(false)), topic.clone());
        let seen = left.clone();
        tokio::spawn(async move {
            let mut failing = false;
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        failing = false;
                        observer::warn(format!("--mqtt {url}: connected"));
                        let _ = to.try_publish(state(&gone), QoS::AtLeastOnce, true, "online");
                    }
                    Ok(Event::Outgoing(Outgoing::Disconnect)) => {
                        seen.store(true, Ordering::Relaxed);
                        return;
                    }
                    Ok(_) => {}
                    Err(error) => {
                        if !failing {
                            observer::warn(format!("--mqtt {url}: {error}; trying again"));
                        }
                        failing = true;
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        });
        Ok(Self { client, topic, said: AtomicBool::new(false), left })
    }

    /// Publishes a part.
    pub fn publish(&self, part: &Part) {
        let text = serde_json::to_string(part).unwrap_or_default();
        let sent = self.client.try_publish(format!("{}/parts", self.topic), QoS::AtLeastOnce, false, text);
        if sent.is_err() && !self.said.swap(true, Ordering::Relaxed) {
            observer::warn(
                "--mqtt: the broker does not take as much; some parts are not published".to_string(),
            );
        }
    }

    /// Says that nobody is here any more, after everything that waits.
    pub async fn finish(&self) {
        let _ = self.client.try_publish(state(&self.topic), QoS::AtLeastOnce, true, "offline");
        let _ = self.client.try_disconnect();
        let leave = async {
            while !self.left.load(Ordering::Relaxed) {
                tokio::time::sleep(RETRY / 100).await;
            }
        };
        let _ = tokio::time::timeout(FINISH, leave).await;
    }
}

fn state(topic: &str) -> String {
    format!("{topic}/state")
}
