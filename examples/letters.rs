//! Sorts and counts the letters of every file in a directory: the plain loop against the cluster.
//!
//!     cargo run --release --example letters -- [DIR] [--files N] [--size BYTES]
//!         [--workers N] [--threads N] [--processes N]
//!
//! Without DIR, files of random letters are written into a temporary directory and removed afterwards.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use rand::{Rng, SeedableRng};
use rankine::{Client, Error, Result, parse_bytes};
use serde::{Deserialize, Serialize};

const HELP: &str = "\
letters [DIR] [--files N] [--size BYTES] [--workers N] [--threads N] [--processes N]

Sorts and counts the letters of every file in DIR, in a plain loop and on a cluster, and compares.
Without DIR, N files (20) of SIZE random letters (2MB) are written and removed afterwards.";

/// What a file holds, and where its time went.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Letters {
    counts: BTreeMap<u8, u64>,
    bytes: u64,
    reading: Duration,
    sorting: Duration,
}

/// Reads a file, sorts its bytes, and counts each letter.
fn count_letters(path: PathBuf) -> io::Result<Letters> {
    let start = Instant::now();
    let mut data = fs::read(&path)
        .map_err(|e| io::Error::new(e.kind(), format!("cannot read {}: {e}", path.display())))?;
    let reading = start.elapsed();
    let start = Instant::now();
    data.sort();
    let counts = data
        .chunk_by(|a, b| a == b)
        .filter(|run| run[0].is_ascii_alphabetic())
        .map(|run| (run[0], run.len() as u64))
        .collect();
    Ok(Letters { counts, bytes: data.len() as u64, reading, sorting: start.elapsed() })
}

#[rankine::main]
async fn main(client: Client) -> Result<()> {
    let Some(choice) = Choice::from_args(rankine::args())? else {
        println!("{HELP}");
        return Ok(());
    };
    // Dropped, and with it removed, however this ends.
    let temporary;
    let directory = match &choice.directory {
        Some(directory) => directory.clone(),
        None => {
            temporary = tempfile::tempdir().map_err(failed("make a temporary directory"))?;
            write_random(temporary.path(), choice.files, choice.size)?;
            temporary.path().to_owned()
        }
    };
    let mut files = Vec::new();
    list(&directory, &mut files)?;
    files.sort();
    if files.is_empty() {
        return Err(Error::Usage(format!("there are no files in {}", directory.display())));
    }

    // Reading all of them once keeps the disk out of the comparison.
    let bytes: u64 = files.iter().filter_map(|path| fs::read(path).ok()).map(|data| data.len() as u64).sum();
    println!("{} files, {:.1} MB", files.len(), bytes as f64 / 1e6);

    let bar = progress("plain loop", files.len());
    let start = Instant::now();
    let mut plain = Vec::new();
    for path in &files {
        plain.push(count_letters(path.clone()).map_err(failed("count letters"))?);
        bar.inc(1);
    }
    let plain_time = start.elapsed();
    bar.finish_and_clear();

    let bar = progress("cluster", files.len());
    let start = Instant::now();
    let futures = client.map(count_letters, files.clone());
    let mut completed = client.as_completed(futures.iter().cloned());
    while completed.next().await.is_some() {
        bar.inc(1);
    }
    let results = client.gather(&futures).await?;
    let cluster_time = start.elapsed();
    bar.finish_and_clear();

    for ((path, ours), theirs) in files.iter().zip(&results).zip(&plain) {
        if ours.counts != theirs.counts {
            return Err(Error::Usage(format!(
                "the counts of {} differ: did the file change?",
                path.display()
            )));
        }
    }
    let total: u64 = results.iter().flat_map(|letters| letters.counts.values()).sum();
    let sum = |part: fn(&Letters) -> Duration| results.iter().map(part).sum::<Duration>().as_secs_f64();
    let (reading, sorting) = (sum(|l| l.reading), sum(|l| l.sorting));
    let threads: u32 = client.nthreads().await?.values().sum();
    let elapsed = cluster_time.as_secs_f64();
    println!("{total} letters, the same letter by letter");
    println!("plain loop  {:8.3} s", plain_time.as_secs_f64());
    println!(
        "cluster     {elapsed:8.3} s on {threads} threads: {:.2} times as fast",
        plain_time.as_secs_f64() / elapsed
    );
    println!(
        "of {:.3} s of threads' time: reading {reading:.3} s, sorting {sorting:.3} s, else {:.3} s",
        elapsed * f64::from(threads),
        (elapsed * f64::from(threads) - reading - sorting).max(0.0)
    );
    Ok(())
}

/// What the command line asks for.
struct Choice {
    directory: Option<PathBuf>,
    files: usize,
    size: u64,
}

impl Choice {
    fn from_args(words: Vec<String>) -> Result<Option<Self>> {
        let mut choice = Self { directory: None, files: 20, size: 2_000_000 };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let mut value =
                || words.next().ok_or_else(|| Error::Usage(format!("{word} needs a value\n\n{HELP}")));
            match &*word {
                "-h" | "--help" => return Ok(None),
                "--files" => {
                    let text = value()?;
                    choice.files = text
                        .parse()
                        .map_err(|_| Error::Usage(format!("--files takes a whole number, not `{text}`")))?;
                }
                "--size" => choice.size = parse_bytes(&value()?)?,
                _ if word.starts_with('-') || choice.directory.is_some() => {
                    return Err(Error::Usage(format!("letters does not know `{word}`\n\n{HELP}")));
                }
                _ => choice.directory = Some(word.into()),
            }
        }
        Ok(Some(choice))
    }
}

fn failed(attempt: &str) -> impl FnOnce(io::Error) -> Error {
    let attempt = attempt.to_owned();
    move |source| Error::Io { attempt, source }
}

fn progress(what: &'static str, length: usize) -> ProgressBar {
    // Drawn only where there is a terminal.
    let style = ProgressStyle::with_template("{prefix:10} {bar:40} {pos}/{len} files, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length as u64).with_style(style).with_prefix(what)
}

fn write_random(directory: &Path, files: usize, size: u64) -> Result<()> {
    let bar = progress("writing", files);
    let mut random = rand::rngs::SmallRng::seed_from_u64(1);
    for index in 0..files {
        let letters: Vec<u8> = (0..size)
            .map(|_| {
                let letter = random.random_range(0..52u8);
                if letter < 26 { b'a' + letter } else { b'A' + letter - 26 }
            })
            .collect();
        let path = directory.join(format!("file_{index}.txt"));
        fs::write(&path, letters).map_err(failed(&format!("write {}", path.display())))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

/// All files below a directory.
fn list(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let attempt = format!("list the files in {}", directory.display());
    for entry in fs::read_dir(directory).map_err(failed(&attempt))? {
        let entry = entry.map_err(failed(&attempt))?;
        let kind = entry.file_type().map_err(failed(&attempt))?;
        if kind.is_dir() {
            list(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}
