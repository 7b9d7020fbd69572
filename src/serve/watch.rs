//! A folder whose images are inspected as they come, each once: also those that came while nobody looked, and those that were
//! being inspected when the power failed. What the results file holds was inspected; nothing else is remembered.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

use axum::body::Bytes;
use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::model::{Answer, Input, Refusal};
use super::results::{Results, now};
use super::{Part, Service, verdict_name};
use crate::bail;
use crate::data::walk::{Kind, is_ignored, visible};
use crate::error::{At, Error, Result};
use crate::files::{self, printable};
use crate::observer;

/// Files that are inspected together.
const BATCH: usize = 64;
/// Between two looks at a file that may still be written.
const LOOK: Duration = Duration::from_millis(500);
/// Between two searches of the folder for what no event told of.
const SEARCH: Duration = Duration::from_secs(30);
/// What is waited for where the queue is full.
const BUSY: Duration = Duration::from_millis(20);
/// How names of images end.
const ENDINGS: [&str; 7] = ["png", "jpg", "jpeg", "bmp", "tif", "tiff", "webp"];

/// What is watched.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    /// The folder, with the folders in it.
    pub folder: PathBuf,
    /// Where inspected files are moved: into `pass`, `reject`, `unclear`, `none` or `unreadable`.
    pub move_to: Option<PathBuf>,
    /// The folder is searched this often, and the system is not asked for events: shares of other machines have none.
    pub poll: Option<Duration>,
}

/// What tells a file from another that has had its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    size: u64,
    /// Nanoseconds since 1970.
    modified: u64,
}

/// A line about a file.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    outcome: Outcome<'a>,
    file: Stamp,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Outcome<'a> {
    Inspected(&'a Part),
    Unreadable { time: String, path: &'a str, error: &'a str },
}

/// What is read of it again.
#[derive(Deserialize)]
struct Done {
    path: String,
    file: Stamp,
    verdict: Option<String>,
    error: Option<String>,
}

/// A folder with what is known of its files.
pub struct Watched {
    options: WatchOptions,
    /// What was inspected and is still there, with where it belongs.
    done: HashMap<PathBuf, (Stamp, String)>,
    /// What may still be written, as it was seen last, and when.
    pending: BTreeMap<PathBuf, (Stamp, Instant)>,
}

/// What to do next.
enum Event {
    /// A file is complete.
    Complete(PathBuf),
    /// Something happened to a file.
    Touched(PathBuf),
    /// Events were lost.
    Search,
}

fn is_image(path: &Path) -> bool {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()))
}

fn stamp(path: &Path) -> Option<Stamp> {
    let data = path.metadata().ok().filter(std::fs::Metadata::is_file)?;
    let modified = data.modified().ok()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Some(Stamp { size: data.len(), modified: modified.as_nanos() as u64 })
}

fn search(folder: &Path, found: &mut Vec<(PathBuf, Stamp)>) {
    // A folder that is gone or locked is looked at again.
    for entry in visible(folder).unwrap_or_default() {
        match entry.kind {
            Kind::Folder => search(&entry.path, found),
            Kind::LinkToFolder => {}
            Kind::File | Kind::Other => {
                if let Some(stamp) = stamp(&entry.path).filter(|_| is_image(&entry.path)) {
                    found.push((entry.path, stamp));
                }
            }
        }
    }
}

impl Watched {
    /// A folder, with what the results say was inspected of it.
    ///
    /// # Errors
    /// The folder is not there, there are no results, or they or the folder to move to lie inside the folder.
    pub fn open(mut options: WatchOptions, results: Option<&Results>) -> Result<Self> {
        if !options.folder.is_dir() {
            bail!("--watch {}: no folder", options.folder.display());
        }
        // Names in the results are the same wherever the service is started.
        options.folder = options.folder.canonicalize().at("watch", &options.folder)?;
        let WatchOptions { folder, move_to, .. } = &options;
        let Some(results) = results else {
            bail!("--watch: needs --results, by which it knows what was inspected");
        };
        let inside =
            |path: &Path| -> Result<bool> { Ok(path.canonicalize().at("find", path)?.starts_with(folder)) };
        if inside(results.path())? {
            bail!("--results {}: lies in the folder that is watched", results.path().display());
        }
        if let Some(move_to) = move_to {
            std::fs::create_dir_all(move_to).at("make", move_to)?;
            if inside(move_to)? {
                bail!("--move-to {}: lies in the folder that is watched", move_to.display());
            }
        }
        let mut watched = Self { options, done: HashMap::new(), pending: BTreeMap::new() };
        watched.read(results)?;
        Ok(watched)
    }

    /// Remembers which files of the folder the results hold.
    fn read(&mut self, results: &Results) -> Result<()> {
        let mut there = Vec::new();
        search(&self.options.folder, &mut there);
        let there: HashMap<String, (PathBuf, Stamp)> =
            there.into_iter().map(|(path, stamp)| (printable(&path), (path, stamp))).collect();
        for file in results.files()? {
            let lines = BufReader::new(std::fs::File::open(&file).at("read", &file)?).split(b'\n');
            for line in lines {
                // Lines of other inputs have no file; the last one may have been cut off.
                let Ok(done) = serde_json::from_slice::<Done>(&line.at("read", &file)?) else { continue };
                if let Some((path, _)) = there.get(&done.path).filter(|(_, stamp)| *stamp == done.file) {
                    let place = match (done.error, done.verdict) {
                        (Some(_), _) => "unreadable".to_string(),
                        (None, verdict) => verdict.unwrap_or_else(|| "none".to_string()),
                    };
                    self.done.insert(path.clone(), (done.file, place));
                }
            }
        }
        Ok(())
    }

    /// Inspects until `stop` is set.
    pub async fn run(mut self, service: Arc<Service>, stop: &'static AtomicBool) -> Result<()> {
        let (sender, mut events) = mpsc::unbounded_channel();
        let _watcher = match self.options.poll {
            Some(_) => None,
            None => Some(watcher(&self.options.folder, sender.clone())?),
        };
        for (path, (stamp, place)) in self.done.clone() {
            self.put(&path, stamp, &place);
        }
        let between = self.options.poll.unwrap_or(SEARCH);
        let mut searched: Option<Instant> = None;
        while !stop.load(Ordering::Relaxed) {
            let mut complete = Vec::new();
            if searched.is_none_or(|at| at.elapsed() >= between) {
                self.search();
                searched = Some(Instant::now());
            }
            self.settled(&mut complete);
            // An event wakes; those that came with it are taken along.
            let first = tokio::time::timeout(LOOK, async {
                if complete.is_empty() { events.recv().await } else { events.try_recv().ok() }
            });
            let mut next = first.await.ok().flatten();
            while let Some(event) = next {
                match event {
                    Event::Complete(path) => complete.extend(stamp(&path).map(|stamp| (path, stamp))),
                    Event::Touched(path) => self.touch(path),
                    Event::Search => searched = None,
                }
                next = events.try_recv().ok();
            }
            // Several events, or an event and a look, may tell of one file.
            let mut seen = HashSet::new();
            complete.retain(|(path, stamp)| {
                self.done.get(path).is_none_or(|(done, _)| done != stamp) && seen.insert(path.clone())
            });
            for batch in complete.chunks(BATCH) {
                self.inspect(&service, batch).await?;
            }
        }
        Ok(())
    }

    /// Notes a file that may still be written.
    fn touch(&mut self, path: PathBuf) {
        if let Some(stamp) = stamp(&path) {
            self.pending.insert(path, (stamp, Instant::now()));
        }
    }

    /// Looks for files that no event told of, and forgets those that are gone.
    fn search(&mut self) {
        let mut found = Vec::new();
        search(&self.options.folder, &mut found);
        let there: HashMap<&PathBuf, &Stamp> = found.iter().map(|(path, stamp)| (path, stamp)).collect();
        self.done.retain(|path, _| there.contains_key(path));
        for (path, stamp) in &found {
            let known = self.done.get(path).is_some_and(|(done, _)| done == stamp);
            if !known && !self.pending.contains_key(path) {
                self.pending.insert(path.clone(), (*stamp, Instant::now()));
            }
        }
    }

    /// Files that nobody has written between two looks, the oldest first.
    fn settled(&mut self, complete: &mut Vec<(PathBuf, Stamp)>) {
        let (between, first) = (self.options.poll.unwrap_or(LOOK), complete.len());
        self.pending.retain(|path, (seen, at)| {
            if at.elapsed() < between {
                return true;
            }
            match stamp(path) {
                None => false,
                Some(is) if is == *seen => {
                    complete.push((path.clone(), is));
                    false
                }
                Some(is) => {
                    (*seen, *at) = (is, Instant::now());
                    true
                }
            }
        });
        complete[first..].sort_by(|(one, a), (other, b)| (a.modified, one).cmp(&(b.modified, other)));
    }

    async fn inspect(&mut self, service: &Arc<Service>, batch: &[(PathBuf, Stamp)]) -> Result<()> {
        let asked: Vec<_> =
            batch.iter().map(|(path, _)| tokio::spawn(answer(service.clone(), path.clone()))).collect();
        let model = &service.models[0];
        let mut answers = Vec::new();
        for (asked, (path, stamp)) in asked.into_iter().zip(batch) {
            let answer = asked.await.map_err(|_| Error::new("--watch: inspecting ended with a panic"))?;
            // Somebody took it away before it could be read.
            let Some(answer) = answer else { continue };
            let part = match service.note(model, answer, &printable(path)) {
                Ok(mut parts) => parts.pop().ok_or_else(|| "no answer".to_string()),
                Err(Refusal::Unreadable(error) | Refusal::Failed(error)) => Err(error),
                Err(Refusal::Busy) => Err("the queue was full".to_string()),
            };
            answers.push((path, *stamp, part));
        }
        let lines: Vec<String> = answers
            .iter()
            .map(|(path, stamp, answer)| {
                let path = printable(path);
                let outcome = match answer {
                    Ok(part) => Outcome::Inspected(part),
                    Err(error) => Outcome::Unreadable { time: now(), path: &path, error },
                };
                serde_json::to_string(&Line { outcome, file: *stamp }).unwrap_or_default()
            })
            .collect();
        let keeper = service.clone();
        let kept = tokio::task::spawn_blocking(move || {
            keeper.results.as_ref().map_or(Ok(()), |results| results.append(&lines))
        });
        kept.await.map_err(|_| Error::new("--results: writing ended with a panic"))??;
        for (path, stamp, answer) in answers {
            let place = match &answer {
                Ok(part) => verdict_name(part.classification.verdict),
                Err(_) => "unreadable",
            };
            self.done.insert(path.clone(), (stamp, place.to_string()));
            self.pending.remove(path);
            self.put(path, stamp, place);
        }
        Ok(())
    }

    /// Moves a file that was inspected, if files are moved. What cannot be moved stays, and is said.
    fn put(&mut self, path: &Path, of: Stamp, place: &str) {
        let Some(move_to) = &self.options.move_to else { return };
        if stamp(path) != Some(of) {
            return;
        }
        match moved(path, &move_to.join(place)) {
            Ok(()) => _ = self.done.remove(path),
            Err(error) => observer::warn(format!("--move-to: {}: {error}", printable(path))),
        }
    }
}

/// The answer for a file; `None` where it is gone.
async fn answer(service: Arc<Service>, path: PathBuf) -> Option<std::result::Result<Answer, Refusal>> {
    let model = &service.models[0];
    let from = path.clone();
    let bytes = tokio::task::spawn_blocking(move || files::read(&from)).await.ok()?;
    let bytes = match bytes {
        Ok(bytes) => Bytes::from(bytes),
        Err(_) if !path.exists() => return None,
        Err(error) => return Some(Err(Refusal::Unreadable(error.with_flags().to_string()))),
    };
    let started = Instant::now();
    loop {
        let answer = model.answer(model.loaded(), Input::Files(vec![bytes.clone()])).await;
        if !matches!(answer, Err(Refusal::Busy)) {
            service.latency(model, started);
            return Some(answer);
        }
        tokio::time::sleep(BUSY).await;
    }
}

/// Moves a file into a folder; where one of its name is there already, with a number.
fn moved(path: &Path, folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (stem, ending) = name.rsplit_once('.').unwrap_or((&name, ""));
    let mut target = folder.join(&name);
    for number in 2.. {
        if !target.exists() {
            break;
        }
        target = folder.join(format!("{stem} ({number}).{ending}"));
    }
    if std::fs::rename(path, &target).is_ok() {
        return Ok(());
    }
    // Onto another file system.
    std::fs::copy(path, &target)?;
    std::fs::remove_file(path)
}

/// Asks the system for events of a folder.
fn watcher(folder: &Path, sender: mpsc::UnboundedSender<Event>) -> Result<RecommendedWatcher> {
    let within = folder.to_path_buf();
    // As a search finds them.
    let counts = move |path: &Path| {
        is_image(path) && !path.ancestors().take_while(|path| **path != *within).any(is_ignored)
    };
    let tell = move |event: notify::Result<notify::Event>| {
        let Ok(event) = event.map_err(|_| _ = sender.send(Event::Search)) else { return };
        if event.need_rescan() {
            _ = sender.send(Event::Search);
        }
        let Some(path) = event.paths.last().filter(|path| counts(path)).cloned() else { return };
        _ = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both)) => {
                sender.send(Event::Complete(path))
            }
            EventKind::Create(_) | EventKind::Modify(_) => sender.send(Event::Touched(path)),
            _ => Ok(()),
        };
    };
    let watch = notify::recommended_watcher(tell).and_then(|mut watcher| {
        watcher.watch(folder, RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    watch.map_err(|error| {
        Error::new(format!("--watch {}: {error}; --poll S looks without events", folder.display()))
    })
}
