//! Results of four times the memory limit, spilled to disk, against what `dd` writes of the same bytes to the same
//! disk in the same run. `cargo bench --bench spill -- [DIRECTORY]` runs it, and `benches/README.md` keeps its
//! figures.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use rankine::{
    LocalCluster, Result, ReturnWhen, Settings,
    array::Chunk,
    blocking::Client,
    settings::{MemoryLimit, Threshold},
};

const LIMIT: u64 = 256 << 20;
const ROUNDS: usize = 5;

/// What results consist of.
#[derive(Clone, Copy)]
enum Numbers {
    /// Noise, which no compression makes smaller.
    Noise,
    /// Measurements with few digits: they get much smaller.
    Smooth,
}

fn number(numbers: Numbers, i: u64, j: u64) -> u64 {
    match numbers {
        Numbers::Noise => {
            let z = (i << 32 | j).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9)
        }
        Numbers::Smooth => (i + j / 1000) % 1000,
    }
}

fn noise(i: u64, count: u64) -> Chunk<u64> {
    chunk(Numbers::Noise, i, count)
}

fn smooth(i: u64, count: u64) -> Chunk<u64> {
    chunk(Numbers::Smooth, i, count)
}

fn chunk(numbers: Numbers, i: u64, count: u64) -> Chunk<u64> {
    let all = (0..count).map(|j| number(numbers, i, j)).collect();
    Chunk::from_vec(all, &[count as usize]).expect("the shape is the vector's length")
}

fn total(chunk: Chunk<u64>) -> u64 {
    chunk.as_slice().map_or(0, |all| all.iter().fold(0, |sum, x| sum.wrapping_add(*x)))
}

/// The bytes of the files below a directory.
fn on_disk(place: &Path) -> u64 {
    let inside = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let files = inside(place.to_owned()).flat_map(inside);
    files.filter_map(|file| fs::metadata(file).ok()).map(|metadata| metadata.len()).sum()
}

const MIB: f64 = (1u64 << 20) as f64;

/// MiB/s at which results leave memory while four times the limit is made, and at which they come back.
fn spill(place: &Path, numbers: Numbers, size: u64) -> Result<[f64; 2]> {
    let mut settings = Settings::default();
    settings.memory_limit = MemoryLimit::Bytes(LIMIT);
    settings.memory_spill = Threshold(None);
    settings.local_directory = Some(place.to_owned());
    let cluster = LocalCluster::builder().workers(1).threads(1).settings(settings).start()?;
    let client = Client::from(cluster.client()?);
    let make = match numbers {
        Numbers::Noise => noise,
        Numbers::Smooth => smooth,
    };
    let count = 4 * LIMIT / size;
    let start = Instant::now();
    let held: Vec<_> = match numbers {
        Numbers::Noise => client.starmap(noise, (0..count).map(|i| (i, size / 8))),
        Numbers::Smooth => client.starmap(smooth, (0..count).map(|i| (i, size / 8))),
    };
    client.wait(&held, ReturnWhen::AllCompleted, None)?;
    // What is still in memory is at most what the limit lets stay there.
    let left = 4.0 * LIMIT as f64 - LIMIT as f64 * 0.8;
    let out = left / MIB / start.elapsed().as_secs_f64();
    assert!(matches!(numbers, Numbers::Smooth) || on_disk(place) as f64 > left * 0.95, "they are on disk");
    let start = Instant::now();
    let totals = client.gather(client.map(total, &held))?;
    let back = 4.0 * LIMIT as f64 / MIB / start.elapsed().as_secs_f64();
    assert_eq!(totals[3], total(make(3, size / 8)));
    Ok([out, back])
}

/// MiB/s that `dd` writes, until the disk has it.
fn dd(place: &Path, size: u64) -> f64 {
    let file = place.join("dd");
    let source = place.join("source");
    let blocks = (4 * LIMIT / size).to_string();
    let mut command = Command::new("dd");
    command.arg(format!("if={}", source.display())).arg(format!("of={}", file.display()));
    command.args([&format!("bs={size}"), &format!("count={blocks}"), "conv=fdatasync", "status=none"]);
    let start = Instant::now();
    assert!(command.status().is_ok_and(|status| status.success()), "dd works");
    let rate = 4.0 * LIMIT as f64 / MIB / start.elapsed().as_secs_f64();
    let _ = fs::remove_file(file);
    rate
}

fn main() -> Result<()> {
    let below =
        env::args().skip(1).find(|word| !word.starts_with('-')).map_or_else(env::temp_dir, PathBuf::from);
    let place = tempfile::tempdir_in(&below).expect("a directory can be made there");
    let source: Vec<u8> =
        (0..4 * LIMIT / 8).flat_map(|j| number(Numbers::Noise, 1, j).to_le_bytes()).collect();
    fs::write(place.path().join("source"), source).expect("the disk takes the bytes");
    println!(
        "{} MiB of results, {} MiB of memory, in {}; MiB/s",
        (4 * LIMIT) >> 20,
        LIMIT >> 20,
        below.display()
    );
    println!("of each | dd | noise out | back | of dd | smooth out | back | of dd");
    for size in [1 << 20, 16 << 20] {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let spilled = tempfile::tempdir_in(&below).expect("a directory can be made there");
            let (bare, noise) = (dd(place.path(), size), spill(spilled.path(), Numbers::Noise, size)?);
            let smooth = spill(spilled.path(), Numbers::Smooth, size)?;
            rounds.push([bare, noise[0], noise[1], noise[0] / bare, smooth[0], smooth[1], smooth[0] / bare]);
        }
        let of = |i: usize| {
            let mut all: Vec<f64> = rounds.iter().map(|round: &[f64; 7]| round[i]).collect();
            all.sort_unstable_by(f64::total_cmp);
            all[all.len() / 2]
        };
        println!(
            "{} MiB | {:.0} | {:.0} | {:.0} | {:.0} % | {:.0} | {:.0} | {:.0} %",
            size >> 20,
            of(0),
            of(1),
            of(2),
            100.0 * of(3),
            of(4),
            of(5),
            100.0 * of(6)
        );
    }
    Ok(())
}
