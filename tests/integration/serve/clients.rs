//! Programs of others: curl over TLS, tritonclient, mosquitto, a browser.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::tempdir;

use super::{Server, until};
use crate::common::{REFERENCE, fail, in_chromium, str, text};

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

/// Triton's own client, and KServe's.
#[test]
fn clients_of_the_protocol_work_unchanged() {
    let server = Server::start(&[REFERENCE]);
    for (module, script) in [("tritonclient.http", "triton_client.py"), ("kserve", "kserve_client.py")] {
        let there =
            Command::new("python3").args(["-c", &format!("import {module}, numpy, safetensors")]).output();
        if !there.is_ok_and(|output| output.status.success()) {
            eprintln!("not tried: Python here has no {module}");
            continue;
        }
        let mut client = Command::new("python3");
        client.args([&format!("tests/golden/{script}"), &server.address, "reference", REFERENCE]);
        let output = client.output().unwrap();
        assert!(output.status.success(), "{script}: {}{}", text(&output.stdout), text(&output.stderr));
    }
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

#[test]
fn the_page_is_used_in_a_browser() {
    let Some(mut node) = in_chromium("tests/golden/service_page.mjs") else { return };
    let root = tempdir().unwrap();
    let [token, broken] = ["token", "broken.png"].map(|name| root.path().join(name));
    fs::write(&token, "secret").unwrap();
    fs::write(&broken, "no image").unwrap();
    let server = Server::start(&[REFERENCE, "--token-file", str(&token)]);
    let picture = format!("{REFERENCE}/golden/00.png");
    node.args([&format!("http://{}", server.address), "secret", &picture]);
    node.arg(&broken).args(std::env::var("SCREENSHOTS"));
    let output = node.output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}
