//! Requests, right and wrong, and bundles that are replaced under them.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use steadfast::random::Key;
use tempfile::tempdir;

use super::{Connection, Reply, Server, bundle, close, inspected};
use crate::common::{REFERENCE, briefly_trained, copy, fail, str, succeed, text};

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
