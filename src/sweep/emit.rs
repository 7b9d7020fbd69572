//! The jobs of a sweep for a cluster's own scheduler.

use std::path::Path;

use serde::Serialize;

use super::spec::{Job, Spec};

#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    seed: u64,
    out: &'a Path,
    train: Vec<String>,
    evaluate: Vec<Vec<String>>,
}

fn listed<'a>(spec: &Spec, job: &'a Job, program: &Path) -> Listed<'a> {
    let command = |arguments| [vec![program.display().to_string()], arguments].concat();
    let evaluate = spec.evaluate.checkpoint.iter().map(|&which| command(job.evaluate(which, &spec.evaluate)));
    Listed {
        name: &job.name,
        seed: job.seed,
        out: &job.out,
        train: command(job.train()),
        evaluate: evaluate.collect(),
    }
}

/// Name, seed, folder and commands of every job, as JSON.
pub fn json(spec: &Spec, program: &Path) -> String {
    let jobs: Vec<_> = spec.jobs.iter().map(|job| listed(spec, job, program)).collect();
    crate::files::to_json(&jobs)
}

/// An array job for Slurm's `sbatch`: one task per job.
pub fn slurm(spec: &Spec, program: &Path) -> String {
    let tasks = spec.jobs.iter().enumerate().map(|(index, job)| {
        let Listed { train, evaluate, out, .. } = listed(spec, job, program);
        let mut lines =
            format!("{index})\n    train {} {}\n", quoted(&out.to_string_lossy()), command(&train));
        lines.extend(evaluate.iter().map(|arguments| format!("    {}\n", command(arguments))));
        lines + "    ;;\n"
    });
    format!(
        r#"#!/bin/bash
#SBATCH --job-name=steadfast
#SBATCH --array=0-{}
# Written by steadfast sweep --emit slurm. Paths are as seen from the folder where it is submitted; add what your cluster
# wants (--gres=gpu:1, --time, --cpus-per-task). The same sweep without --emit prints the table afterwards.
set -eu

# Trains, or goes on where the run stopped. 1 means that it collapsed too often, which is a result to be measured.
train() {{
    local out=$1 code=0
    shift
    if [ -e "$out/run.json" ]; then
        "$@" --resume || code=$?
    else
        "$@" || code=$?
    fi
    [ "$code" -le 1 ] || exit "$code"
}}

case "$SLURM_ARRAY_TASK_ID" in
{}*)
    echo "no task $SLURM_ARRAY_TASK_ID in this sweep" >&2
    exit 2
    ;;
esac"#,
        spec.jobs.len() - 1,
        tasks.collect::<String>()
    )
}

/// A command as a shell reads it.
pub fn command(words: &[String]) -> String {
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// One word for a shell: in single quotes where it needs them.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._+=,:-".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_string(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}
