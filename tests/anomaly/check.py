"""Compares the example `anomaly` with NumPy: `check.py PROGRAM DIRECTORY`.

Writes files of all kinds that the example reads, runs it on each, and compares mean, standard
deviation and anomaly with NumPy's own in longdouble: in float64 NumPy's sums over axis 0 lose more
than what is allowed here (how much is printed as well).
"""

import itertools
import pathlib
import subprocess
import sys
import warnings

import numpy as np

program, directory = sys.argv[1], pathlib.Path(sys.argv[2])
random = np.random.default_rng(1)
failures = []


def numbers(shape):
    return 280 + 15 * random.standard_normal(shape)


def files():
    """(name, array, further arguments)"""
    shapes = [(1,), (77,), (13, 7), (1, 5), (11, 1, 6), (131, 5, 9), (7, 3, 2, 5), (130, 3, 1, 4)]
    for shape, size, order, endian in itertools.product(shapes, [4, 8], "CF", "<>"):
        array = np.array(numbers(shape), dtype=f"{endian}f{size}", order=order)
        name = f"{'x'.join(map(str, shape))}-f{size}-{order}-{'big' if endian == '>' else 'little'}"
        # Small blocks cut small files along several axes.
        yield name, array, ["--chunk", str(random.integers(1, 2 * array.nbytes))]
    for size, order in itertools.product([4, 8], "CF"):
        array = np.array(numbers((365, 19, 37)), dtype=f"f{size}", order=order)
        array[7, 3, 5] = np.nan
        array[9, 4, 5] = np.inf
        array[11, 5, 5] = -np.inf
        array[:, 6, 5] = 281.3
        array[:, 7, 5] = 0
        yield f"special-f{size}-{order}", array, ["--chunk", "64kB"]
        yield f"processes-f{size}-{order}", array, ["--chunk", "64kB", "--processes", "2"]
    yield "default-chunk", numbers((400, 50, 60)).astype("f4"), []
    yield "time-alone", numbers(300_001), ["--chunk", "50kB"]
    yield "about-zero", random.standard_normal((5000, 12)), ["--chunk", "50kB"]


def ulps(ours, exact, kind, error):
    """How far off at most, in steps of `kind` at the exact number, beyond an absolute `error`."""
    ours, exact = np.asarray(ours), np.asarray(exact)
    same = (np.isnan(ours) & np.isnan(exact)) | (ours == exact)
    with np.errstate(all="ignore"):
        step = np.spacing(np.abs(exact).astype(kind)).astype(exact.dtype)
        off = (np.abs(ours - exact) - error) / step
    off = np.where(same, 0, np.where(np.isnan(off), np.inf, off))
    return float(np.max(off, initial=0))


def check(name, array, arguments):
    source, result, mean, std = (directory / f"{name}{part}.npy" for part in ["", "-a", "-m", "-s"])
    np.save(source, array)
    words = [program, source, "-o", result, "--mean", mean, "--std", std, "--threads", "2", *arguments]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=120)
    if ran.returncode != 0:
        failures.append(f"{name}: exit status {ran.returncode}: {ran.stdout}{ran.stderr}")
        return
    kind = array.dtype.newbyteorder("=")
    wide = np.longdouble
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        exact_mean = array.mean(axis=0, dtype=wide)
        exact_std = array.std(axis=0, dtype=wide)
        exact = (array.astype(wide) - exact_mean) / exact_std
        # About zero a sum's error is one of the numbers that were added up, not of the sum.
        noise = np.spacing(np.abs(array.astype(np.float64)).max(axis=0))
        # What that and the mean's rounding do to a deviation, which may be nearly zero.
        rounded = (noise + np.spacing(np.abs(exact_mean).astype(np.float64))) / exact_std
        double_std = array.std(axis=0, dtype=np.float64)
    ours, ours_mean, ours_std = np.load(result), np.load(mean), np.load(std)
    if ours.dtype != kind or ours.shape != array.shape or ours_mean.shape != array.shape[1:]:
        failures.append(f"{name}: the result is {ours.dtype} of shape {ours.shape}")
        return
    if array.flags.f_contiguous != ours.flags.f_contiguous:
        failures.append(f"{name}: the order of the result is another")
    # A constant place has a deviation of 0 or of the rounding of its mean; NumPy's own depends on
    # how it adds, so there zero is compared with "as good as zero".
    constant = np.broadcast_to((array == array[0]).all(axis=0), exact_mean.shape)
    if np.any(np.abs(ours_std[constant]) > 1e-12 * np.abs(exact_mean[constant])):
        failures.append(f"{name}: the deviation of constant places is {ours_std[constant]}")
    vary = ~constant
    off = {
        "mean": (ulps(ours_mean, exact_mean, np.float64, noise), 1),
        "std": (ulps(ours_std[vary], exact_std[vary], np.float64, 0), 4),
        "anomaly": (ulps(ours[:, vary], exact[:, vary], kind, rounded[vary]), 1 if kind == np.float32 else 8),
    }
    for what, (found, allowed) in off.items():
        if found > allowed:
            failures.append(f"{name}: {what} is {found:.2f} ulp from NumPy's, {allowed} are allowed")
    off["NumPy's std in float64"] = (ulps(double_std[vary], exact_std[vary], np.float64, 0), 0)
    for what, (found, _) in off.items():
        worst[what, kind.name] = max(worst.get((what, kind.name), 0), found)
    for path in (source, result, mean, std):
        path.unlink()


worst = {}
count = 0
for name, array, arguments in files():
    check(name, array, arguments)
    count += 1
for (what, kind), found in sorted(worst.items()):
    print(f"{what} of {kind}: at most {found:.2f} ulp from NumPy {np.__version__} in longdouble")
print(f"{count} files compared, {len(failures)} differences")
if failures:
    sys.exit("\n".join(failures))
