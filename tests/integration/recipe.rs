//! `--recipe auto`: what it chooses, that it can be repeated, and that a kill costs nothing but time.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use steadfast::run::{Run, Which};
use tempfile::tempdir;

use crate::common::{draw_folders, run, steadfast, str, succeed};

/// The settings of a run, without those that are the recipe's.
fn settings(path: &Path) -> toml::Table {
    toml::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_recipe_chooses_says_why_and_can_be_repeated() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 40, (240, 30));
    // A rare class.
    let rare = fs::read_dir(data.join("train/pit")).unwrap();
    rare.skip(10).for_each(|file| fs::remove_file(file.unwrap().path()).unwrap());
    let out = root.path().join("auto");
    let arguments = ["train", "--data", str(&data), "--device", "cpu", "--minutes", "0.1", "--seed", "3"];
    let said = succeed(&[&arguments[..], &["--out", str(&out)]].concat());
    for line in [
        "arch = \"mobile-resnet\"",
        "balance = \"sampling\"",
        "init = \"textures\"",
        "ema = 0.",
        "the smallest class has",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let recipe = settings(&out.join("recipe.toml"));
    let chosen = settings(&out.join("config.toml"));
    for (name, value) in &recipe {
        assert_eq!(chosen.get(name), Some(value), "{name}");
    }
    assert_eq!(chosen["seed"].as_integer(), Some(3), "what was given stays");
    assert!(!chosen.contains_key("image-size"));
    // By hand: the same training, without a search.
    let again = root.path().join("again");
    let by_hand =
        ["train", "--data", str(&data), "--device", "cpu", "--seed", "3", "--out", str(&again), "--config"];
    succeed(&[&by_hand[..], &[str(&out.join("recipe.toml"))]].concat());
    assert!(!again.join("search").exists());
    let weights = |run: &Path| Run::open(run).unwrap().checkpoint(Which::Last).unwrap().model;
    assert_eq!(settings(&again.join("config.toml")), chosen);
    assert!(weights(&again) == weights(&out), "the same weights");
    // A setting that a recipe would choose switches it off, unless it is asked for.
    let plain = root.path().join("plain");
    succeed(&[
        "train",
        "--data",
        str(&data),
        "--epochs",
        "1",
        "--width",
        "2",
        "--device",
        "cpu",
        "--out",
        str(&plain),
    ]);
    assert!(!plain.join("recipe.toml").exists());
    let kept = root.path().join("kept");
    let asked = [
        "--recipe",
        "auto",
        "--epochs",
        "1",
        "--augment",
        "none",
        "--arch",
        "small-cnn",
        "--out",
        str(&kept),
    ];
    succeed(&[&arguments[..], &asked].concat());
    let kept = settings(&kept.join("config.toml"));
    assert!(!kept.contains_key("init"), "the weights that come along are of another network");
    assert_eq!((kept["epochs"].as_integer(), kept["augment"].as_str()), (Some(1), Some("none")));
}

/// At a budget that nothing withstands, a smaller one comes first, and the training says what that is worth.
#[test]
fn a_recipe_tries_smaller_budgets_where_the_trial_learns_nothing() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 40, (60, 30));
    let out = root.path().join("run");
    let arguments = ["train", "--data", str(&data), "--device", "cpu", "--minutes", "1", "--out", str(&out)];
    // No matter whether the training itself collapses.
    let said = run(&[&arguments[..], &["--epsilon", "160/255"]].concat()).stdout;
    let said = String::from_utf8(said).unwrap();
    let half = out.join("search/half-budget");
    assert_eq!(settings(&half.join("config.toml"))["epsilon"].as_str(), Some("80/255"));
    let state = Run::open(&half).unwrap().checkpoint(Which::Best).unwrap().state;
    let quarter = out.join("search/quarter-budget");
    assert_eq!(state.is_doubtful(true), quarter.exists(), "a quarter where half is too much as well");
    let (used, epsilon) = if quarter.exists() { (quarter, "40/255") } else { (half, "80/255") };
    assert!(said.contains(&format!("trained at ε = {epsilon} first")), "{said}");
    let chosen = settings(&out.join("config.toml"));
    assert_eq!(chosen["epsilon"].as_str(), Some("160/255"), "what was given stays");
    assert_eq!(chosen["init"].as_str(), Some(str(&used.join("best.safetensors"))));
}

#[test]
fn a_time_asks_for_the_recipe() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 12, (60, 12));
    let [plain, timed] = ["plain", "timed"].map(|name| root.path().join(name));
    let of = |out: &'static str, flags: &[&'static str]| {
        let mut command = steadfast();
        command.args(["train", "--data", str(&data), "--device", "cpu", "--epochs", "1", "--width", "2"]);
        command.arg("--out").arg(root.path().join(out)).args(flags).output().unwrap()
    };
    assert!(of("plain", &[]).status.success());
    assert!(!plain.join("recipe.toml").exists(), "--epochs and --width are choices of the recipe");
    assert!(of("timed", &["--minutes", "0.2"]).status.success());
    assert!(timed.join("recipe.toml").exists());
    let refused = of("none", &["--minutes", "1", "--recipe", "paper"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && said.contains("--minutes: only --recipe auto"), "{said}");
    assert!(!root.path().join("none").exists());
}

#[test]
fn a_recipe_makes_large_images_smaller() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 132, (60, 20));
    let out = root.path().join("run");
    let known =
        ["--recipe", "auto", "--method", "none", "--epochs", "1", "--augment", "none", "--minutes", "0.1"];
    let arguments = ["train", "--data", str(&data), "--device", "cpu", "--out", str(&out)];
    let said = succeed(&[&arguments[..], &known].concat());
    assert!(said.contains("image-size = 128"), "{said}");
    let chosen = settings(&out.join("config.toml"));
    assert_eq!((chosen["image-size"].as_integer(), chosen["stem"].as_str()), (Some(128), Some("imagenet")));
    succeed(&[&arguments[..], &["--resume"]].concat());
}

#[test]
fn a_recipe_that_is_killed_goes_on_with_its_trials() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 40, (240, 30));
    let out = root.path().join("run");
    let arguments =
        ["train", "--data", str(&data), "--device", "cpu", "--minutes", "0.1", "--out", str(&out)];
    let mut killed = steadfast().args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    // In the middle of the second trial.
    while !out.join("search/robust/last.safetensors").exists() {
        assert!(begun.elapsed() < Duration::from_secs(120) && killed.try_wait().unwrap().is_none());
        sleep(Duration::from_millis(2));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(!out.join("run.json").exists());
    let first = out.join("search/orientation/log.jsonl");
    let before = fs::metadata(&first).unwrap().modified().unwrap();
    let resumed = run(&[&arguments[..], &["--resume"]].concat());
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
    assert_eq!(
        fs::metadata(&first).unwrap().modified().unwrap(),
        before,
        "the first trial is not made again"
    );
    assert!(out.join("recipe.toml").exists() && out.join("best.safetensors").exists());
}

#[test]
fn a_curve_shows_what_robustness_costs() {
    let root = tempdir().unwrap();
    let data = draw_folders(&root.path().join("data"), 40, (160, 30));
    let out = root.path().join("curve");
    let arguments =
        ["curve", "--data", str(&data), "--device", "cpu", "--minutes", "0.3", "--epsilon", "8/255,2/255"];
    let first = run(&[&arguments[..], &["--out", str(&out), "--json"]].concat());
    let curve: serde_json::Value = serde_json::from_slice(&first.stdout).unwrap();
    let budgets: Vec<_> =
        curve["trained"].as_array().unwrap().iter().map(|one| one["epsilon"].as_str().unwrap()).collect();
    assert_eq!(budgets, ["0/255", "2/255", "8/255"]);
    assert_eq!(first.status.success(), !curve["recommended"].is_null());
    let page = fs::read_to_string(out.join("curve.html")).unwrap();
    assert!(
        page.contains("<svg") && page.contains("under PGD-10 of that budget") && page.contains("</html>")
    );
    // Again: what is trained is read, not trained.
    let best = out.join("epsilon-8-255/best.safetensors");
    let before = fs::metadata(&best).unwrap().modified().unwrap();
    let again = run(&[&arguments[..], &["--out", str(&out)]].concat());
    assert!(String::from_utf8_lossy(&again.stdout).contains("trained at"), "{again:?}");
    assert_eq!(fs::metadata(&best).unwrap().modified().unwrap(), before);
    assert_eq!(
        curve,
        serde_json::from_slice::<serde_json::Value>(&fs::read(out.join("curve.json")).unwrap()).unwrap()
    );
}
