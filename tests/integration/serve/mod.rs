//! The service: by HTTP as its clients speak it, a folder that is watched, bundles that are replaced, MQTT.

mod clients;
mod http;
mod watch;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::common::{briefly_trained, send, steadfast, str, succeed, text};

/// A service that ends with the test.
pub struct Server {
    child: Child,
    address: String,
}

impl Server {
    pub fn start(arguments: &[&str]) -> Self {
        let mut command = steadfast();
        command.arg("serve").args(arguments).args(["--listen", "127.0.0.1:0", "--device", "cpu"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Some(address) = line.trim().rsplit_once("//").map(|(_, address)| address.to_string()) else {
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            panic!("it did not start: {said}");
        };
        Self { child, address }
    }

    pub fn ask(&self, head: &str, body: &[u8]) -> Reply {
        Connection::new(&self.address).ask(head, body)
    }

    pub fn get(&self, path: &str) -> Reply {
        self.ask(&format!("GET {path}"), b"")
    }

    pub fn post(&self, path: &str, body: &[u8]) -> Reply {
        self.ask(&format!("POST {path}"), body)
    }

    /// Ends it as a supervisor does; the exit code.
    fn terminate(mut self) -> Option<i32> {
        send(&self.child, "-TERM");
        self.child.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Connection(BufReader<TcpStream>);

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{}", text(&self.body)))
    }
}

impl Connection {
    fn new(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self(BufReader::new(stream))
    }

    /// Asks by a head such as `POST /path` with more lines below it.
    pub fn ask(&mut self, head: &str, body: &[u8]) -> Reply {
        let (first, more) = head.split_once('\n').unwrap_or((head, ""));
        let more: String = more.lines().map(|line| format!("{line}\r\n")).collect();
        let head = format!("{first} HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n{more}\r\n", body.len());
        // A request that is refused by its head may be answered before its body has left.
        let _ = self.0.get_mut().write_all(&[head.as_bytes(), body].concat());
        self.reply().unwrap()
    }

    fn reply(&mut self) -> Option<Reply> {
        let mut line = String::new();
        self.0.read_line(&mut line).ok().filter(|&count| count > 0)?;
        let status = line.split(' ').nth(1)?.parse().ok()?;
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.insert(name.to_lowercase(), value.to_string());
        }
        let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).ok()?;
        Some(Reply { status, headers, body })
    }
}

/// A bundle with everything, the data it was made of, and its folder.
pub fn bundle() -> (TempDir, PathBuf, PathBuf) {
    let root = tempdir().unwrap();
    let run = briefly_trained(root.path(), "");
    let (data, bundle) = (root.path().join("data"), root.path().join("parts"));
    let export = ["export", str(&run), "--out", str(&bundle), "--data", str(&data)];
    succeed(&[&export[..], &["--max-escape-rate", "0.2", "--max-unclear-rate", "0.3"]].concat());
    (root, data, bundle)
}

fn inspected(bundle: &Path, images: &Path) -> Vec<Value> {
    let lines = succeed(&["inspect", str(bundle), str(images), "--device", "cpu", "--json", "--logits"]);
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn close(seen: &Value, expected: &Value) {
    let values = |value: &Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
    };
    let (seen, expected) = (values(seen), values(expected));
    assert_eq!(seen.len(), expected.len());
    assert!(seen.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4), "{seen:?} {expected:?}");
}

pub fn until(what: impl Fn() -> bool) {
    let started = Instant::now();
    while !what() {
        assert!(started.elapsed() < Duration::from_secs(60), "it does not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}
