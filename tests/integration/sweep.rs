//! Sweeps through the real binary: run, looked at again, interrupted, handed to a cluster; and the presets.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use steadfast::run::config::Config;
use steadfast::sweep::spec::Spec;
use steadfast::sweep::{self, Options};
use tempfile::tempdir;

use crate::common::{draw_folders, fail, run, steadfast, str, succeed, text};

/// A specification on drawn parts, with these lines after those that every test needs.
fn write_spec(root: &Path, epochs: usize, lines: &str) -> PathBuf {
    let data = root.join("data");
    if !data.exists() {
        draw_folders(&data, 12, (96, 60));
    }
    let path = root.join("sweep.toml");
    let base = format!(
        "data = {:?}\ndevice = \"cpu\"\nwidth = 2\nbatch-size = 8\nlr = 0.05\nepochs = {epochs}\n",
        str(&data)
    );
    fs::write(&path, base + lines).unwrap();
    path
}

const TWO_BY_TWO: &str = r#"
seeds = [0, 1]
[grid]
smooth = ["none", "b"]
[evaluate]
attack = ["clean", "pgd-2"]
limit = 40
"#;

const JOBS: [&str; 4] = ["smooth=none-seed0", "smooth=none-seed1", "smooth=b-seed0", "smooth=b-seed1"];

/// The one evaluation of a checkpoint that a run keeps.
fn evaluation(run: &Path, checkpoint: &str) -> PathBuf {
    let begins = format!("evaluation-test-{checkpoint}-");
    let mut found = fs::read_dir(run).unwrap().map(|entry| entry.unwrap().path());
    found.find(|path| path.file_name().unwrap().to_string_lossy().starts_with(&begins)).unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Commands that a job's log says were started.
fn commands(out: &Path, job: &str) -> Vec<String> {
    let log = fs::read_to_string(out.join(format!("{job}.log"))).unwrap();
    log.lines().filter(|line| line.starts_with("$ ")).map(String::from).collect()
}

/// The table without what the clock says.
fn timeless(out: &Path) -> Value {
    let mut table = json(&out.join("table.json"));
    for row in table["rows"].as_array_mut().unwrap() {
        assert!(row.as_object_mut().unwrap().remove("seconds_per_epoch").unwrap().as_f64().unwrap() > 0.0);
    }
    table
}

#[test]
fn a_sweep_runs_every_job_and_again_only_what_is_missing() {
    let root = tempdir().unwrap();
    let spec = write_spec(root.path(), 4, TWO_BY_TWO);
    let out = root.path().join("out");
    let sweep = ["sweep", str(&spec), "--out", str(&out), "--jobs", "2"];
    let printed = succeed(&sweep);
    assert_eq!(fs::read_to_string(out.join("table.md")).unwrap(), printed);
    let table = timeless(&out);

    // Every figure as it follows from the evaluations and logs of the runs.
    let mut spread = false;
    for (row, jobs) in table["rows"].as_array().unwrap().iter().zip(JOBS.chunks(2)) {
        assert_eq!(row["seeds"], serde_json::json!({"count": 2, "of": 2}));
        let collapsed = |job: &&&str| {
            let log = fs::read_to_string(out.join(job).join("log.jsonl")).unwrap();
            let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            lines.into_iter().any(|line| line["guard"]["collapsed"] == true)
        };
        let count = jobs.iter().filter(collapsed).count();
        assert_eq!(row["collapsed"], serde_json::json!({"count": count, "of": 2}));
        for accuracy in row["accuracy"].as_array().unwrap() {
            let checkpoint = accuracy["checkpoint"].as_str().unwrap();
            let of = |job: &&str| {
                let kept = json(&evaluation(&out.join(job), checkpoint));
                let rows = kept["rows"].as_array().unwrap().clone();
                let row = rows.iter().find(|row| row["attack"] == accuracy["attack"]).unwrap().clone();
                assert_eq!(row["examples"], 40);
                row["accuracy"].as_f64().unwrap()
            };
            let [one, two] = [of(&jobs[0]), of(&jobs[1])];
            let (mean, sd) = ((one + two) / 2.0, (one - two).abs() / 2f64.sqrt());
            assert!((accuracy["mean"].as_f64().unwrap() - mean).abs() < 1e-12, "{accuracy}");
            assert!((accuracy["sd"].as_f64().unwrap() - sd).abs() < 1e-12, "{accuracy}");
            let cell = format!(" {:.1} ± {:.1} |", 100.0 * mean, 100.0 * sd);
            assert!(printed.contains(&cell), "{cell} is not in\n{printed}");
            spread |= sd > 0.0;
        }
        let fired = |job: &&str| {
            let log = fs::read_to_string(out.join(job).join("log.jsonl")).unwrap();
            let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            let active: Vec<Value> = lines.filter(|line| line["gate"]["active"] == true).collect();
            let sum: f64 = active.iter().map(|line| line["gate"]["fire_rate"].as_f64().unwrap()).sum();
            (!active.is_empty()).then(|| sum / active.len() as f64)
        };
        match (fired(&jobs[0]), fired(&jobs[1])) {
            (Some(one), Some(two)) => {
                assert!((row["fire_rate"].as_f64().unwrap() - (one + two) / 2.0).abs() < 1e-12);
                assert_eq!(row["name"], "smooth=b");
            }
            _ => assert!(row["fire_rate"].is_null() && row["name"] == "smooth=none"),
        }
    }
    assert!(spread, "seeds that differ");

    // Nothing is left: nothing is touched.
    let logs = || JOBS.map(|job| commands(&out, job));
    let before = logs();
    assert!(before.iter().all(|commands| commands.len() == 3), "{before:?}");
    assert_eq!(succeed(&sweep), printed);
    assert_eq!(logs(), before);

    // An evaluation is missing: it alone is made again.
    fs::remove_file(evaluation(&out.join(JOBS[1]), "last")).unwrap();
    assert_eq!(succeed(&sweep), printed);
    let added = |job: usize, of: &[Vec<String>]| logs()[job][of[job].len()..].to_vec();
    let again = added(1, &before);
    assert!(again.len() == 1 && again[0].contains("--checkpoint=last"), "{again:?}");
    assert!([0, 2, 3].iter().all(|&job| added(job, &before).is_empty()));

    // The end of a training is missing: it goes on, and both checkpoints are measured as before.
    let before = logs();
    fs::remove_file(out.join(JOBS[2]).join("last.safetensors")).unwrap();
    succeed(&sweep);
    assert_eq!(timeless(&out), table);
    let again = added(2, &before);
    assert!(again[0].contains(" train ") && again[0].ends_with("--resume"), "{again:?}");
    assert!([0, 1, 3].iter().all(|&job| added(job, &before).is_empty()));

    // Other questions to the same runs: nothing is trained.
    let before = logs();
    let spec = write_spec(root.path(), 4, &TWO_BY_TWO.replace("pgd-2", "fgsm").replace("40", "30"));
    let printed = succeed(&["sweep", str(&spec), "--out", str(&out), "--json"]);
    assert!(printed.contains("fgsm") && !printed.contains("pgd-2"), "{printed}");
    assert!((0..4).all(|job| added(job, &before).iter().all(|line| line.contains(" evaluate "))));
    assert!((0..4).all(|job| added(job, &before).len() == 2));
}

#[test]
fn a_wrong_specification_is_one_line_before_anything_starts() {
    let root = tempdir().unwrap();
    let out = root.path().join("out");
    let cases = [
        ("epoch = 3", "epoch is no setting of train"),
        ("width = \"wide\"", "--width"),
        ("label-factor = 3", "--label-factor"),
        ("seed = 3", "seeds = [0, 1]"),
        ("seeds = 3", "seeds"),
        ("seeds = []", "nothing to train"),
        ("seeds = [1, 1]", "two jobs are called base-seed1"),
        ("[grid]\nsmooth = \"b\"", "[grid] smooth"),
        ("[grid]\nsmooth = [\"b\", \"q\"]", "smooth=q: invalid value 'q'"),
        ("[grid]\nepsilon = [\"8/255\", \"8-255\"]", "8-255"),
        ("[[run]]\nsmooth = \"b\"", "name must be given"),
        ("[[run]]\nname = \"a/b\"", "name must be given"),
        ("[[run]]\nname = \"a\"\n[[run]]\nname = \"a\"", "two jobs are called a-seed0"),
        ("[grid]\nepsilon = [1]\n[[run]]\nname = \"a\"\nepsilon = 0", "epsilon is in [grid] too"),
        ("[evaluate]\nattacks = [\"clean\"]", "attacks"),
        ("[evaluate]\nattack = [\"pgd\"]", "known are clean"),
        ("[evaluate]\nattack = [\"escape\"]", "--good"),
        ("[evaluate]\nsplit = \"tests\"", "expected one of `test`, `val`, `train`"),
        ("[evaluate]\nlimit = 0", "[evaluate]"),
        ("[evaluate]\ncheckpoint = [\"first\"]", "first"),
    ];
    for (lines, expected) in cases {
        let spec = write_spec(root.path(), 2, lines);
        // A key of the base given again is an error of TOML itself.
        let text = fs::read_to_string(&spec).unwrap().replacen("width = 2\n", "", 1);
        fs::write(&spec, text).unwrap();
        let error = fail(&["sweep", str(&spec), "--out", str(&out)]);
        assert!(error.contains(expected) && error.contains("sweep.toml"), "{lines}: {error}");
        assert!(!out.exists(), "{lines} left something behind");
    }
    let spec = root.path().join("no-data.toml");
    fs::write(&spec, "epochs = 1\n").unwrap();
    assert!(fail(&["sweep", str(&spec), "--out", str(&out)]).contains("--data"));
    fs::write(&spec, "data = \"/no/such\"\n").unwrap();
    assert!(fail(&["sweep", str(&spec), "--out", str(&out)]).contains("/no/such: no such folder"));
    assert!(!out.exists());
}

#[test]
fn a_job_that_fails_does_not_stop_the_others() {
    let root = tempdir().unwrap();
    let lines = "[[run]]\nname = \"wrong\"\ngood = [\"goood\"]\n[[run]]\nname = \"right\"\n[evaluate]\nattack = [\"clean\"]\n";
    let spec = write_spec(root.path(), 1, lines);
    let out = root.path().join("out");
    let output = run(&["sweep", str(&spec), "--out", str(&out)]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let table = json(&out.join("table.json"));
    let failed = table["failed"].as_array().unwrap();
    assert_eq!((failed.len(), &failed[0]["job"]), (1, &Value::from("wrong-seed0")));
    assert!(failed[0]["error"].as_str().unwrap().contains("the classes are good, pit"), "{failed:?}");
    assert!(text(&output.stdout).contains("- wrong-seed0: "), "{}", text(&output.stdout));
    let counts: Vec<_> = table["rows"].as_array().unwrap().iter().map(|row| &row["seeds"]["count"]).collect();
    assert_eq!(counts, [0, 1]);
    assert!(table["rows"][1]["accuracy"][0]["sd"].is_null(), "one seed has no spread");
}

#[test]
fn a_training_that_stops_for_its_collapses_is_a_result() {
    let root = tempdir().unwrap();
    let lines = "seeds = [0, 1, 2]\n[evaluate]\nattack = [\"clean\"]\n";
    let (file, out) = (write_spec(root.path(), 2, lines), root.path().join("out"));
    // The program as it answers then: exit code 1, and a log that says so. Seed 1 collapses and recovers.
    let program = root.path().join("program");
    let script = format!(
        r#"#!/bin/bash
{:?} "$@" || exit
[ "$1" = train ] || exit 0
case "$*" in
*seed=0*) first=false last=false code=0 ;;
*seed=1*) first=true last=false code=0 ;;
*) first=true last=true code=1 ;;
esac
mark() {{ sed -i "$1s/\"collapsed\":[a-z]*/\"collapsed\":$2/" "${{3#--out=}}/log.jsonl"; }}
mark 1 $first "$2"
mark 2 $last "$2"
exit $code
"#,
        env!("CARGO_BIN_EXE_steadfast")
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let spec = Spec::read(&file, &out).unwrap();
    let interrupted = AtomicBool::new(false);
    let options =
        Options { file: &file, out: &out, program: &program, jobs: Some(1), interrupted: &interrupted };
    let table = sweep::run(&spec, &options).unwrap().expect("nobody interrupts");
    assert!(!table.has_failures(), "{}", table.markdown(&spec));
    let row = &json(&out.join("table.json"))["rows"][0];
    assert_eq!(row["seeds"], serde_json::json!({"count": 3, "of": 3}));
    assert_eq!(row["collapsed"], serde_json::json!({"count": 2, "of": 3}));
    assert_eq!(row["collapsed_at_the_end"], serde_json::json!({"count": 1, "of": 3}));
    assert!(table.markdown(&spec).contains(" 2 of 3 | "), "{}", table.markdown(&spec));
}

#[test]
fn a_run_of_other_settings_is_refused() {
    let root = tempdir().unwrap();
    let lines = "[evaluate]\nattack = [\"clean\"]\ncheckpoint = [\"last\"]\n";
    let (spec, out) = (write_spec(root.path(), 1, lines), root.path().join("out"));
    succeed(&["sweep", str(&spec), "--out", str(&out)]);
    let log = fs::read(out.join("base-seed0.log")).unwrap();
    // Also one that is back at its default, which no flag says.
    let (more, fewer) = (format!("momentum = 0.5\n{lines}"), lines);
    for (lines, setting) in [(more.as_str(), "momentum"), (fewer, "width")] {
        let spec = write_spec(root.path(), 1, lines);
        let text = fs::read_to_string(&spec).unwrap();
        let text = if setting == "width" { text.replacen("width = 2\n", "", 1) } else { text };
        fs::write(&spec, text).unwrap();
        let error = fail(&["sweep", str(&spec), "--out", str(&out)]);
        assert!(error.contains(&format!("base-seed0: {setting} had another value")), "{error}");
    }
    assert_eq!(fs::read(out.join("base-seed0.log")).unwrap(), log);
}

#[test]
fn an_interrupted_sweep_goes_on_to_the_same_table() {
    let root = tempdir().unwrap();
    let spec = write_spec(root.path(), 60, TWO_BY_TWO);
    let (straight, stopped) = (root.path().join("straight"), root.path().join("stopped"));
    succeed(&["sweep", str(&spec), "--out", str(&straight)]);

    let arguments = ["sweep", str(&spec), "--out", str(&stopped)];
    // In a group of its own, which is signalled as a whole: that is what a terminal does.
    let mut child = steadfast()
        .args(arguments)
        .process_group(0)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !stopped.join(JOBS[1]).join("log.jsonl").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be interrupted");
        assert!(started.elapsed() < Duration::from_secs(300), "it never got going");
        sleep(Duration::from_millis(2));
    }
    let status = Command::new("kill").args(["-INT", "--", &format!("-{}", child.id())]).status().unwrap();
    assert!(status.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let counts: Vec<_> = json(&stopped.join("table.json"))["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["seeds"]["count"].as_u64().unwrap())
        .collect();
    assert_eq!(counts, [1, 0], "the first job was done, the second was not");
    assert!(!stopped.join(JOBS[2]).exists(), "no job was started after that");

    succeed(&arguments);
    assert_eq!(timeless(&stopped), timeless(&straight));
    assert_eq!(commands(&stopped, JOBS[0]).len(), 3, "the job that was done is not done again");
    assert!(commands(&stopped, JOBS[1])[1].ends_with("--resume"));
}

#[test]
fn a_script_for_slurm_runs_one_job_and_goes_on_with_it() {
    let root = tempdir().unwrap();
    let root = root.path().join("it's $HOME");
    fs::create_dir(&root).unwrap();
    let (spec, out) = (write_spec(&root, 1, TWO_BY_TWO), root.join("out"));
    let emit = |what| succeed(&["sweep", str(&spec), "--out", str(&out), "--emit", what]);
    let script = emit("slurm");
    assert!(!out.exists(), "nothing is started");
    assert!(script.starts_with("#!/bin/bash\n") && script.contains("\n#SBATCH --array=0-3\n"), "{script}");
    let path = root.join("script");
    fs::write(&path, &script).unwrap();
    // The second time the run exists, and is resumed.
    for _ in 0..2 {
        let mut bash = Command::new("bash");
        bash.arg(&path).env("SLURM_ARRAY_TASK_ID", "2").env("NODEVICE_SELECT", "1");
        let output = bash.output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    let runs: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(runs, [JOBS[2]]);

    let jobs: Vec<Value> = serde_json::from_str(&emit("json")).unwrap();
    let names: Vec<_> = jobs.iter().map(|job| job["name"].as_str().unwrap()).collect();
    assert_eq!(names, JOBS);
    let words = |command: &Value| -> Vec<String> {
        command.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_string()).collect()
    };
    for command in std::iter::once(&jobs[0]["train"]).chain(jobs[0]["evaluate"].as_array().unwrap()) {
        let words = words(command);
        assert!(Command::new(&words[0]).args(&words[1..]).output().unwrap().status.success(), "{words:?}");
    }

    // What a cluster did is done: only the other two jobs are left.
    succeed(&["sweep", str(&spec), "--out", str(&out)]);
    let started = JOBS.map(|job| out.join(format!("{job}.log")).exists());
    assert_eq!(started, [false, true, false, true]);
}

#[test]
fn presets_and_the_example_are_what_they_say() {
    let examples = Path::new("examples");
    let root = tempdir().unwrap();
    let out = root.path().join("out");
    let mut seen = 0;
    for (data, arch, lr, gamma_max, w1) in [
        ("cifar10", "resnet18", 0.1, 0.03, 0.0),
        ("cifar100", "resnet18", 0.1, 0.06, 0.0),
        ("tiny-imagenet", "preact-resnet18", 0.01, 0.06, 0.5),
    ] {
        for epsilon in [8, 12, 16] {
            let preset = examples.join(format!("presets/{data}-{epsilon}.toml"));
            let error = fail(&["train", "--config", str(&preset), "--data", "/no/such", "--out", str(&out)]);
            assert!(error.contains("/no/such: no such folder"), "its settings are taken: {error}");
            // With the folder of its data a preset is a sweep of one run.
            let text = fs::read_to_string(&preset).unwrap();
            let spec = root.path().join("preset.toml");
            fs::write(&spec, format!("data = \"/no/such\"\n{text}")).unwrap();
            let config = Spec::read(&spec, &out).unwrap().jobs.remove(0).config;
            assert_eq!(config.milestones(), [100, 105]);
            assert_eq!(config.epsilon.to_string(), format!("{epsilon}/255"));
            let alpha = if epsilon == 8 { 10.0 } else { epsilon as f32 };
            assert!((255.0 * config.alpha() - alpha).abs() < 1e-4);
            let table: toml::Table = toml::from_str(&config.to_toml()).unwrap();
            assert_eq!(table["arch"].as_str(), Some(arch));
            let expected = Config { lr: Some(lr), gamma_max, w1, epochs: 110, ..config.clone() };
            assert_eq!(config, expected);
            seen += 1;
        }
    }
    assert_eq!(fs::read_dir(examples.join("presets")).unwrap().count(), seen);
    let example = Spec::read(&examples.join("sweeps/smoke.toml"), &out).unwrap();
    assert_eq!((example.settings.len(), example.jobs.len()), (4, 8));
}
