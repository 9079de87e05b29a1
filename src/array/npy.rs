//! `.npy` files as NumPy writes them: read as views of the mapped file, written chunk by chunk.

use std::{
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use memmap2::Mmap;
use ndarray::ArrayViewD;
use npyz::{DType, Endianness, NpyHeader, Order, TypeChar};

use super::{Chunk, Element, ShapeError};

/// Why a `.npy` file cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NpyError {
    /// The system refused.
    #[error("cannot {attempt} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not what was expected.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Its shape and a chunk of it do not go together.
    #[error(transparent)]
    Shape(#[from] ShapeError),
}

/// A mapped `.npy` file of float32 or float64, in C or Fortran order, of either byte order.
#[derive(Clone)]
pub struct NpyFile {
    path: PathBuf,
    data: Bytes,
    shape: Vec<usize>,
    /// In elements.
    strides: Vec<usize>,
    element: &'static str,
    swapped: bool,
}

impl NpyFile {
    /// Maps a file.
    ///
    /// # Errors
    /// If it cannot be mapped, is cut off, or holds anything but float32 or float64.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NpyError> {
        let path = path.as_ref();
        let failed = |attempt| move |source| NpyError::Io { attempt, path: path.to_owned(), source };
        let wrong = |reason: String| NpyError::Format { path: path.to_owned(), reason };
        let file = File::open(path).map_err(failed("open"))?;
        // SAFETY: the map is read-only. As with any map, another process that changes or cuts the
        // file meanwhile changes what is read or ends this process; the documentation says so.
        let map = unsafe { Mmap::map(&file) }.map_err(failed("map"))?;
        let mut rest = &map[..];
        let header =
            NpyHeader::from_reader(&mut rest).map_err(|e| wrong(format!("it is no .npy file: {e}")))?;
        let dtype = header.dtype();
        let DType::Plain(scalar) = &dtype else {
            return Err(wrong(format!("records of {} are not supported", dtype.descr())));
        };
        let element = match (scalar.type_char(), scalar.size_field()) {
            (TypeChar::Float, 4) => f32::NAME,
            (TypeChar::Float, 8) => f64::NAME,
            _ => return Err(wrong(format!("it holds {}, not float32 or float64", dtype.descr()))),
        };
        let swapped = scalar.endianness() == Endianness::Big;
        let size = scalar.size_field();
        let (offset, found) = (map.len() - rest.len(), rest.len() as u64);
        let count = header.shape().iter().try_fold(1u64, |product, n| product.checked_mul(*n));
        let needed = count.and_then(|count| count.checked_mul(size));
        if needed.is_none_or(|needed| needed > found) {
            return Err(wrong(format!(
                "its shape {:?} of {element} needs {} bytes of data and it has {found}: it is cut off",
                header.shape(),
                needed.map_or("too many".into(), |n| n.to_string()),
            )));
        }
        let shape: Vec<usize> = header.shape().iter().map(|n| *n as usize).collect();
        let strides = strides_of(&shape, header.order() == Order::Fortran);
        let data = Bytes::from_owner(map).slice(offset..offset + needed.unwrap_or(0) as usize);
        Ok(Self { path: path.to_owned(), data, shape, strides, element, swapped })
    }

    /// The length of each axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The name of its elements: `float32` or `float64`.
    pub fn element(&self) -> &'static str {
        self.element
    }

    /// How many elements apart neighbours along each axis lie.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// What lies in `range` along `axis`: a view of the map, unless the file's byte order is not
    /// this machine's; then a converted copy of that part alone.
    ///
    /// # Errors
    /// If its elements are others, or it does not have that part.
    pub fn chunk<T: Element>(&self, axis: usize, range: Range<usize>) -> Result<Chunk<T>, NpyError> {
        let wrong = |reason: String| NpyError::Format { path: self.path.clone(), reason };
        if T::NAME != self.element {
            return Err(wrong(format!("it holds {}, not {}", self.element, T::NAME)));
        }
        if self.shape.get(axis).is_none_or(|length| range.end > *length || range.start > range.end) {
            return Err(wrong(format!("its shape {:?} has no {range:?} along axis {axis}", self.shape)));
        }
        if !self.swapped {
            let whole = Chunk::from_bytes_strided(self.data.clone(), &self.shape, &self.strides)?;
            return Ok(whole.slice(axis, range));
        }
        let mut shape = self.shape.clone();
        shape[axis] = range.len();
        let mut numbers = Vec::with_capacity(shape.iter().product());
        for place in ndarray::indices(shape.clone()) {
            let index: usize = (0..shape.len())
                .map(|a| (place[a] + if a == axis { range.start } else { 0 }) * self.strides[a])
                .sum();
            let mut bytes = self.data[index * size_of::<T>()..(index + 1) * size_of::<T>()].to_vec();
            bytes.reverse();
            numbers.push(bytemuck::pod_read_unaligned(&bytes));
        }
        Ok(Chunk::from_vec(numbers, &shape)?)
    }
}

fn strides_of(shape: &[usize], fortran: bool) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    if fortran {
        for axis in 1..shape.len() {
            strides[axis] = strides[axis - 1].saturating_mul(shape[axis - 1]);
        }
    } else {
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis].saturating_mul(shape[axis]);
        }
    }
    strides
}

/// Makes a `.npy` file of `shape` in C order and little endian, full length and zero, to be written
/// chunk by chunk with [`write_npy`]; gives nothing back, since any process may write.
///
/// # Errors
/// If the file cannot be made.
pub fn create_npy<T: Element>(path: &Path, shape: &[usize]) -> Result<(), NpyError> {
    let failed = |source| NpyError::Io { attempt: "create", path: path.to_owned(), source };
    let header = header::<T>(shape);
    let count = shape.iter().try_fold(size_of::<T>() as u64, |product, n| product.checked_mul(*n as u64));
    let length = count.and_then(|count| count.checked_add(header.len() as u64));
    let length = length.ok_or_else(|| failed(io::Error::other("no file is that long")))?;
    let file = File::create(path).map_err(failed)?;
    file.write_all_at(&header, 0).and_then(|()| file.set_len(length)).map_err(failed)
}

/// Writes what lies from `start` along `axis` of a file that [`create_npy`] made. Processes may
/// write different parts at once.
///
/// # Errors
/// If the file is not of that element or shape, or cannot be written.
pub fn write_npy<T: Element>(
    path: &Path,
    axis: usize,
    start: usize,
    part: ArrayViewD<'_, T>,
) -> Result<(), NpyError> {
    let failed = |source| NpyError::Io { attempt: "write", path: path.to_owned(), source };
    let whole = NpyFile::open(path)?;
    let fits = whole.shape.len() == part.ndim()
        && whole.element == T::NAME
        && (0..part.ndim()).all(|a| match a == axis {
            true => start + part.shape()[a] <= whole.shape[a],
            false => part.shape()[a] == whole.shape[a],
        })
        && whole.strides == strides_of(&whole.shape, false)
        && axis < part.ndim();
    if !fits {
        return Err(NpyError::Format {
            path: path.to_owned(),
            reason: format!(
                "a part of shape {:?} of {} at {start} along axis {axis} does not fit into {:?} of {}",
                part.shape(),
                T::NAME,
                whole.shape,
                whole.element
            ),
        });
    }
    let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
    let header = header::<T>(&whole.shape).len();
    let packed = part.as_standard_layout();
    let numbers = packed.as_slice().unwrap_or_default();
    // All that lies together in the file is written at once.
    let inner: usize = whole.shape[axis + 1..].iter().product();
    let run = part.shape()[axis] * inner;
    if run > 0 {
        for (outer, run_of) in numbers.chunks_exact(run).enumerate() {
            let place = (outer * whole.shape[axis] + start) * inner * size_of::<T>() + header;
            file.write_all_at(bytemuck::cast_slice(run_of), place as u64).map_err(failed)?;
        }
    }
    Ok(())
}

/// The header of version 1.0 (NumPy's `numpy.lib.format`): data begins at a multiple of 64 bytes.
fn header<T: Element>(shape: &[usize]) -> Vec<u8> {
    let shape = match shape {
        [one] => format!("({one},)"),
        all => format!("({})", all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    };
    let kind = if T::NAME.starts_with("float") {
        'f'
    } else if T::NAME.starts_with('u') {
        'u'
    } else {
        'i'
    };
    let order = if size_of::<T>() == 1 { '|' } else { '<' };
    let mut text =
        format!("{{'descr': '{order}{kind}{}', 'fortran_order': False, 'shape': {shape}, }}", size_of::<T>());
    while (10 + text.len() + 1) % 64 != 0 {
        text.push(' ');
    }
    text.push('\n');
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((text.len() as u16).to_le_bytes());
    header.extend(text.as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use ndarray::{ArrayD, IxDyn};

    use super::*;

    fn numbers(shape: &[usize]) -> ArrayD<f64> {
        let mut next = 0.0;
        ArrayD::from_shape_fn(IxDyn(shape), |_| {
            next += 0.5;
            next
        })
    }

    #[test]
    fn what_is_written_in_parts_is_read_as_views_of_the_map() {
        let directory = tempfile::tempdir().unwrap();
        for shape in [&[7][..], &[5, 4], &[3, 4, 5], &[2, 3, 2, 3]] {
            let array = numbers(shape);
            for axis in 0..shape.len() {
                let path = directory.path().join("a.npy");
                create_npy::<f64>(&path, shape).unwrap();
                for start in (0..shape[axis]).step_by(2) {
                    let end = (start + 2).min(shape[axis]);
                    let part = array.slice_axis(ndarray::Axis(axis), (start..end).into());
                    write_npy(&path, axis, start, part).unwrap();
                }
                let file = NpyFile::open(&path).unwrap();
                assert_eq!((file.shape(), file.element()), (shape, "float64"));
                let chunk = file.chunk::<f64>(axis, 1..2).unwrap();
                assert_eq!(chunk.view(), array.slice_axis(ndarray::Axis(axis), (1..2).into()));
                assert!(file.data.as_ptr_range().contains(&chunk.view().as_ptr().cast()), "it is a view");
            }
        }
    }

    #[test]
    fn either_order_and_byte_order_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.npy");
        let array = numbers(&[3, 4]);
        for (fortran, big) in [(false, false), (true, false), (false, true), (true, true)] {
            let (python, descr) = (if fortran { "True" } else { "False" }, if big { ">f8" } else { "<f8" });
            let text = format!("{{'descr': '{descr}', 'fortran_order': {python}, 'shape': (3, 4), }}\n");
            let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
            bytes.extend((text.len() as u16).to_le_bytes());
            bytes.extend(text.as_bytes());
            let laid = if fortran { array.t().to_owned() } else { array.clone() };
            for number in laid.iter() {
                bytes.extend(if big { number.to_be_bytes() } else { number.to_le_bytes() });
            }
            std::fs::write(&path, &bytes).unwrap();
            let file = NpyFile::open(&path).unwrap();
            assert_eq!(file.chunk::<f64>(0, 0..3).unwrap().view(), array, "{fortran} {big}");
            assert_eq!(
                file.chunk::<f64>(1, 2..3).unwrap().to_array(),
                array.slice(ndarray::s![.., 2..3]).into_dyn()
            );
            std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
            assert!(NpyFile::open(&path).err().unwrap().to_string().contains("cut off"));
        }
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.npy");
        std::fs::write(&path, "no numbers").unwrap();
        assert!(NpyFile::open(&path).err().unwrap().to_string().contains("no .npy file"));
        create_npy::<i32>(&path, &[3]).unwrap();
        assert!(NpyFile::open(&path).err().unwrap().to_string().contains("not float32 or float64"));
        assert!(NpyFile::open("/nowhere/a.npy").err().unwrap().to_string().contains("/nowhere/a.npy"));
        create_npy::<f32>(&path, &[3]).unwrap();
        assert!(NpyFile::open(&path).unwrap().chunk::<f64>(0, 0..1).is_err());
        assert!(NpyFile::open(&path).unwrap().chunk::<f32>(1, 0..1).is_err());
    }
}
