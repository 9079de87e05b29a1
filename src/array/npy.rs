//! `.npy` files as NumPy writes them: read as views of the mapped file, written chunk by chunk.

use std::{
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use ndarray::{ArrayViewD, Dimension, indices};
use npyz::{DType, Endianness, NpyHeader, TypeChar};

use super::{Chunk, Element, ShapeError};
use crate::map::map;

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

/// Which axis of an array lies closest together in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// The last one, as in C.
    #[default]
    C,
    /// The first one, as in Fortran.
    Fortran,
}

/// A mapped `.npy` file of float32 or float64, in C or Fortran order, of either byte order.
#[derive(Clone)]
pub struct NpyFile {
    path: PathBuf,
    data: Bytes,
    shape: Vec<usize>,
    order: Order,
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
        let map = map(&file).map_err(failed("map"))?;
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
        let swapped = scalar.endianness() == OTHER_ENDIAN;
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
        let order = match header.order() {
            npyz::Order::C => Order::C,
            npyz::Order::Fortran => Order::Fortran,
        };
        let data = Bytes::from_owner(map).slice(offset..offset + needed.unwrap_or(0) as usize);
        Ok(Self { path: path.to_owned(), data, shape, order, element, swapped })
    }

    /// The length of each axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The name of its elements: `float32` or `float64`.
    pub fn element(&self) -> &'static str {
        self.element
    }

    /// The order of its elements.
    pub fn order(&self) -> Order {
        self.order
    }

    /// How many elements apart neighbours along each axis lie.
    pub fn strides(&self) -> Vec<usize> {
        strides_of(&self.shape, self.order)
    }

    /// What lies in `range` along `axis`, and all of the other axes; else as [`NpyFile::block`].
    ///
    /// # Errors
    /// As [`NpyFile::block`].
    pub fn chunk<T: Element>(&self, axis: usize, range: Range<usize>) -> Result<Chunk<T>, NpyError> {
        let mut ranges: Vec<_> = self.shape.iter().map(|length| 0..*length).collect();
        match ranges.get_mut(axis) {
            Some(along) => *along = range,
            None => return Err(self.wrong(format!("its shape {:?} has no axis {axis}", self.shape))),
        }
        self.block(&ranges)
    }

    /// What lies in the range along each axis: a view of the map, unless the file's byte order is
    /// not this machine's; then a converted copy of that part alone.
    ///
    /// # Errors
    /// If its elements are others, or it does not have that part.
    pub fn block<T: Element>(&self, ranges: &[Range<usize>]) -> Result<Chunk<T>, NpyError> {
        if T::NAME != self.element {
            return Err(self.wrong(format!("it holds {}, not {}", self.element, T::NAME)));
        }
        let within =
            |(range, length): (&Range<usize>, &usize)| range.start <= range.end && range.end <= *length;
        if ranges.len() != self.shape.len() || !ranges.iter().zip(&self.shape).all(within) {
            return Err(self.wrong(format!("its shape {:?} has no part {ranges:?}", self.shape)));
        }
        let shape: Vec<usize> = ranges.iter().map(ExactSizeIterator::len).collect();
        if shape.contains(&0) {
            return Ok(Chunk::from_vec(Vec::new(), &shape)?);
        }
        let strides = self.strides();
        let start: usize = ranges.iter().zip(&strides).map(|(range, stride)| range.start * stride).sum();
        let last: usize = ranges.iter().zip(&strides).map(|(range, stride)| (range.end - 1) * stride).sum();
        // No more than that: what is not aligned is copied.
        let bytes = self.data.slice(start * size_of::<T>()..(last + 1) * size_of::<T>());
        let view = Chunk::from_bytes_strided(bytes, &shape, &strides)?;
        Ok(if self.swapped { self.converted(&view) } else { view })
    }

    /// A copy in this machine's byte order, in the file's order of elements.
    fn converted<T: Element>(&self, part: &Chunk<T>) -> Chunk<T> {
        let fastest_last = match self.order {
            Order::C => part.clone(),
            Order::Fortran => part.clone().reversed_axes(),
        };
        let mut copy = fastest_last.to_array();
        swap_bytes(copy.as_slice_mut().expect("it was laid out like its original"));
        let copy = Chunk::from_array(copy);
        match self.order {
            Order::C => copy,
            Order::Fortran => copy.reversed_axes(),
        }
    }

    fn wrong(&self, reason: String) -> NpyError {
        NpyError::Format { path: self.path.clone(), reason }
    }
}

const OTHER_ENDIAN: Endianness =
    if cfg!(target_endian = "little") { Endianness::Big } else { Endianness::Little };

fn swap_bytes<T: Element>(numbers: &mut [T]) {
    match size_of::<T>() {
        4 => {
            bytemuck::cast_slice_mut::<T, u32>(numbers).iter_mut().for_each(|word| *word = word.swap_bytes())
        }
        8 => {
            bytemuck::cast_slice_mut::<T, u64>(numbers).iter_mut().for_each(|word| *word = word.swap_bytes())
        }
        size => numbers.iter_mut().for_each(|number| {
            debug_assert!(size <= 2, "no element is that big");
            bytemuck::bytes_of_mut(number).reverse();
        }),
    }
}

fn strides_of(shape: &[usize], order: Order) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    match order {
        Order::Fortran => {
            for axis in 1..shape.len() {
                strides[axis] = strides[axis - 1].saturating_mul(shape[axis - 1]);
            }
        }
        Order::C => {
            for axis in (1..shape.len()).rev() {
                strides[axis - 1] = strides[axis].saturating_mul(shape[axis]);
            }
        }
    }
    strides
}

/// Makes a `.npy` file of `shape`, little endian, full length and zero, to be written chunk by chunk
/// with [`write_npy`]; gives nothing back, since any process may write.
///
/// # Errors
/// If the file cannot be made.
pub fn create_npy<T: Element>(path: &Path, shape: &[usize], order: Order) -> Result<(), NpyError> {
    let failed = |source| NpyError::Io { attempt: "create", path: path.to_owned(), source };
    let header = header::<T>(shape, order);
    let count = shape.iter().try_fold(size_of::<T>() as u64, |product, n| product.checked_mul(*n as u64));
    let length = count.and_then(|count| count.checked_add(header.len() as u64));
    let length = length.ok_or_else(|| failed(io::Error::other("no file is that long")))?;
    let file = File::create(path).map_err(failed)?;
    file.write_all_at(&header, 0).and_then(|()| file.set_len(length)).map_err(failed)
}

/// Writes a part of a file that [`create_npy`] made; along each axis it begins at `start`. Processes
/// may write different parts at once.
///
/// # Errors
/// If the file is not of that element or shape, or cannot be written.
pub fn write_npy<T: Element>(path: &Path, start: &[usize], part: ArrayViewD<'_, T>) -> Result<(), NpyError> {
    let failed = |source| NpyError::Io { attempt: "write", path: path.to_owned(), source };
    let whole = NpyFile::open(path)?;
    let fits = whole.shape.len() == part.ndim()
        && start.len() == part.ndim()
        && whole.element == T::NAME
        && !whole.swapped
        && (0..part.ndim())
            .all(|a| start[a].checked_add(part.shape()[a]).is_some_and(|end| end <= whole.shape[a]));
    if !fits {
        return Err(whole.wrong(format!(
            "a part of shape {:?} of {} at {start:?} does not fit into {:?} of {}",
            part.shape(),
            T::NAME,
            whole.shape,
            whole.element
        )));
    }
    if part.is_empty() {
        return Ok(());
    }
    let header = header::<T>(&whole.shape, whole.order).len();
    let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
    let (mut shape, mut start, mut part) = (whole.shape, start.to_vec(), part);
    if whole.order == Order::Fortran {
        // Read backwards, it is in C order.
        shape.reverse();
        start.reverse();
        part = part.reversed_axes();
    }
    // Along the last axis that the part does not span, and all beyond, it lies together in the file
    // and is written at once.
    let axis = (0..shape.len()).rev().find(|a| part.shape()[*a] != shape[*a]).unwrap_or(0);
    let run: usize = part.shape()[axis..].iter().product();
    let strides = strides_of(&shape, Order::C);
    let first: usize = start.iter().zip(&strides).map(|(start, stride)| start * stride).sum();
    let packed = part.as_standard_layout();
    let numbers = packed.as_slice().unwrap_or_default();
    for (run, outer) in numbers.chunks_exact(run).zip(indices(&part.shape()[..axis])) {
        let place =
            first + outer.slice().iter().zip(&strides).map(|(index, stride)| index * stride).sum::<usize>();
        let place = header + place * size_of::<T>();
        file.write_all_at(bytemuck::cast_slice(run), place as u64).map_err(failed)?;
    }
    Ok(())
}

/// The header of version 1.0 (NumPy's `numpy.lib.format`): data begins at a multiple of 64 bytes.
fn header<T: Element>(shape: &[usize], order: Order) -> Vec<u8> {
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
    let endian = if size_of::<T>() == 1 { '|' } else { '<' };
    let fortran = if order == Order::Fortran { "True" } else { "False" };
    let mut text = format!(
        "{{'descr': '{endian}{kind}{}', 'fortran_order': {fortran}, 'shape': {shape}, }}",
        size_of::<T>()
    );
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
        let path = directory.path().join("a.npy");
        for shape in [&[][..], &[7], &[5, 4], &[3, 4, 5], &[2, 3, 2, 3]] {
            let array = numbers(shape);
            // Parts of 2 along one axis, along two axes, ... along all.
            for cut in 0..=shape.len() {
                for order in [Order::C, Order::Fortran] {
                    create_npy::<f64>(&path, shape, order).unwrap();
                    let file = NpyFile::open(&path).unwrap();
                    assert_eq!((file.shape(), file.element(), file.order()), (shape, "float64", order));
                    let side = |axis: usize| if axis < cut { 2 } else { shape[axis] };
                    let parts: Vec<usize> = (0..shape.len()).map(|a| shape[a].div_ceil(side(a))).collect();
                    for place in indices(parts) {
                        let start: Vec<usize> = (0..shape.len()).map(|a| place[a] * side(a)).collect();
                        let ranges: Vec<_> =
                            (0..shape.len()).map(|a| start[a]..(start[a] + side(a)).min(shape[a])).collect();
                        let part = array.slice_each_axis(|axis| ranges[axis.axis.index()].clone().into());
                        write_npy(&path, &start, part.view()).unwrap();
                        let chunk = file.block::<f64>(&ranges).unwrap();
                        assert_eq!(chunk.view(), part, "{shape:?} {ranges:?}");
                        let place = chunk.view().as_ptr().cast();
                        assert!(file.data.as_ptr_range().contains(&place), "it is a view");
                    }
                }
            }
        }
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.npy");
        create_npy::<f64>(&path, &[3, 4], Order::C).unwrap();
        for (start, shape) in
            [(&[2, 0][..], &[2, 4][..]), (&[0], &[3]), (&[0], &[3, 4]), (&[usize::MAX, 0], &[3, 4])]
        {
            let error = write_npy(&path, start, numbers(shape).view()).unwrap_err().to_string();
            assert!(error.contains("does not fit"), "{error}");
        }
        assert!(write_npy(&path, &[0, 0], numbers(&[3, 4]).mapv(|x| x as f32).view()).is_err());
        write_npy(&path, &[3, 0], numbers(&[0, 4]).view()).unwrap();
        let file = NpyFile::open(&path).unwrap();
        assert!(file.block::<f64>(&[0..3, 0..4, 0..1]).is_err());
        assert!(file.block::<f64>(&[0..3, 2..5]).is_err());
        assert!(file.block::<f64>(&[3..3, 0..4]).unwrap().is_empty());
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
            let chunk = file.chunk::<f64>(0, 0..3).unwrap();
            assert_eq!(chunk.view(), array, "{fortran} {big}");
            assert_eq!(chunk.view().strides(), if fortran { [1, 3] } else { [4, 1] });
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
        create_npy::<i32>(&path, &[3], Order::C).unwrap();
        assert!(NpyFile::open(&path).err().unwrap().to_string().contains("not float32 or float64"));
        assert!(NpyFile::open("/nowhere/a.npy").err().unwrap().to_string().contains("/nowhere/a.npy"));
        create_npy::<f32>(&path, &[3], Order::C).unwrap();
        assert!(NpyFile::open(&path).unwrap().chunk::<f64>(0, 0..1).is_err());
        assert!(NpyFile::open(&path).unwrap().chunk::<f32>(1, 0..1).is_err());
    }
}
