//! The service: by HTTP as its clients speak it, a folder that is watched, bundles that are replaced, MQTT.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use steadfast::random::Key;
use tempfile::{TempDir, tempdir};

use crate::common::{REFERENCE, briefly_trained, copy, fail, send, steadfast, str, succeed, text};

/// A service that ends with the test.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
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

    fn ask(&self, head: &str, body: &[u8]) -> Reply {
        Connection::new(&self.address).ask(head, body)
    }

    fn get(&self, path: &str) -> Reply {
        self.ask(&format!("GET {path}"), b"")
    }

    fn post(&self, path: &str, body: &[u8]) -> Reply {
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
struct Reply {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Reply {
    fn json(&self) -> Value {
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
    fn ask(&mut self, head: &str, body: &[u8]) -> Reply {
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
fn bundle() -> (TempDir, PathBuf, PathBuf) {
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

#[test]
fn http_answers_as_inspect_does() {
    let (_root, data, bundle) = bundle();
    let expected = inspected(&bundle, &data.join("test"));
    let server = Server::start(&[str(&bundle)]);
    assert_eq!(server.get("/v2/health/live").json(), json!({"live": true}));
    assert_eq!(server.get("/v2/health/ready").json(), json!({"ready": true}));
    let metadata = server.get("/v2/models/parts").json();
    let version = metadata["versions"][0].as_str().unwrap().to_string();
    assert_eq!(metadata["inputs"][0]["shape"], json!([-1, 1, 20, 20]));
    assert_eq!(server.get(&format!("/v2/models/parts/versions/{version}/ready")).json()["ready"], true);
    for part in &expected {
        let file = fs::read(part["path"].as_str().unwrap()).unwrap();
        let seen = server.post("/v1/inspect?name=x", &file).json();
        for field in ["label", "verdict", "reason"] {
            assert_eq!(seen.get(field), part.get(field), "{seen} {part}");
        }
        assert!((seen["margin"].as_f64().unwrap() - part["margin"].as_f64().unwrap()).abs() < 1e-4);
    }
    // The same images as files in one request, as text and in binary.
    let files: Vec<Vec<u8>> =
        expected.iter().take(3).map(|part| fs::read(part["path"].as_str().unwrap()).unwrap()).collect();
    let elements: Vec<u8> =
        files.iter().flat_map(|file| [&(file.len() as u32).to_le_bytes(), &file[..]].concat()).collect();
    for binary in [false, true] {
        let request = json!({
            "id": "a",
            "inputs": [{ "name": "file", "datatype": "BYTES", "shape": [3], "parameters": { "binary_data_size": elements.len() } }],
            "outputs": [{ "name": "logits", "parameters": { "binary_data": binary } }, { "name": "label" }],
        });
        let request = request.to_string().into_bytes();
        let head = format!("POST /v2/models/parts/infer\nInference-Header-Content-Length: {}", request.len());
        let reply = server.ask(&head, &[&request[..], &elements].concat());
        let length = reply.headers.get("inference-header-content-length");
        let length = length.map_or(reply.body.len(), |length| length.parse().unwrap());
        let answer: Value = serde_json::from_slice(&reply.body[..length]).unwrap();
        assert_eq!((&answer["id"], &answer["model_version"]), (&json!("a"), &json!(version)));
        let logits: Vec<f64> = match binary {
            true => {
                assert_eq!(answer["outputs"][0]["parameters"]["binary_data_size"], reply.body.len() - length);
                let values = reply.body[length..].chunks_exact(4);
                values.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into()).collect()
            }
            false => serde_json::from_value(answer["outputs"][0]["data"].clone()).unwrap(),
        };
        for (seen, part) in logits.chunks(logits.len() / 3).zip(&expected) {
            close(&json!(seen), &part["logits"]);
        }
        assert_eq!(answer["outputs"][1]["data"][2], expected[2]["label"]);
    }
    // The golden inputs as floats.
    let golden = fs::read(bundle.join("golden.safetensors")).unwrap();
    let golden = safetensors::SafeTensors::deserialize(&golden).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        let values = golden.tensor(name).unwrap();
        values.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    let request = json!({
        "inputs": [{ "name": "image", "datatype": "FP32", "shape": [16, 1, 20, 20], "data": floats("inputs") }],
    });
    // Twice: drift is said of 50 parts.
    server.post("/v2/models/parts/infer", request.to_string().as_bytes());
    let answer = server.post("/v2/models/parts/infer", request.to_string().as_bytes()).json();
    close(&answer["outputs"][0]["data"], &json!(floats("logits")));

    let metrics = text(&server.get("/metrics").body);
    let count: f64 = metrics
        .lines()
        .filter(|line| line.starts_with("steadfast_parts_total"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    assert_eq!(count, expected.len() as f64 + 6.0 + 32.0, "{metrics}");
    assert!(metrics.contains("steadfast_drift{") && metrics.ends_with("# EOF\n"), "{metrics}");
    let state = server.get("/v1/state").json();
    let number = &state["parts"][0]["number"];
    for kind in ["image", "map"] {
        let picture = server.get(&format!("/v1/parts/{number}/{kind}"));
        assert!(picture.status == 200 && picture.body.starts_with(b"\x89PNG"), "{kind}");
    }
    assert!(text(&server.get("/").body).contains("<title>Steadfast</title>"));
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn wrong_requests_are_answered_with_the_reason() {
    let server = Server::start(&[REFERENCE, "--max-body", "1"]);
    let refused = |reply: Reply, status: u16, said: &str| {
        assert_eq!(reply.status, status, "{said}: {}", text(&reply.body));
        assert!(text(&reply.body).contains(said), "{said}: {}", text(&reply.body));
    };
    refused(server.post("/v1/inspect", b"no image"), 422, "not a PNG");
    refused(server.post("/v1/inspect?model=other", b""), 404, "no model other is served here: reference");
    refused(server.get("/v2/models/reference/versions/1"), 404, "reference is of version ");
    refused(server.get("/elsewhere"), 404, "nothing at this address");
    refused(server.post("/v1/inspect", &vec![0; 2 << 20]), 413, "");
    let infer = |request: Value| server.post("/v2/models/reference/infer", request.to_string().as_bytes());
    refused(infer(json!({})), 400, "missing field `inputs`");
    refused(infer(json!({"inputs": []})), 400, "0 inputs; one is wanted");
    let input = |name: &str, datatype: &str, shape: Value, data: Value| {
        infer(json!({"inputs": [{"name": name, "datatype": datatype, "shape": shape, "data": data}]}))
    };
    refused(input("pixels", "FP32", json!([1]), json!([])), 400, "pixels of FP32 is no input");
    refused(input("image", "FP32", json!([1, 2]), json!([])), 400, "its shape is [1, 2]");
    let metadata = server.get("/v2/models/reference").json();
    let mut shape = metadata["inputs"][0]["shape"].clone();
    shape[0] = json!(1);
    let len: u64 = shape.as_array().unwrap().iter().map(|side| side.as_u64().unwrap()).product();
    let values = |value: Value| json!(vec![value; len as usize]);
    refused(input("image", "FP32", shape.clone(), values(json!(2))), 400, "2 is not within 0 and 1");
    refused(input("image", "FP32", shape.clone(), json!([[0, "a"]])), 400, "is no number");
    refused(input("image", "FP32", shape.clone(), json!([0])), 400, "1 values for the shape");
    shape[0] = json!(u64::MAX);
    refused(input("image", "FP32", shape, values(json!(0))), 400, "with n of 1 to 256");
    let head = "POST /v2/models/reference/infer\nInference-Header-Content-Length: 99";
    refused(server.ask(head, b"{}"), 400, "no length within the request");
    assert!(text(&server.get("/metrics").body).contains("steadfast_unreadable_total{model=\"reference\"} 1"));

    let root = tempdir().unwrap();
    let token = root.path().join("token");
    fs::write(&token, "secret\n").unwrap();
    let guarded = Server::start(&[REFERENCE, "--token-file", str(&token)]);
    refused(guarded.get("/metrics"), 401, "Bearer TOKEN");
    refused(guarded.ask("GET /metrics\nAuthorization: Bearer secre", b""), 401, "Bearer TOKEN");
    assert_eq!(guarded.ask("GET /metrics\nAuthorization: Bearer secret", b"").status, 200);
    assert_eq!(guarded.get("/v2/health/ready").status, 200);
    drop(guarded);

    let open = fail(&["serve", REFERENCE, "--listen", "0.0.0.0:0", "--device", "cpu"]);
    assert!(open.contains("other machines can reach it, so --token-file is needed"), "{open}");
    let taken = fail(&["serve", REFERENCE, "--listen", &server.address, "--device", "cpu"]);
    assert!(taken.contains("in use"), "{taken}");
    let twice = fail(&["serve", REFERENCE, REFERENCE, "--device", "cpu"]);
    assert!(twice.contains("two bundles are called reference"), "{twice}");
    let mqtt = fail(&[
        "serve",
        REFERENCE,
        "--mqtt",
        "http://x",
        "--topic",
        "a",
        "--listen",
        "127.0.0.1:0",
        "--device",
        "cpu",
    ]);
    assert!(mqtt.contains("an address looks like mqtt://HOST:1883"), "{mqtt}");
}

/// Requests that nobody would send: the service answers or closes the connection, and answers the next one.
#[test]
fn broken_requests_break_nothing() {
    let server = Server::start(&[REFERENCE]);
    let image = fs::read(Path::new(REFERENCE).join("golden/00.png")).unwrap();
    let infer = json!({"inputs": [{"name": "file", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 4 + image.len()}}]});
    let request = |path: &str, headers: &str, body: &[u8]| {
        [
            format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n{headers}\r\n", body.len())
                .into_bytes(),
            body.to_vec(),
        ]
        .concat()
    };
    let (json, length) = (infer.to_string().into_bytes(), (image.len() as u32).to_le_bytes());
    let binary = [&json[..], &length, &image].concat();
    let header = format!("Inference-Header-Content-Length: {}\r\n", json.len());
    let whole = [
        request("/v1/inspect?name=a", "", &image),
        request("/v2/models/reference/infer", &header, &binary),
        b"GET /v2/models/reference HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        b"GET /v1/parts/1/map HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        b"GET /v1/state HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
    ];
    let count = std::env::var("STEADFAST_BROKEN_REQUESTS").map_or(600, |count| count.parse().unwrap());
    let key = Key::new(9);
    let started = Instant::now();
    for number in 0..count {
        let draw = |i: u32, below: usize| (key.child(number, i).words(0, 0)[0] as usize) % below;
        let mut bytes = whole[draw(0, whole.len())].clone();
        for change in 0..=draw(1, 4) as u32 {
            let (at, value) = (draw(2 + 4 * change, bytes.len()), draw(3 + 4 * change, 256) as u8);
            match draw(4 + 4 * change, 4) {
                0 => bytes[at] = value,
                1 => _ = bytes.remove(at),
                2 => bytes.insert(at, value),
                _ => bytes.truncate(at.max(1)),
            }
            if bytes.is_empty() {
                bytes.push(value);
            }
        }
        let mut connection = Connection::new(&server.address);
        let _ = connection.0.get_mut().write_all(&bytes);
        let _ = connection.0.get_mut().shutdown(std::net::Shutdown::Write);
        let _ = connection.reply();
        if number % 100 == 99 {
            assert_eq!(server.post("/v1/inspect", &image).status, 200, "after request {number}");
        }
    }
    eprintln!("{count} broken requests in {:.1} s", started.elapsed().as_secs_f64());
    assert_eq!(server.terminate(), Some(0));
}

/// A bundle is replaced under load: every request is answered; a damaged one is refused, and the old one goes on.
#[test]
fn bundles_are_replaced_without_losing_a_request() {
    let (root, data, bundle) = bundle();
    let image = fs::read(inspected(&bundle, &data.join("test"))[0]["path"].as_str().unwrap()).unwrap();
    let server = Server::start(&[str(&bundle)]);
    let version = || server.get("/v2/models/parts").json()["versions"][0].clone();
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut connection = Connection::new(&server.address);
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(connection.ask("POST /v1/inspect", &image).status, 200);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let wait = |what: &dyn Fn() -> bool| {
            let started = Instant::now();
            while !what() {
                assert!(started.elapsed() < Duration::from_secs(60));
                std::thread::sleep(Duration::from_millis(50));
            }
        };
        let old = version();
        // Another bundle of other weights takes its place, as `export` puts it there.
        let other = briefly_trained(root.path(), "--seed 1");
        succeed(&["export", str(&other), "--out", str(&bundle)]);
        wait(&|| version() != old);
        let new = version();
        fs::write(bundle.join("model.safetensors"), b"damaged").unwrap();
        fs::write(bundle.join("SHA256SUMS"), b"").unwrap();
        let refused = || text(&server.get("/metrics").body).contains("outcome=\"refused\"} 1");
        wait(&refused);
        assert_eq!(version(), new);
        stop.store(true, Ordering::Relaxed);
    });
    assert!(answered.load(Ordering::Relaxed) > 20);
}

/// What the results of a folder say: of every path how often it is there.
fn lines(results: &Path) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for line in fs::read_to_string(results).unwrap_or_default().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let path = Path::new(line["path"].as_str().unwrap()).file_name().unwrap().to_str().unwrap();
        *counts.entry(path.to_string()).or_default() += 1;
    }
    counts
}

fn until(what: impl Fn() -> bool) {
    let started = Instant::now();
    while !what() {
        assert!(started.elapsed() < Duration::from_secs(60), "it does not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Killed and started again, with files that come meanwhile: every part has one line, and lies where it belongs.
#[test]
fn every_part_of_a_folder_is_inspected_once() {
    let (root, data, bundle) = bundle();
    let of = |name: &str| root.path().join(name);
    let (folder, results, sorted) = (of("camera"), of("results.jsonl"), of("sorted"));
    fs::create_dir_all(folder.join("line 2")).unwrap();
    let parts: Vec<Value> = inspected(&bundle, &data.join("test"));
    let file = |number: usize| PathBuf::from(parts[number % parts.len()]["path"].as_str().unwrap());
    let mut names = Vec::new();
    let mut put = |number: usize| {
        let name = format!("{number:03}.png");
        let hidden = folder.join(format!(".{name}.tmp"));
        fs::copy(file(number), &hidden).unwrap();
        fs::rename(
            hidden,
            folder.join(if number.is_multiple_of(3) { format!("line 2/{name}") } else { name.clone() }),
        )
        .unwrap();
        names.push(name);
    };
    (0..10).for_each(&mut put);
    let arguments =
        [str(&bundle), "--watch", str(&folder), "--results", str(&results), "--move-to", str(&sorted)];
    let mut next = 10;
    for _ in 0..4 {
        let mut server = Server::start(&arguments);
        for _ in 0..8 {
            put(next);
            next += 1;
        }
        // In the middle of it.
        std::thread::sleep(Duration::from_millis(30));
        server.child.kill().unwrap();
        server.child.wait().unwrap();
    }
    // A line that was cut off.
    fs::OpenOptions::new().append(true).open(&results).unwrap().write_all(b"{\"path\": \"cut").unwrap();
    let server = Server::start(&arguments);
    (next..next + 5).for_each(&mut put);
    // A slow writer, and something that is no image.
    let slow = folder.join("slow.png");
    let bytes = fs::read(file(0)).unwrap();
    let mut writer = fs::File::create(&slow).unwrap();
    for piece in bytes.chunks(bytes.len() / 3 + 1) {
        writer.write_all(piece).unwrap();
        writer.flush().unwrap();
        std::thread::sleep(Duration::from_millis(150));
    }
    drop(writer);
    fs::write(folder.join("notes.txt"), b"no image").unwrap();
    fs::write(folder.join("broken.png"), b"no image").unwrap();
    names.extend(["slow.png".to_string(), "broken.png".to_string()]);
    let there = || -> Vec<PathBuf> {
        let mut found = Vec::new();
        for place in fs::read_dir(&sorted).into_iter().flatten().flatten() {
            found.extend(fs::read_dir(place.path()).unwrap().flatten().map(|entry| entry.path()));
        }
        found
    };
    until(|| there().len() == names.len());
    assert_eq!(server.terminate(), Some(0));
    let written = fs::read_to_string(&results).unwrap();
    let whole: String =
        written.lines().filter(|line| line.ends_with('}')).map(|line| format!("{line}\n")).collect();
    fs::write(&results, whole).unwrap();
    let counted = lines(&results);
    names.sort();
    assert_eq!(counted.keys().cloned().collect::<Vec<_>>(), names);
    assert!(counted.values().all(|&count| count == 1), "{counted:?}");
    for path in there() {
        let name = path.file_name().unwrap().to_str().unwrap();
        let place = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
        let expected = match name {
            "broken.png" => "unreadable",
            "slow.png" => parts[0]["verdict"].as_str().unwrap(),
            _ => parts[name[..3].parse::<usize>().unwrap() % parts.len()]["verdict"].as_str().unwrap(),
        };
        assert_eq!(place, expected, "{name}");
    }
    assert!(folder.join("notes.txt").exists());
}

/// Without events, and without moving: a file that comes again under its name is another part.
#[test]
fn a_folder_can_be_polled() {
    let root = tempdir().unwrap();
    let of = |name: &str| root.path().join(name);
    let (folder, results) = (of("camera"), of("results"));
    fs::create_dir_all(&folder).unwrap();
    let golden = |number: usize| Path::new(REFERENCE).join(format!("golden/{number:02}.png"));
    fs::copy(golden(0), folder.join("part.png")).unwrap();
    let arguments = [REFERENCE, "--watch", str(&folder), "--results", str(&results), "--poll", "0.1"];
    let count = || -> usize {
        let files = fs::read_dir(&results).into_iter().flatten().flatten();
        files.map(|file| lines(&file.path()).values().sum::<usize>()).sum()
    };
    let server = Server::start(&arguments);
    until(|| count() == 1);
    fs::copy(golden(1), folder.join("part.png")).unwrap();
    until(|| count() == 2);
    drop(server);
    let server = Server::start(&arguments);
    fs::copy(golden(2), folder.join("other.png")).unwrap();
    until(|| count() == 3);
    assert_eq!(server.terminate(), Some(0));
    assert_eq!(count(), 3, "what was inspected before is not inspected again");
    let inside = folder.join("results.jsonl");
    let error = fail(&[
        "serve",
        REFERENCE,
        "--watch",
        str(&folder),
        "--results",
        str(&inside),
        "--listen",
        "127.0.0.1:0",
        "--device",
        "cpu",
    ]);
    assert!(error.contains("lies in the folder that is watched"), "{error}");
}

fn is_there(program: &str) -> bool {
    Command::new(program).arg("--help").output().is_ok()
}

/// By curl over TLS, with a certificate of openssl's.
#[test]
fn tls_is_spoken() {
    if !is_there("openssl") || !is_there("curl") {
        eprintln!("not tried, for want of openssl and curl");
        return;
    }
    let root = tempdir().unwrap();
    let [key, certificate] = ["key.pem", "cert.pem"].map(|name| root.path().join(name));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
        .args(["-keyout", str(&key), "-out", str(&certificate)])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", text(&made.stderr));
    let server = Server::start(&[REFERENCE, "--tls-cert", str(&certificate), "--tls-key", str(&key)]);
    let image = format!("@{REFERENCE}/golden/00.png");
    let url = format!("https://{}/v1/inspect", server.address);
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--cacert", str(&certificate), "--data-binary", &image, &url])
        .output()
        .unwrap();
    assert!(text(&output.stdout).contains("\"verdict\""), "{}{}", text(&output.stdout), text(&output.stderr));
    let wrong = fail(&[
        "serve",
        REFERENCE,
        "--tls-cert",
        str(&key),
        "--tls-key",
        str(&key),
        "--listen",
        "127.0.0.1:0",
        "--device",
        "cpu",
    ]);
    assert!(wrong.contains("holds no certificate in PEM"), "{wrong}");
}

/// Triton's own client.
#[test]
fn tritonclient_works_unchanged() {
    let there = Command::new("python3").args(["-c", "import tritonclient.http, numpy"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        eprintln!("not tried: Python here has no tritonclient");
        return;
    }
    let server = Server::start(&[REFERENCE]);
    let mut client = Command::new("python3");
    client.args(["tests/golden/triton_client.py", &server.address, "reference", REFERENCE]);
    let output = client.output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

/// By a real broker.
#[test]
fn parts_are_published_by_mqtt() {
    if !is_there("mosquitto") || !is_there("mosquitto_sub") {
        eprintln!("not tried, for want of mosquitto");
        return;
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let mut broker = Command::new("mosquitto").args(["-p", &port]).stderr(Stdio::null()).spawn().unwrap();
    let url = format!("mqtt://127.0.0.1:{port}");
    until(|| TcpStream::connect(format!("127.0.0.1:{port}")).is_ok());
    let listen = |topic: &str, count: &str| {
        let mut command = Command::new("mosquitto_sub");
        command.args(["-p", &port, "-t", topic, "-C", count, "-W", "60", "-q", "1"]);
        command.stdout(Stdio::piped()).spawn().unwrap()
    };
    let parts = listen("line1/parts", "2");
    let server = Server::start(&[REFERENCE, "--mqtt", &url, "--topic", "line1"]);
    assert_eq!(text(&listen("line1/state", "1").wait_with_output().unwrap().stdout).trim(), "online");
    for number in 0..2 {
        let image = fs::read(Path::new(REFERENCE).join(format!("golden/{number:02}.png"))).unwrap();
        assert_eq!(server.post(&format!("/v1/inspect?name=part{number}"), &image).status, 200);
    }
    let said = text(&parts.wait_with_output().unwrap().stdout);
    let paths: Vec<Value> =
        said.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["path"].clone()).collect();
    assert_eq!(paths, ["part0", "part1"]);
    assert_eq!(server.terminate(), Some(0));
    assert_eq!(text(&listen("line1/state", "1").wait_with_output().unwrap().stdout).trim(), "offline");
    broker.kill().unwrap();
    broker.wait().unwrap();
}

/// More requests than may wait: 503, and when to try again.
#[test]
fn a_full_queue_is_said() {
    let root = tempdir().unwrap();
    let bundle = root.path().join("parts");
    copy(Path::new(REFERENCE), &bundle);
    let server = Server::start(&[str(&bundle), "--queue", "1"]);
    let image = fs::read(Path::new(REFERENCE).join("golden/00.png")).unwrap();
    let busy = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut connection = Connection::new(&server.address);
                for _ in 0..200 {
                    let reply = connection.ask("POST /v1/inspect", &image);
                    match reply.status {
                        200 => {}
                        503 => {
                            assert_eq!(reply.headers["retry-after"], "1");
                            busy.fetch_add(1, Ordering::Relaxed);
                        }
                        status => panic!("{status}"),
                    }
                }
            });
        }
    });
    let busy = busy.load(Ordering::Relaxed);
    assert!(busy > 0 && busy < 1600, "{busy}");
    let metrics = text(&server.get("/metrics").body);
    assert!(metrics.contains(&format!("steadfast_busy_total{{model=\"parts\"}} {busy}")), "{metrics}");
}

/// The policy decides the exit code; drift is that of unlabelled parts, and a limit on what cannot be measured is refused.
#[test]
fn a_policy_is_checked_on_recent_parts() {
    let (root, data, bundle) = bundle();
    let [policy, history] = ["policy.toml", "history.jsonl"].map(|name| root.path().join(name));
    let check = |policy_text: &str, more: &[&str]| {
        fs::write(&policy, policy_text).unwrap();
        let arguments = ["check", str(&bundle), "--policy", str(&policy), "--device", "cpu", "--json"];
        let output = crate::common::run(&[&arguments[..], more].concat());
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let labelled = ["--data", str(&data), "--limit", "20", "--history", str(&history)];
    let (code, said, _) = check("min_accuracy = 0.0\nmax_escape_rate = 1.0", &labelled);
    assert_eq!(code, Some(0), "{said}");
    let document: Value = serde_json::from_str(&said).unwrap();
    let value = |document: &Value, quantity: &str| -> f64 {
        let checked = document["checked"].as_array().unwrap();
        let found = checked.iter().find(|checked| checked["quantity"] == quantity);
        found.unwrap_or_else(|| panic!("{quantity}: {document}"))["value"].as_f64().unwrap()
    };
    assert!(value(&document, "robust_accuracy") <= value(&document, "accuracy"));
    assert!(value(&document, "escape_rate") <= value(&document, "attacked_escape_rate"));
    assert!(value(&document, "drift_p_value") > 1e-4, "parts of the same process: {document}");
    let (code, said, _) = check("min_accuracy = 1.0\nmin_robust_accuracy = 1.0", &labelled);
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(fs::read_to_string(&history).unwrap().lines().count(), 2);

    // Other parts: white noise in a folder.
    let foreign = root.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    for number in 0..30_u32 {
        let noise = image::GrayImage::from_fn(20, 20, |x, y| {
            image::Luma([Key::new(number.into()).words(x, y)[0] as u8])
        });
        crate::common::save(&foreign.join(format!("{number}.png")), noise, image::ImageFormat::Png);
    }
    let (code, said, _) = check("max_drift = 0.5", &["--unlabelled", str(&foreign)]);
    let document: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, value(&document, "foreign_rate")), (Some(1), 1.0), "{document}");
    assert!(value(&document, "drift") > 0.9 && value(&document, "drift_p_value") < 1e-6, "{document}");

    let refused = |policy_text: &str, more: &[&str], expected: &str| {
        let (code, _, said) = check(policy_text, more);
        assert!(code == Some(2) && said.contains(expected), "{said}");
    };
    refused("max_escape_rate = 0.1", &["--unlabelled", str(&foreign)], "max_escape_rate cannot be judged");
    refused("max_escapes = 0.1", &labelled, "unknown field `max_escapes`");
    refused("max_drift = 2", &labelled, "max_drift = 2: must be between 0 and 1");
}

/// In headless Chromium, where Node.js has playwright-core (`scripts/web --test` puts it there).
#[test]
fn the_page_is_used_in_a_browser() {
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".to_string());
    let modules = Path::new(&target).join("web-node/node_modules");
    let chromium = std::env::var("CHROMIUM").unwrap_or_else(|_| "/usr/bin/chromium".to_string());
    if !modules.join("playwright-core").is_dir() || !Path::new(&chromium).exists() {
        eprintln!("not tried: no Chromium, or no playwright-core in {}", modules.display());
        return;
    }
    let root = tempdir().unwrap();
    let [token, broken] = ["token", "broken.png"].map(|name| root.path().join(name));
    fs::write(&token, "secret").unwrap();
    fs::write(&broken, "no image").unwrap();
    let server = Server::start(&[REFERENCE, "--token-file", str(&token)]);
    let picture = format!("{REFERENCE}/golden/00.png");
    let mut node = Command::new("node");
    node.env("NODE_PATH", std::path::absolute(&modules).unwrap()).env("CHROMIUM", &chromium);
    node.args(["tests/golden/service_page.mjs", &format!("http://{}", server.address), "secret", &picture]);
    node.arg(&broken).args(std::env::var("SCREENSHOTS"));
    let output = node.output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}
