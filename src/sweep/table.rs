//! The result of a sweep: one row per setting, over its seeds.

use serde::Serialize;

use super::outcome::{Finished, mean};
use super::spec::Spec;
use crate::evaluate::figures::Count;
use crate::run::Which;

/// Where a job stands.
#[derive(Debug, Clone)]
pub enum State {
    /// It has something left to do.
    Waiting,
    /// It is done.
    Finished(Finished),
    /// Its program failed, with this error.
    Failed(String),
}

/// What a sweep prints and keeps as `table.md` and `table.json`.
#[derive(Debug, Clone, Serialize)]
pub struct Table {
    rows: Vec<Row>,
    failed: Vec<Failure>,
}

#[derive(Debug, Clone, Serialize)]
struct Row {
    name: String,
    settings: toml::Table,
    /// Seeds that are done.
    seeds: Count,
    accuracy: Vec<Spread>,
    /// Runs with a collapsed epoch, of those whose log says so.
    collapsed: Option<Count>,
    /// Runs whose last epoch is a collapsed one.
    collapsed_at_the_end: Option<Count>,
    /// Mean over the epochs in which the gate was active.
    fire_rate: Option<f64>,
    seconds_per_epoch: Option<f64>,
}

/// Mean and sample standard deviation of an accuracy over the seeds, as shares.
#[derive(Debug, Clone, Serialize)]
struct Spread {
    checkpoint: Which,
    attack: String,
    mean: f64,
    /// Absent for a single seed.
    sd: Option<f64>,
}

#[derive(Debug, Clone, Serialize)]
struct Failure {
    job: String,
    error: String,
}

impl Table {
    /// From the states of the jobs, in their order.
    pub fn new(spec: &Spec, states: &[State]) -> Self {
        let jobs = || spec.jobs.iter().zip(states);
        let rows = spec.settings.iter().enumerate().map(|(index, setting)| {
            let of_setting = || jobs().filter(|(job, _)| job.setting == index);
            let finished: Vec<&Finished> = of_setting()
                .filter_map(
                    |(_, state)| if let State::Finished(finished) = state { Some(finished) } else { None },
                )
                .collect();
            let over_seeds =
                |value: fn(&Finished) -> Option<f64>| mean(finished.iter().filter_map(|one| value(one)));
            let count = |answer: fn(&Finished) -> Option<bool>| {
                let known: Vec<bool> = finished.iter().filter_map(|one| answer(one)).collect();
                let count = known.iter().filter(|&&yes| yes).count() as u64;
                (!known.is_empty()).then_some(Count { count, of: known.len() as u64 })
            };
            Row {
                name: setting.name.clone(),
                settings: setting.table.clone(),
                seeds: Count { count: finished.len() as u64, of: of_setting().count() as u64 },
                accuracy: spreads(&finished),
                collapsed: count(Finished::collapsed),
                collapsed_at_the_end: count(Finished::collapsed_at_the_end),
                fire_rate: over_seeds(Finished::fire_rate),
                seconds_per_epoch: over_seeds(Finished::seconds_per_epoch),
            }
        });
        let failed = jobs().filter_map(|(job, state)| match state {
            State::Failed(error) => Some(Failure { job: job.name.clone(), error: error.clone() }),
            _ => None,
        });
        Self { rows: rows.collect(), failed: failed.collect() }
    }

    /// Whether any job failed.
    pub fn has_failures(&self) -> bool {
        !self.failed.is_empty()
    }

    /// As Markdown with aligned columns, accuracies in percent; failed jobs below it.
    pub fn markdown(&self, spec: &Spec) -> String {
        let asked = &spec.evaluate;
        let columns = asked.checkpoint.iter().flat_map(|which| asked.attack.iter().map(move |a| (*which, a)));
        let columns: Vec<_> = columns.collect();
        let mut head = vec!["setting".to_string(), "seeds".to_string()];
        let balanced = if asked.balanced { " balanced" } else { "" };
        head.extend(columns.iter().map(|(which, attack)| format!("{} {attack}{balanced}", which.name())));
        head.extend(["collapsed", "at the end", "gate fires", "s/epoch"].map(String::from));
        let mut lines = vec![head];
        for row in &self.rows {
            let mut cells = vec![row.name.clone(), count_of(Some(row.seeds))];
            cells.extend(columns.iter().map(|&(which, attack)| {
                let same = |spread: &&Spread| spread.checkpoint == which && spread.attack == *attack;
                row.accuracy.iter().find(same).map_or("-".to_string(), Spread::percent)
            }));
            cells.push(count_of(row.collapsed));
            cells.push(count_of(row.collapsed_at_the_end));
            cells.push(row.fire_rate.map_or("-".to_string(), |rate| format!("{:.0} %", 100.0 * rate)));
            cells.push(row.seconds_per_epoch.map_or("-".to_string(), |seconds| format!("{seconds:.1}")));
            lines.push(cells);
        }
        let mut text = aligned(&lines);
        if self.has_failures() {
            text += "\n\nFailed:\n";
            text.extend(self.failed.iter().map(|failure| format!("\n- {}: {}", failure.job, failure.error)));
        }
        text
    }
}

/// Of runs measured in the same way, value by value.
fn spreads(finished: &[&Finished]) -> Vec<Spread> {
    let Some(first) = finished.first() else {
        return Vec::new();
    };
    let spread = |(index, accuracy): (usize, &super::outcome::Accuracy)| {
        let values = finished.iter().map(|one| one.accuracy[index].value);
        let mean = mean(values.clone()).expect("there is a first");
        let squares: f64 = values.map(|value| (value - mean).powi(2)).sum();
        Spread {
            checkpoint: accuracy.checkpoint,
            attack: accuracy.attack.clone(),
            mean,
            sd: (finished.len() > 1).then(|| (squares / (finished.len() - 1) as f64).sqrt()),
        }
    };
    first.accuracy.iter().enumerate().map(spread).collect()
}

impl Spread {
    fn percent(&self) -> String {
        match self.sd {
            Some(sd) => format!("{:.1} ± {:.1}", 100.0 * self.mean, 100.0 * sd),
            None => format!("{:.1}", 100.0 * self.mean),
        }
    }
}

fn count_of(count: Option<Count>) -> String {
    count.map_or("-".to_string(), |Count { count, of }| format!("{count} of {of}"))
}

fn aligned(lines: &[Vec<String>]) -> String {
    let width = |column: usize| lines.iter().map(|cells| cells[column].chars().count()).max().unwrap_or(0);
    let row = |cells: &Vec<String>| {
        let cells = cells.iter().enumerate().map(|(column, cell)| match column {
            0 => format!("{cell:<0$}", width(0)),
            _ => format!("{cell:>0$}", width(column)),
        });
        format!("| {} |", cells.collect::<Vec<_>>().join(" | "))
    };
    let ruler = (0..lines[0].len()).map(|column| match column {
        0 => "-".repeat(width(0)),
        _ => "-".repeat(width(column) - 1) + ":",
    });
    let ruler = row(&ruler.collect());
    let mut rows = lines.iter().map(row);
    let head = rows.next().unwrap_or_default();
    [head, ruler].into_iter().chain(rows).collect::<Vec<_>>().join("\n")
}
