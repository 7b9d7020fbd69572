//! The crate and the C library that `export --format embedded` writes: they give the answers of `inspect`, on this machine and
//! on emulated boards, where their compilers and emulators are installed.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::tempdir;

use crate::common::{briefly_trained, copy, frames, str, succeed, text};

/// One line of a program: verdict, label, logits.
#[derive(Debug, Clone, PartialEq)]
struct Answer {
    said: String,
    label: String,
    logits: Vec<f32>,
}

fn answers(printed: &str) -> Vec<Answer> {
    let mut lines = printed.lines();
    assert_eq!(lines.next(), Some("the self-test passed"), "{printed}");
    let answer = |line: &str| {
        let mut words = line.split(' ').map(str::to_string);
        Answer {
            said: words.next().unwrap(),
            label: words.next().unwrap(),
            logits: words.map(|word| word.parse().unwrap()).collect(),
        }
    };
    lines.map(answer).collect()
}

/// What `inspect` says of the same frames.
fn expected(bundle: &Path, pictures: &Path) -> Vec<Answer> {
    let said = succeed(&["inspect", str(bundle), str(pictures), "--device", "cpu", "--json", "--logits"]);
    let answer = |line: &str| {
        let json: serde_json::Value = serde_json::from_str(line).unwrap();
        let said = match json["verdict"].as_str() {
            None => "-",
            Some("pass") => "pass",
            Some(_) => "REJECT",
        };
        let logits = json["logits"].as_array().unwrap();
        Answer {
            said: said.to_string(),
            label: json["label"].as_str().unwrap().to_string(),
            logits: logits.iter().map(|logit| logit.as_f64().unwrap() as f32).collect(),
        }
    };
    said.lines().map(answer).collect()
}

/// Runs a command in a folder and returns what it printed: QEMU writes what a board prints to stderr.
fn run(command: &mut Command, folder: &Path) -> String {
    let output = command.current_dir(folder).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout) + &text(&output.stderr)
}

fn is_there(program: &str) -> bool {
    let there = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    there.is_ok_and(|status| status.success())
}

/// The C library with examples/embedded/main.c, built by a compiler and run by an emulator.
fn in_c(compiler: &[&str], emulator: &[&str], bundle: &Path, folder: &Path) -> Vec<Answer> {
    let [library, example] = [bundle.join("embedded/c"), Path::new("examples/embedded/main.c").to_path_buf()];
    let program = folder.join("program");
    let mut compile = Command::new(compiler[0]);
    compile.args(&compiler[1..]).args(["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-I"]).arg(&library);
    compile.arg(example.canonicalize().unwrap()).arg(library.join("steadfast.c")).arg("-o").arg(&program);
    compile.arg("-lm");
    run(&mut compile, folder);
    let mut words = emulator.iter().copied().chain([str(&program)]);
    answers(&run(Command::new(words.next().unwrap()).args(words), folder))
}

/// The crate with a program for this machine.
fn in_rust(bundle: &Path, folder: &Path) -> Vec<Answer> {
    let main = r#"
        use std::io::Read;
        use steadfast_model::{Classifier, FRAME_BYTES, LABELS};
        static CLASSIFIER: std::sync::Mutex<Classifier> = std::sync::Mutex::new(Classifier::new());
        fn main() {
            let mut classifier = CLASSIFIER.lock().unwrap();
            let mut frame = vec![0; FRAME_BYTES];
            classifier.self_test(&mut frame).unwrap();
            println!("the self-test passed");
            assert!(classifier.classify(&frame[1..]).is_err() && classifier.self_test(&mut frame[1..]).is_err());
            let mut frames = std::fs::File::open("frames.bin").unwrap();
            while frames.read_exact(&mut frame).is_ok() {
                let verdict = classifier.classify(&frame).unwrap();
                let said = verdict.passes.map_or("-", |passes| if passes { "pass" } else { "REJECT" });
                print!("{said} {}", LABELS[verdict.label]);
                verdict.logits.iter().for_each(|logit| print!(" {logit:?}"));
                println!();
            }
        }"#;
    fs::write(folder.join("main.rs"), main).unwrap();
    let rustc = |arguments: &[&str]| {
        run(Command::new("rustc").args(["--edition", "2024", "-O", "-D", "warnings"]).args(arguments), folder)
    };
    let library = bundle.join("embedded/rust/src/lib.rs");
    rustc(&["--crate-type", "rlib", "--crate-name", "steadfast_model", str(&library)]);
    rustc(&["main.rs", "--extern", "steadfast_model=libsteadfast_model.rlib"]);
    answers(&run(&mut Command::new("./main"), folder))
}

fn check(seen: &[Answer], expected: &[Answer], tolerance: f32, what: &str) {
    assert_eq!(seen.len(), expected.len(), "{what}");
    for (seen, expected) in seen.iter().zip(expected) {
        let distance = steadfast_infer::largest_difference(&seen.logits, &expected.logits);
        assert!(distance <= tolerance, "{what}: {distance}: {seen:?} {expected:?}");
        assert_eq!((&seen.said, &seen.label), (&expected.said, &expected.label), "{what}");
    }
}

/// Frames that stay, shrink, grow, and become grey or colour; every kind of layer.
#[test]
fn c_and_rust_give_the_answers_of_inspect() {
    let root = tempdir().unwrap();
    let cases = [
        ("--width 4", "20x20x1"),
        ("--width 5 --image-size 16", "33x27x3"),
        ("--arch mobile-resnet --stem half", "13x40x1"),
        ("--arch micro-cnn --width 6", "20x24x3"),
        ("--arch preact-resnet18 --width 4", "20x20x3"),
        ("--arch resnet18 --width 4 --stem imagenet --image-size 40", "20x61x1"),
    ];
    for (index, (flags, frame)) in cases.into_iter().enumerate() {
        let run = briefly_trained(root.path(), flags);
        let folder = root.path().join(format!("case{index}"));
        let [bundle, pictures] = ["bundle", "pictures"].map(|name| folder.join(name));
        let bytes = frames(&root.path().join("data/test"), frame, &pictures);
        fs::write(folder.join("frames.bin"), bytes).unwrap();
        let mut arguments =
            vec!["export", str(&run), "--out", str(&bundle), "--format", "embedded", "--frame", frame];
        if index % 2 == 1 {
            arguments.extend(["--max-escape-rate", "0.5"]);
        }
        let said = succeed(&arguments);
        assert!(said.contains("bytes of memory beside the frame"), "{said}");
        let rust = in_rust(&bundle, &folder);
        check(&rust, &expected(&bundle, &pictures), 1e-4, flags);
        if !is_there("gcc") {
            eprintln!("not tried: C, for want of gcc");
            continue;
        }
        let sanitized = ["gcc", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover"];
        check(&in_c(&sanitized, &[], &bundle, &folder), &rust, 0.0, flags);
        if is_there("aarch64-linux-gnu-gcc") && is_there("qemu-aarch64") {
            let seen = in_c(&["aarch64-linux-gnu-gcc", "-static"], &["qemu-aarch64"], &bundle, &folder);
            check(&seen, &rust, 0.0, "aarch64");
        }
        for (core, float, board) in
            [("cortex-m4", "fpv4-sp-d16", "mps2-an386"), ("cortex-m7", "fpv5-d16", "mps2-an500")]
        {
            if !is_there("arm-none-eabi-gcc") || !is_there("qemu-system-arm") {
                eprintln!("not tried: {core}, for want of arm-none-eabi-gcc or qemu-system-arm");
                continue;
            }
            let [core_flag, float_flag] = [format!("-mcpu={core}"), format!("-mfpu={float}")];
            let compiler = ["arm-none-eabi-gcc", &core_flag, "-mthumb", "-mfloat-abi=hard", &float_flag];
            let compiler: Vec<&str> = compiler.into_iter().chain(PICOLIBC).collect();
            let emulator = ["qemu-system-arm", "-M", board, "-nographic", "-semihosting-config"];
            let emulator: Vec<&str> =
                emulator.into_iter().chain(["enable=on,target=native", "-kernel"]).collect();
            check(&in_c(&compiler, &emulator, &bundle, &folder), &rust, 0.0, core);
        }
    }
}

/// picolibc, its semihosting, and the memory of these boards.
const PICOLIBC: [&str; 8] = [
    "--specs=picolibc.specs",
    "--oslib=semihost",
    "--crt0=hosted",
    "-Wl,--defsym=__flash=0",
    "-Wl,--defsym=__flash_size=0x400000",
    "-Wl,--defsym=__ram=0x20000000",
    "-Wl,--defsym=__ram_size=0x400000",
    "-Tpicolibc.ld",
];

/// A network in integers and with shortened weights: measured before it is written, and the same in Rust, C and ONNX.
#[test]
fn quantised_networks_are_measured_first() {
    let root = tempdir().unwrap();
    let data = root.path().join("data");
    let run = briefly_trained(root.path(), "--arch mobile-resnet --width 4 --epochs 12");
    let export = |out: &Path, to: &str, more: &[&str]| {
        let words = ["export", str(&run), "--out", str(out), "--format", "embedded,onnx", "--quantize", to];
        let words: Vec<&str> =
            words.into_iter().chain(["--data", str(&data)]).chain(more.iter().copied()).collect();
        crate::common::run(&words)
    };
    let refused = root.path().join("refused");
    // Nothing may be lost, and something is gained at best.
    let impossible = export(&refused, "int8", &["--max-drop", "101"]);
    assert_eq!(impossible.status.code(), Some(2), "{}", text(&impossible.stderr));
    assert!(!refused.exists());
    for (index, to) in ["int8", "f16"].into_iter().enumerate() {
        let folder = root.path().join(to);
        let [bundle, pictures] = ["bundle", "pictures"].map(|name| folder.join(name));
        let said =
            export(&bundle, to, &["--max-drop", "12", "--max-escape-rate", "0.3", "--frame", "20x20x1"]);
        let stderr = text(&said.stderr);
        assert!(said.status.success() && stderr.contains("accepted, --max-drop 12"), "{stderr}");
        let name = ["int8", "float16"][index];
        let manifest: serde_json::Value =
            serde_json::from_slice(&fs::read(bundle.join("manifest.json")).unwrap()).unwrap();
        let figures = &manifest["quantized"]["figures"];
        assert_eq!(manifest["quantized"]["precision"], name);
        assert_eq!(figures[1]["attack"], "pgd-20+pgd-20 of float32+square-200");
        assert!(figures[0]["accuracy"].as_f64().unwrap() > 0.4, "{figures}");
        let card = fs::read_to_string(bundle.join("MODEL_CARD.md")).unwrap();
        assert!(card.contains(&format!("## The same network in {name}")), "{card}");

        let measured = |more: &[&str]| {
            let words =
                ["evaluate", str(&bundle), "--data", str(&data), "--attack", "clean,pgd-20", "--json"];
            let words: Vec<&str> = words.into_iter().chain(more.iter().copied()).collect();
            let said: serde_json::Value = serde_json::from_str(&succeed(&words)).unwrap();
            said["rows"]
                .as_array()
                .unwrap()
                .iter()
                .map(|row| row["accuracy"].as_f64().unwrap())
                .collect::<Vec<_>>()
        };
        // The same attacks on the same images: not far from each other, both.
        let (float, quantised) = (measured(&["--device", "cpu"]), measured(&["--quantized"]));
        assert!(float.iter().zip(&quantised).all(|(a, b)| (a - b).abs() < 0.2), "{float:?} {quantised:?}");

        fs::write(folder.join("frames.bin"), frames(&data.join("test"), "20x20x1", &pictures)).unwrap();
        let rust = in_rust(&bundle, &folder);
        if is_there("gcc") {
            check(&in_c(&["gcc"], &[], &bundle, &folder), &rust, 0.0, to);
        }
        let float = expected(&bundle, &pictures);
        let far =
            rust.iter().zip(&float).map(|(a, b)| steadfast_infer::largest_difference(&a.logits, &b.logits));
        let far = steadfast_infer::largest(far);
        assert!(far > 0.0 && far < if to == "int8" { 0.5 } else { 1e-2 }, "{to}: {far}");
        let line = |(index, answer): (usize, &Answer)| {
            let path = pictures.join(format!("{index:03}.png"));
            let verdict = if answer.said == "pass" { "pass" } else { "reject" };
            serde_json::json!({ "path": path, "logits": answer.logits, "verdict": verdict }).to_string()
                + "\n"
        };
        let answers: String = rust.iter().enumerate().map(line).collect();
        fs::write(folder.join("answers.jsonl"), answers).unwrap();
        if crate::common::has_onnx_runtimes() {
            let script = std::path::absolute("tests/golden/onnx_runtimes.py").unwrap();
            let mut python = Command::new("python3");
            eprint!(
                "{}",
                self::run(python.args([str(&script), str(&bundle), "answers.jsonl", name]), &folder)
            );
        }
    }
}

/// Wrong calls of the C library are error codes, and so is a network that was changed in flash.
#[test]
fn what_is_wrong_on_a_board_is_an_error_code() {
    if !is_there("gcc") {
        eprintln!("not tried, for want of gcc");
        return;
    }
    let root = tempdir().unwrap();
    let trained = briefly_trained(root.path(), "--width 2");
    let bundle = root.path().join("bundle");
    succeed(&["export", str(&trained), "--out", str(&bundle), "--format", "embedded", "--frame", "24x20"]);
    let main = r#"
        #include "steadfast.h"
        #include <stdio.h>
        #include <stdlib.h>
        int main(void)
        {
            static uint8_t frame[STEADFAST_FRAME_BYTES];
            static float memory[STEADFAST_ARENA_BYTES / 4 + 2];
            steadfast_verdict said = {.label = -7};
            int codes[] = {
                steadfast_classify(NULL, sizeof frame, memory, sizeof memory, &said),
                steadfast_classify(frame, sizeof frame, NULL, sizeof memory, &said),
                steadfast_classify(frame, sizeof frame, memory, sizeof memory, NULL),
                steadfast_classify(frame, sizeof frame - 1, memory, sizeof memory, &said),
                steadfast_classify(frame, sizeof frame, memory, STEADFAST_ARENA_BYTES - 1, &said),
                steadfast_classify(frame, sizeof frame, (char *)memory + 1, STEADFAST_ARENA_BYTES, &said),
                said.label,
                steadfast_self_test(NULL, sizeof frame, memory, sizeof memory),
                steadfast_self_test(frame, 1, memory, sizeof memory),
                steadfast_self_test(frame, sizeof frame, memory, 4),
                steadfast_self_test(frame, sizeof frame, memory, sizeof memory),
            };
            for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
                printf("%d ", codes[i]);
            return 0;
        }"#;
    fs::write(root.path().join("main.c"), main).unwrap();
    let codes = |library: &str| {
        fs::write(root.path().join("steadfast.c"), library).unwrap();
        let mut gcc = Command::new("gcc");
        gcc.args(["-std=c99", "-fsanitize=address,undefined", "-fno-sanitize-recover", "-I"]);
        gcc.arg(bundle.join("embedded/c")).args(["main.c", "steadfast.c", "-lm", "-o", "program"]);
        run(&mut gcc, root.path());
        run(&mut Command::new("./program"), root.path())
    };
    let library = fs::read_to_string(bundle.join("embedded/c/steadfast.c")).unwrap();
    assert_eq!(codes(&library), "1 1 1 2 3 3 -7 1 2 3 0 ");
    // The first weight, and one that makes everything not a number.
    let (before, after) = library.split_once("static const float floats[] = {\n    ").unwrap();
    let (_, after) = after.split_once(',').unwrap();
    for weight in ["1.0f", "(0.0f / 0.0f)"] {
        let changed = format!("{before}static const float floats[] = {{\n    {weight},{after}");
        assert_eq!(codes(&changed), "1 1 1 2 3 3 -7 1 2 3 4 ");
    }
}

/// The example for a Cortex-M4F, in Rust alone.
#[test]
fn the_example_runs_on_a_cortex_m4() {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", "thumbv7em-none-eabihf"]);
    let library = rustc.output().map(|output| text(&output.stdout)).unwrap_or_default();
    if !Path::new(library.trim()).exists() || !is_there("qemu-system-arm") {
        eprintln!("not tried, for want of the target thumbv7em-none-eabihf or qemu-system-arm");
        return;
    }
    let root = tempdir().unwrap();
    let run_folder = briefly_trained(root.path(), "--arch mobile-resnet --width 8");
    let [bundle, pictures, example] = ["bundle", "pictures", "m4"].map(|name| root.path().join(name));
    let bytes = frames(&root.path().join("data/test"), "33x27x1", &pictures);
    succeed(&["export", str(&run_folder), "--out", str(&bundle), "--format", "embedded", "--frame", "33x27"]);
    copy(Path::new("examples/embedded/m4"), &example);
    copy(&bundle.join("embedded/rust"), &example.join("steadfast-model"));
    fs::write(example.join("frames.bin"), bytes).unwrap();
    let mut cargo = Command::new("cargo");
    cargo.args(["run", "--quiet", "--release", "--target-dir"]).arg(root.path().join("target"));
    check(&answers(&run(&mut cargo, &example)), &expected(&bundle, &pictures), 1e-4, "cortex-m4");
}

#[test]
fn what_does_not_fit_is_refused_and_the_same_bytes_are_written_twice() {
    let root = tempdir().unwrap();
    let run = briefly_trained(root.path(), "--width 2");
    let [one, two, none] = ["one", "two", "none"].map(|name| root.path().join(name));
    for bundle in [&one, &two] {
        succeed(&["export", str(&run), "--out", str(bundle), "--format", "embedded,onnx"]);
    }
    let [one, two] = [one, two].map(|bundle| crate::common::files(&bundle));
    assert_eq!(one, two);
    assert!(text(&one["SHA256SUMS"]).contains("embedded/c/steadfast.c"));
    for (flag, limit) in [("--arena-limit", "100"), ("--flash-limit", "2000")] {
        let arguments = ["export", str(&run), "--out", str(&none), "--format", "embedded", flag, limit];
        let output = crate::common::run(&arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.lines().last().unwrap().contains(&format!("error: {flag} {limit}: the network needs")),
            "{said}"
        );
        assert!(!none.exists());
    }
}
