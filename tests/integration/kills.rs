//! SIGKILL, SIGINT and SIGTERM at random instants: what is gone on with ends as if nothing had happened, and nothing older
//! is lost.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use safetensors::SafeTensors;
use serde_json::Value;
use steadfast::files::sha256;
use steadfast::random::Key;
use steadfast::run::checkpoint::Checkpoint;
use tempfile::tempdir;

use crate::common::{
    REFERENCE, copy, draw_folders, files, run, send, steadfast, str, succeed, text, train_arguments,
};

/// Signals to each verb; `scripts/kill` sets more.
fn kills() -> u32 {
    std::env::var("STEADFAST_KILLS").map_or(4, |count| count.parse().expect("a number"))
}

/// Every other one kills; the others ask for an end.
const SIGNALS: [&str; 4] = ["-KILL", "-INT", "-KILL", "-TERM"];

/// What the signals to a verb hit.
#[derive(Default)]
struct Hits {
    kills: u32,
    /// Those that left a temporary file.
    temporary: u32,
    /// Times that it was gone on with until it ended.
    ended: u32,
}

/// Runs commands to their end, again and again in a new folder, killed at random instants on the way, until there were
/// `count` kills. `command` gets whether it goes on; `check` sees the folder after each kill and counts what is saved, which
/// must not fall; `compare` sees it in the end.
fn kill_and_go_on(
    name: &str,
    key: Key,
    whole: Duration,
    command: impl Fn(&Path, bool) -> Vec<String>,
    check: impl Fn(&Path) -> usize,
    compare: impl Fn(&Path),
) {
    let mut hits = Hits::default();
    let mut random = (0..).map(|index| f64::from(key.uniform(0, index)));
    while hits.kills < kills() {
        let root = tempdir().unwrap();
        let out = root.path().join("out");
        let (mut goes_on, mut saved) = (false, 0);
        loop {
            let arguments = command(&out, goes_on);
            let mut child =
                steadfast().args(&arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            let (started, after) = (Instant::now(), whole.mul_f64(random.next().unwrap()));
            let ended = loop {
                if child.try_wait().unwrap().is_some() {
                    break true;
                }
                if hits.kills < kills() && started.elapsed() >= after {
                    break false;
                }
                sleep(Duration::from_micros(500));
            };
            if ended {
                let output = child.wait_with_output().unwrap();
                assert!(has_ended(&output), "{arguments:?}: {}", text(&output.stderr));
                break;
            }
            let signal = SIGNALS[hits.kills as usize % SIGNALS.len()];
            send(&child, signal);
            let code = child.wait().unwrap().code();
            assert!(matches!(code, None | Some(0 | 1 | 130)), "{arguments:?}: {code:?} by {signal}");
            hits.kills += 1;
            hits.temporary += u32::from(files(root.path()).keys().any(|name| name.contains(".part")));
            let before = std::mem::replace(&mut saved, check(&out));
            assert!(saved >= before, "{name}: {saved} saved after {before}");
            goes_on = true;
        }
        hits.ended += 1;
        let left: Vec<_> = files(root.path()).into_keys().collect();
        let temporary =
            |name: &String| [".part", ".lock", ".old"].iter().any(|ending| name.ends_with(ending));
        assert!(!left.iter().any(temporary), "{name}: {left:?}");
        compare(&out);
    }
    eprintln!(
        "{name}: {} signals within {:.1} s, {} of them left a temporary file; {} ends compared",
        hits.kills,
        whole.as_secs_f64(),
        hits.temporary,
        hits.ended
    );
}

/// Removes what the clock and the place say.
fn timeless(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, value| !(name.contains("seconds") || name == "model" && value.is_string()));
            fields.values_mut().for_each(timeless);
        }
        Value::Array(items) => items.iter_mut().for_each(timeless),
        Value::String(inner) => {
            if let Ok(mut parsed @ (Value::Object(_) | Value::Array(_))) = serde_json::from_str(inner) {
                timeless(&mut parsed);
                *inner = parsed.to_string();
            }
        }
        _ => {}
    }
}

/// What a file says, without what the clock and the place say: JSON by its values, weights by their header and their bytes.
fn content(name: &str, bytes: &[u8]) -> String {
    let parse = |text: &str| {
        let mut value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        timeless(&mut value);
        value.to_string()
    };
    match name.rsplit('.').next() {
        Some("json") => parse(&text(bytes)),
        Some("jsonl") => text(bytes).lines().map(|line| parse(line) + "\n").collect(),
        Some("safetensors") => {
            let (size, header) = SafeTensors::read_metadata(bytes).unwrap();
            let header = parse(&serde_json::to_string(&header).unwrap());
            format!("{header}\n{}", sha256(&bytes[8 + size..]))
        }
        _ => sha256(bytes),
    }
}

fn contents(folder: &Path) -> BTreeMap<String, String> {
    files(folder).iter().map(|(name, bytes)| (name.clone(), content(name, bytes))).collect()
}

fn assert_same(one: &BTreeMap<String, String>, other: &Path) {
    let other = contents(other);
    assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
    for (name, content) in one {
        assert_eq!(content, &other[name], "{name}");
    }
}

/// The time that a command needs.
fn timed(arguments: &[String]) -> Duration {
    let started = Instant::now();
    let output = run(arguments);
    assert!(has_ended(&output), "{arguments:?}: {}", text(&output.stderr));
    started.elapsed()
}

/// With its work done; 1 is a training that collapsed too often.
fn has_ended(output: &Output) -> bool {
    matches!(output.status.code(), Some(0 | 1))
}

fn words(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|word| word.to_string()).collect()
}

/// A training that saves often, collapses and goes back.
fn train(data: &Path, out: &Path, goes_on: bool) -> Vec<String> {
    let settings = "--device cpu --method fgsm --smooth b --epsilon 48/255 --augment none --epochs 12 --batch-size 32 \
        --width 4 --val-fraction 0.4 --lr 0.05 --guard rollback --max-rollbacks 9 --good good";
    let mut arguments = train_arguments(data, out, settings);
    if goes_on && out.join("run.json").exists() {
        arguments.push("--resume".into());
    }
    arguments
}

#[test]
fn a_training_that_is_killed_ends_as_if_it_were_not() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 16, (400, 40));
    let straight = root.path().join("straight");
    let whole = timed(&train(&data, &straight, false));
    let expected = contents(&straight);
    let log = text(&fs::read(straight.join("log.jsonl")).unwrap());
    assert!(log.contains("\"rolled_back\":true"), "nothing was rolled back: {log}");
    kill_and_go_on(
        "train",
        Key::new(1),
        whole,
        |out, goes_on| train(&data, out, goes_on),
        |out| {
            // Whatever has its name is whole, and what was there stays there.
            for name in ["last", "best", "good"] {
                let path = out.join(format!("{name}.safetensors"));
                if path.exists() {
                    Checkpoint::read(&path).unwrap();
                }
            }
            let log = fs::read_to_string(out.join("log.jsonl")).unwrap_or_default();
            log.lines().inspect(|line| drop(serde_json::from_str::<Value>(line).unwrap())).count()
        },
        |out| assert_same(&expected, out),
    );
}

/// A short training without collapses, and its data.
fn trained(root: &Path) -> (PathBuf, PathBuf) {
    let data = draw_folders(&root.join("data"), 12, (160, 80));
    let out = root.join("run");
    let settings = "--method none --epochs 12 --width 8 --batch-size 16 --lr 0.1 --device cpu --good good";
    succeed(&train_arguments(&data, &out, settings));
    (data, out)
}

#[test]
fn a_sweep_that_is_killed_ends_as_if_it_were_not() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (96, 40));
    let spec = root.path().join("sweep.toml");
    let lines = "device = \"cpu\"\nwidth = 2\nbatch-size = 8\nepochs = 12\nseeds = [0, 1]\n[grid]\nsmooth = [\"none\", \"b\"]";
    let evaluate = "[evaluate]\nattack = [\"clean\", \"pgd-5\"]";
    fs::write(&spec, format!("data = {:?}\n{lines}\n{evaluate}\n", str(&data))).unwrap();
    let command = |out: &Path, _| words(&["sweep", str(&spec), "--out", str(out)]);
    let straight = root.path().join("straight");
    let whole = timed(&command(&straight, false));
    // Evaluations are named by their weights' checksum, which covers the seconds in the log; the text of the table has
    // seconds too, and the logs of jobs hold the
    // commands of every start.
    let figures = |out: &Path| {
        let mut contents = contents(out);
        let other = [".log", ".lock", ".part", ".md"];
        contents.retain(|name, _| {
            !other.iter().any(|ending| name.ends_with(ending)) && !name.contains("evaluation")
        });
        contents
    };
    let expected = figures(&straight);
    kill_and_go_on(
        "sweep",
        Key::new(2),
        whole,
        command,
        |out| figures(out).len(),
        |out| assert_eq!(figures(out), expected),
    );
}

#[test]
fn an_evaluation_that_is_killed_ends_as_if_it_were_not() {
    let root = tempdir().unwrap();
    let (data, trained) = trained(root.path());
    let straight = root.path().join("straight");
    // Progress is kept every ten seconds and after every attack: the long form is to see some of it.
    let attacks = if kills() > 4 { "clean,pgd-20,autoattack" } else { "clean,pgd-20,fgsm" };
    let command = |out: &Path, _| {
        if !out.exists() {
            copy(&trained, out);
        }
        let mut arguments = words(&["evaluate", str(out), "--data", str(&data), "--device", "cpu"]);
        arguments.extend(words(&["--attack", attacks, "--epsilon", "16/255"]));
        arguments
    };
    let whole = timed(&command(&straight, false));
    let expected = contents(&straight);
    let kept = files(&trained).len();
    kill_and_go_on(
        "evaluate",
        Key::new(3),
        whole,
        command,
        |out| {
            assert!(files(out).len() >= kept);
            files(out).keys().filter(|name| !name.ends_with(".part") && !name.ends_with(".lock")).count()
        },
        |out| assert_same(&expected, out),
    );
}

#[test]
fn an_export_that_is_killed_leaves_a_whole_bundle_or_none() {
    let root = tempdir().unwrap();
    let (_, trained) = trained(root.path());
    let straight = root.path().join("straight");
    let command = |out: &Path, _| words(&["export", str(&trained), "--out", str(out)]);
    let whole = timed(&command(&straight, false));
    let expected = contents(&straight);
    for older in [false, true] {
        let command = |out: &Path, goes_on: bool| {
            if older && !goes_on {
                copy(Path::new(REFERENCE), out);
            }
            command(out, goes_on)
        };
        kill_and_go_on(
            if older { "export over an older bundle" } else { "export" },
            Key::new(4 + u64::from(older)),
            whole,
            command,
            |out| {
                // Between two renames the older one lies beside.
                let beside = out.with_file_name("out.part.old");
                let bundle = if out.exists() || !older { out } else { &beside };
                assert!(bundle.exists() || !older);
                if bundle.exists() {
                    let images = root.path().join("data/test");
                    succeed(&["inspect", str(bundle), str(&images), "--device", "cpu"]);
                }
                0
            },
            |out| assert_same(&expected, out),
        );
    }
}

#[test]
fn an_inspection_that_is_killed_wrote_whole_lines_in_order() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (4, 600)).join("test");
    let arguments = ["inspect", REFERENCE, str(&data), "--device", "cpu"];
    let started = Instant::now();
    let expected = succeed(&arguments);
    let whole = started.elapsed();
    let mut lines = 0;
    for kill in 0..kills() {
        let mut child =
            steadfast().args(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            let mut said = String::new();
            stdout.read_to_string(&mut said).unwrap();
            said
        });
        sleep(whole.mul_f32(Key::new(6).uniform(0, kill)));
        send(&child, SIGNALS[kill as usize % SIGNALS.len()]);
        child.wait().unwrap();
        let said = reader.join().unwrap();
        assert!(expected.starts_with(&said) && (said.is_empty() || said.ends_with('\n')), "{said}");
        lines += said.lines().count();
    }
    eprintln!("inspect: {} signals, {lines} whole lines", kills());
}
