//! The standardised anomaly of a `.npy` file: `(x - mean) / std` at each location, over time (axis 0).
//!
//!     cargo run --release --example anomaly -- [FILE.npy] [-o OUT.npy] [--shape 365,180,360]
//!         [--workers N] [--threads N] [--processes N]
//!
//! The file is mapped, never loaded: each task maps it for itself and views its block of it. Workers
//! write their blocks of the result, so that neither need fit into memory.

use std::{
    fs, io,
    ops::Range,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use futures::{Stream, StreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use ndarray::{Array, ArrayD, ArrayViewD, Axis, Zip};
use rand::{Rng, SeedableRng};
use rankine::{
    Client, Error, Result, TaskFuture,
    array::{Chunk, Element, NpyError, NpyFile, Order, create_npy, write_npy},
    parse_bytes,
};

const HELP: &str = "\
anomaly [FILE.npy] [-o OUT.npy] [--mean MEAN.npy] [--std STD.npy] [--force] [--chunk BYTES]
        [--shape 365,180,360] [--dtype float32|float64]
        [--workers N] [--threads N] [--processes N] [--memory-limit BYTES]

Computes (x - mean) / std of every location of FILE over time, its first axis, and writes it to OUT
(FILE_anomaly.npy), with the type of FILE and in its order. FILE is what numpy.save writes of float32
or float64. It is cut into blocks of CHUNK bytes (4MiB), so that it may be bigger than memory. All
workers must see both files.

  --mean, --std     write these as well, as float64
  --force           overwrite what is there
  --shape, --dtype  without FILE, one of this shape is made up and, with the result, removed again
                    unless -o says where to keep the result";

/// The fewest steps of time in a block of many: a sum is then at most 1/32 of what it is of.
const STEPS: usize = 64;
/// How many sums are added up at a time.
const FAN_IN: usize = 16;

/// A part of an array: a range along each axis, time first.
type Block = Vec<Range<usize>>;

/// What files are made of; calculations are in f64.
trait Float: Element + Into<f64> {
    fn nearest(number: f64) -> Self;
}

impl Float for f32 {
    fn nearest(number: f64) -> Self {
        number as f32
    }
}

impl Float for f64 {
    fn nearest(number: f64) -> Self {
        number
    }
}

// The tasks.

/// The sum over time of each location in a block.
fn sum<T: Float>(path: PathBuf, block: Block) -> Result<Chunk<f64>, NpyError> {
    let part = NpyFile::open(path)?.block::<T>(&block)?;
    let nothing = ArrayD::zeros(&part.shape()[1..]);
    Ok(over_time(part.view(), nothing.view(), |x, _| x))
}

/// The sum over time of the squared deviations from the mean.
fn sum_of_squares<T: Float>(
    path: PathBuf,
    block: Block,
    mean: Arc<Chunk<f64>>,
) -> Result<Chunk<f64>, NpyError> {
    let part = NpyFile::open(path)?.block::<T>(&block)?;
    Ok(over_time(part.view(), mean.view(), |x, mean| (x - mean) * (x - mean)))
}

fn add(sums: Vec<Arc<Chunk<f64>>>) -> Chunk<f64> {
    let mut total = Sum::zeros(sums[0].shape());
    for sum in sums {
        Zip::from(&mut total.sum)
            .and(&mut total.lost)
            .and(sum.view())
            .for_each(|sum, lost, &x| put(sum, lost, x));
    }
    total.finish()
}

fn divide(sum: Arc<Chunk<f64>>, times: usize) -> Chunk<f64> {
    Chunk::from_array(sum.view().mapv(|sum| sum / times as f64))
}

fn root(variance: Arc<Chunk<f64>>) -> Chunk<f64> {
    Chunk::from_array(variance.view().mapv(f64::sqrt))
}

/// Writes the anomaly of a block into the result.
fn anomaly<T: Float>(
    path: PathBuf,
    block: Block,
    mean: Arc<Chunk<f64>>,
    std: Arc<Chunk<f64>>,
    result: PathBuf,
) -> Result<(), NpyError> {
    let part = NpyFile::open(path)?.block::<T>(&block)?;
    let anomaly = Zip::from(part.view())
        .and_broadcast(mean.view())
        .and_broadcast(std.view())
        .map_collect(|&x, mean, std| T::nearest((x.into() - mean) / std));
    write_npy(&result, &starts(&block), anomaly.view())
}

/// Writes the means or standard deviations of the locations of a block.
fn save(path: PathBuf, block: Block, numbers: Arc<Chunk<f64>>) -> Result<(), NpyError> {
    write_npy(&path, &starts(&block[1..]), numbers.view())
}

/// Writes made-up temperatures: a year's course and some weather.
fn make_up<T: Float>(path: PathBuf, block: Block) -> Result<(), NpyError> {
    let seed = block.iter().fold(1, |seed: u64, range| seed.wrapping_mul(1_000_003) + range.start as u64);
    let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
    let shape: Vec<usize> = block.iter().map(ExactSizeIterator::len).collect();
    let numbers = ArrayD::from_shape_fn(shape, |place| {
        let day = (block[0].start + place[0]) as f64;
        let course = (day * std::f64::consts::TAU / 365.0).cos();
        T::nearest(285.0 - 10.0 * course + random.random_range(-3.0..3.0))
    });
    write_npy(&path, &starts(&block), numbers.view())
}

// What the tasks are made of.

fn starts(block: &[Range<usize>]) -> Vec<usize> {
    block.iter().map(|range| range.start).collect()
}

/// Sums of which rounding takes nothing away: what each addition loses is kept beside it (Knuth's
/// two-sum), so that the result does not depend on how the file is cut.
struct Sum {
    sum: ArrayD<f64>,
    lost: ArrayD<f64>,
}

impl Sum {
    fn zeros(shape: &[usize]) -> Self {
        Self { sum: Array::zeros(shape), lost: Array::zeros(shape) }
    }

    fn finish(mut self) -> Chunk<f64> {
        Zip::from(&mut self.sum).and(&self.lost).for_each(|sum, lost| {
            // Of an infinite sum nothing was lost; the difference of infinities says otherwise.
            if sum.is_finite() {
                *sum += lost;
            }
        });
        Chunk::from_array(self.sum)
    }
}

fn put(sum: &mut f64, lost: &mut f64, x: f64) {
    let new = *sum + x;
    let taken = new - *sum;
    *lost += (*sum - (new - taken)) + (x - taken);
    *sum = new;
}

/// Sums `term(x, mean)` over time: in long runs, however the numbers lie.
fn over_time<T: Float>(
    part: ArrayViewD<T>,
    mean: ArrayViewD<f64>,
    term: impl Fn(f64, f64) -> f64,
) -> Chunk<f64> {
    let mut total = Sum::zeros(mean.shape());
    let times_together = part.strides().iter().all(|stride| *stride >= part.strides()[0]);
    if times_together || mean.len() < 16 {
        let sums = Zip::from(&mut total.sum).and(&mut total.lost).and(&mean);
        sums.and(part.lanes(Axis(0))).for_each(|sum, lost, &mean, times| {
            times.iter().for_each(|&x| put(sum, lost, term(x.into(), mean)));
        });
    } else {
        for places in part.outer_iter() {
            let sums = Zip::from(&mut total.sum).and(&mut total.lost).and(&mean);
            sums.and(places).for_each(|sum, lost, &mean, &x| put(sum, lost, term(x.into(), mean)));
        }
    }
    total.finish()
}

/// The lengths of blocks of about as many bytes. In each, as much as possible lies together in the
/// file, but it has some steps of time.
fn block_shape<T: Float>(shape: &[usize], order: Order, bytes: u64) -> Vec<usize> {
    let steps = shape[0].min(STEPS);
    let mut room = (bytes as usize / size_of::<T>() / steps).max(1);
    let mut lengths = vec![1; shape.len()];
    let mut fill = |axis: usize| {
        room *= if axis == 0 { steps } else { 1 };
        lengths[axis] = shape[axis].min(room);
        room = (room / lengths[axis]).max(1);
    };
    match order {
        Order::C => (0..shape.len()).rev().for_each(&mut fill),
        Order::Fortran => (0..shape.len()).for_each(&mut fill),
    }
    lengths
}

/// Cuts `shape` into blocks; all times of some locations, then those of the next.
fn cut(shape: &[usize], lengths: &[usize]) -> Vec<Vec<Block>> {
    let pieces = |axis: usize| {
        (0..shape[axis])
            .step_by(lengths[axis])
            .map(move |start| start..(start + lengths[axis]).min(shape[axis]))
    };
    let mut tiles: Vec<Block> = vec![Vec::new()];
    for axis in 1..shape.len() {
        tiles =
            tiles.iter().flat_map(|tile| pieces(axis).map(|piece| [&tile[..], &[piece]].concat())).collect();
    }
    tiles.iter().map(|tile| pieces(0).map(|times| [&[times], &tile[..]].concat()).collect()).collect()
}

/// A tree of sums over blocks, each submitted before the sums that do not need it: few wait at a time.
fn tree(
    client: &Client,
    blocks: &[Block],
    leaf: &mut impl FnMut(&Block) -> TaskFuture<Chunk<f64>>,
) -> TaskFuture<Chunk<f64>> {
    if let [block] = blocks {
        return leaf(block);
    }
    let sums: Vec<_> =
        blocks.chunks(blocks.len().div_ceil(FAN_IN)).map(|blocks| tree(client, blocks, leaf)).collect();
    client.submit(add, (sums,))
}

/// Submits the whole graph and waits for it.
async fn compute<T: Float>(
    client: &Client,
    path: &Path,
    times: usize,
    tiles: &[Vec<Block>],
    results: &Results,
) -> Result<()> {
    let (mut sums, mut written) = (Vec::new(), Vec::new());
    for blocks in tiles {
        let total = tree(client, blocks, &mut |block| {
            let future = client.submit(sum::<T>, (path.to_owned(), block.clone()));
            sums.push(future.clone());
            future
        });
        let mean = client.submit(divide, (total, times));
        let total = tree(client, blocks, &mut |block| {
            let future = client.submit(sum_of_squares::<T>, (path.to_owned(), block.clone(), &mean));
            sums.push(future.clone());
            future
        });
        let std = client.submit(root, (client.submit(divide, (total, times)),));
        for block in blocks {
            let arguments = (path.to_owned(), block.clone(), &mean, &std, results.anomaly.path());
            written.push(client.submit(anomaly::<T>, arguments));
        }
        for (result, numbers) in [(&results.mean, &mean), (&results.std, &std)] {
            if let Some(result) = result {
                written.push(client.submit(save, (result.path(), blocks[0].clone(), numbers)));
            }
        }
    }
    let length = sums.len() + written.len();
    // The sums are here for the bar alone, and given up one by one; who needs them keeps them.
    let sums = client.as_completed(sums).map(|_| None);
    let written = client.as_completed(written).map(Some);
    watch("anomaly", length, stream::select(sums, written)).await
}

/// Waits for tasks, showing how many are done; of some the outcome matters.
async fn watch(
    what: &'static str,
    length: usize,
    mut done: impl Stream<Item = Option<TaskFuture<()>>> + Unpin,
) -> Result<()> {
    // Drawn only where there is a terminal.
    let style = ProgressStyle::with_template("{prefix:10} {bar:40} {pos}/{len} tasks, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(length as u64).with_style(style).with_prefix(what);
    while let Some(done) = done.next().await {
        if let Some(done) = done {
            done.await?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

#[rankine::main]
async fn main(client: Client) -> Result<()> {
    let Some(choice) = Choice::from_args(rankine::args())? else {
        println!("{HELP}");
        return Ok(());
    };
    // Dropped, and with it removed, however this ends.
    let temporary;
    let path = match &choice.file {
        Some(file) => fs::canonicalize(file).map_err(failed(&format!("open {}", file.display())))?,
        None => {
            temporary = tempfile::tempdir().map_err(failed("make a temporary directory"))?;
            let path = temporary.path().join("made_up.npy");
            match choice.double {
                true => make_file::<f64>(&client, &path, &choice).await?,
                false => make_file::<f32>(&client, &path, &choice).await?,
            }
            path
        }
    };
    let input = NpyFile::open(&path).map_err(explained)?;
    match input.element() {
        "float64" => run::<f64>(&client, &choice, &path, &input).await,
        _ => run::<f32>(&client, &choice, &path, &input).await,
    }
}

async fn run<T: Float>(client: &Client, choice: &Choice, path: &Path, input: &NpyFile) -> Result<()> {
    let (shape, shown) = (input.shape(), path.display());
    if shape.is_empty() || shape.contains(&0) {
        return Err(Error::Usage(format!("{shown} has no times to average over: its shape is {shape:?}")));
    }
    let tiles = cut(shape, &block_shape::<T>(shape, input.order(), choice.chunk));
    let results = Results::create::<T>(choice, path, input)?;
    let bytes = shape.iter().product::<usize>() as f64 * size_of::<T>() as f64;
    println!("{shown}: {} of shape {shape:?}, {:.1} MB", T::NAME, bytes / 1e6);
    let threads: u32 = client.nthreads().await?.values().sum();
    println!("blocks: {}, threads: {threads}", tiles.iter().map(Vec::len).sum::<usize>());
    let start = Instant::now();
    compute::<T>(client, path, shape[0], &tiles, &results).await?;
    let time = start.elapsed().as_secs_f64();
    println!("{time:.3} s, {:.0} MB/s: read three times and written once", 4.0 * bytes / 1e6 / time);
    results.keep(choice)
}

/// Makes a file up, written by the workers.
async fn make_file<T: Float>(client: &Client, path: &Path, choice: &Choice) -> Result<()> {
    let (shape, order) = (&choice.shape, Order::C);
    create_npy::<T>(path, shape, order).map_err(explained)?;
    if shape.contains(&0) {
        return Ok(());
    }
    let tiles = cut(shape, &block_shape::<T>(shape, order, choice.chunk));
    let blocks = tiles.into_iter().flatten().map(|block| (path.to_owned(), block));
    let written = client.starmap(make_up::<T>, blocks);
    watch("making up", written.len(), client.as_completed(written).map(Some)).await
}

/// The files being written; they get their names when they are whole.
struct Results {
    anomaly: Output,
    mean: Option<Output>,
    std: Option<Output>,
}

impl Results {
    fn create<T: Float>(choice: &Choice, path: &Path, input: &NpyFile) -> Result<Self> {
        let output = match (&choice.output, &choice.file) {
            (Some(output), _) => output.clone(),
            (None, Some(file)) => {
                let stem = file.file_stem().unwrap_or_default().to_string_lossy();
                file.with_file_name(format!("{stem}_anomaly.npy"))
            }
            (None, None) => path.with_file_name("anomaly.npy"),
        };
        let (shape, order) = (input.shape(), input.order());
        let per_place = |name: &Option<PathBuf>| {
            let create = |name| Output::create::<f64>(name, &shape[1..], Order::C, path, choice.force);
            name.as_deref().map(create).transpose()
        };
        Ok(Self {
            anomaly: Output::create::<T>(&output, shape, order, path, choice.force)?,
            mean: per_place(&choice.mean)?,
            std: per_place(&choice.std)?,
        })
    }

    fn keep(self, choice: &Choice) -> Result<()> {
        if choice.file.is_none() && choice.output.is_none() {
            println!("the anomaly is removed again; -o OUT.npy keeps it");
        } else {
            println!("anomaly  {}", self.anomaly.keep(choice.force)?.display());
        }
        for (what, result) in [("mean", self.mean), ("std", self.std)] {
            if let Some(result) = result {
                println!("{what:8} {}", result.keep(choice.force)?.display());
            }
        }
        Ok(())
    }
}

/// A file on its way: removed unless it is kept.
struct Output {
    unfinished: tempfile::TempPath,
    name: PathBuf,
}

impl Output {
    fn create<T: Element>(
        name: &Path,
        shape: &[usize],
        order: Order,
        input: &Path,
        force: bool,
    ) -> Result<Self> {
        let shown = name.display();
        let name = std::path::absolute(name).map_err(failed(&format!("find {shown}")))?;
        let same = |found: fs::Metadata| {
            fs::metadata(input).is_ok_and(|input| (input.dev(), input.ino()) == (found.dev(), found.ino()))
        };
        if let Ok(found) = fs::metadata(&name) {
            if same(found) {
                return Err(Error::Usage(format!(
                    "{shown} is what is read: name another file for the result"
                )));
            }
            if !force {
                return Err(Error::Usage(format!(
                    "{shown} exists: name another file, or overwrite it with --force"
                )));
            }
        }
        let directory = name.parent().unwrap_or(Path::new("/"));
        let unfinished = tempfile::Builder::new()
            .prefix(".anomaly-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666))
            .tempfile_in(directory)
            .map_err(failed(&format!("create {shown}")))?
            .into_temp_path();
        create_npy::<T>(&unfinished, shape, order).map_err(explained)?;
        Ok(Self { unfinished, name })
    }

    fn path(&self) -> PathBuf {
        self.unfinished.to_path_buf()
    }

    fn keep(self, force: bool) -> Result<PathBuf> {
        let Self { unfinished, name } = self;
        let kept = if force { unfinished.persist(&name) } else { unfinished.persist_noclobber(&name) };
        kept.map_err(|e| failed(&format!("create {}", name.display()))(e.error))?;
        Ok(name)
    }
}

/// What the command line asks for.
struct Choice {
    file: Option<PathBuf>,
    output: Option<PathBuf>,
    mean: Option<PathBuf>,
    std: Option<PathBuf>,
    force: bool,
    chunk: u64,
    shape: Vec<usize>,
    double: bool,
}

impl Choice {
    fn from_args(words: Vec<String>) -> Result<Option<Self>> {
        let mut choice = Self {
            file: None,
            output: None,
            mean: None,
            std: None,
            force: false,
            chunk: 4 << 20,
            shape: vec![365, 180, 360],
            double: false,
        };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let mut value =
                || words.next().ok_or_else(|| Error::Usage(format!("{word} needs a value\n\n{HELP}")));
            match &*word {
                "-h" | "--help" => return Ok(None),
                "-o" => choice.output = Some(value()?.into()),
                "--mean" => choice.mean = Some(value()?.into()),
                "--std" => choice.std = Some(value()?.into()),
                "--force" => choice.force = true,
                "--chunk" => choice.chunk = parse_bytes(&value()?)?,
                "--shape" => {
                    let text = value()?;
                    choice.shape =
                        text.split(',').map(str::parse).collect::<Result<_, _>>().map_err(|_| {
                            Error::Usage(format!("--shape takes lengths like 365,180,360, not `{text}`"))
                        })?;
                }
                "--dtype" => {
                    choice.double = match &*value()? {
                        "float32" => false,
                        "float64" => true,
                        other => {
                            return Err(Error::Usage(format!(
                                "--dtype is float32 or float64, not `{other}`"
                            )));
                        }
                    };
                }
                _ if word.starts_with('-') || choice.file.is_some() => {
                    return Err(Error::Usage(format!("anomaly does not know `{word}`\n\n{HELP}")));
                }
                _ => choice.file = Some(word.into()),
            }
        }
        Ok(Some(choice))
    }
}

fn failed(attempt: &str) -> impl FnOnce(io::Error) -> Error {
    let attempt = attempt.to_owned();
    move |source| Error::Io { attempt, source }
}

fn explained(error: NpyError) -> Error {
    Error::Usage(error.to_string())
}
