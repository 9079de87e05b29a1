//! A typed n-dimensional view over bytes that somebody owns: a heap buffer, a memory-mapped file, a
//! received frame.

use std::{fmt, marker::PhantomData, ops::Range};

use bytemuck::Pod;
use bytes::Bytes;
use ndarray::{Array, ArrayD, ArrayView, ArrayViewD, Dimension, IxDyn, ShapeBuilder};
use rankine_transport::AlignedBuffer;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::serialize::Frame;

/// A number that chunks are made of.
pub trait Element: Pod + Send + Sync + sealed::Sealed {
    /// Its name, as in NumPy: `float64`.
    const NAME: &'static str;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($number:ty = $name:literal),*) => {$(
        impl sealed::Sealed for $number {}
        impl Element for $number {
            const NAME: &'static str = $name;
        }
    )*};
}

elements!(
    f32 = "float32",
    f64 = "float64",
    i8 = "int8",
    i16 = "int16",
    i32 = "int32",
    i64 = "int64",
    u8 = "uint8",
    u16 = "uint16",
    u32 = "uint32",
    u64 = "uint64"
);

/// What is wrong with a shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// The buffer does not hold the shape.
    #[error("a chunk of shape {shape:?} of {element} needs {needed} bytes, but there are {found}")]
    Length {
        /// The shape.
        shape: Vec<usize>,
        /// The elements' name.
        element: &'static str,
        /// Bytes that the shape and its strides reach.
        needed: u128,
        /// Bytes in the buffer.
        found: usize,
    },
    /// The number of dimensions is another.
    #[error("a chunk of {found} dimensions cannot be viewed with {wanted}")]
    Dimensions {
        /// How many were asked for.
        wanted: usize,
        /// How many there are.
        found: usize,
    },
    /// There is no such memory.
    #[error("there is no memory for a chunk of shape {shape:?} of {element}")]
    Memory {
        /// The shape.
        shape: Vec<usize>,
        /// The elements' name.
        element: &'static str,
    },
    /// The strides make elements overlap, or reach beyond what can be addressed.
    #[error("shape and strides do not make a chunk: {0}")]
    Layout(String),
    /// The shape and the strides differ in length.
    #[error("{strides} strides were given for {dimensions} dimensions")]
    Strides {
        /// Dimensions of the shape.
        dimensions: usize,
        /// Strides given.
        strides: usize,
    },
}

/// An n-dimensional chunk of numbers: a view of shared bytes, which it alone keeps alive.
///
/// Cloning and slicing copy nothing. A chunk without gaps travels as one untouched frame; one with
/// gaps (cut across a bigger array) is packed when it leaves its process.
///
/// ```
/// use ndarray::array;
/// use rankine::array::Chunk;
///
/// let chunk = Chunk::from_array(array![[1.0, 2.0], [3.0, 4.0]]);
/// assert_eq!(chunk.view().sum(), 10.0);
/// let column = chunk.slice(1, 0..1);
/// assert_eq!(column.view(), array![[1.0], [3.0]].view().into_dyn());
/// ```
pub struct Chunk<T> {
    bytes: Bytes,
    shape: Vec<usize>,
    /// In elements.
    strides: Vec<usize>,
    element: PhantomData<fn() -> T>,
}

impl<T> Clone for Chunk<T> {
    fn clone(&self) -> Self {
        Self {
            bytes: self.bytes.clone(),
            shape: self.shape.clone(),
            strides: self.strides.clone(),
            element: PhantomData,
        }
    }
}

impl<T: Element> fmt::Debug for Chunk<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chunk<{}>{:?}", T::NAME, self.shape)
    }
}

/// The strides of a shape without gaps, last axis fastest.
fn standard_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis]);
    }
    strides
}

impl<T: Element> Chunk<T> {
    /// Takes an array; nothing is copied if it is laid out without gaps, last axis fastest.
    pub fn from_array<D: Dimension>(array: Array<T, D>) -> Self {
        let shape = array.shape().to_vec();
        let numbers = if array.is_standard_layout() {
            let (numbers, offset) = array.into_raw_vec_and_offset();
            let (start, count) = (offset.unwrap_or(0), shape.iter().product::<usize>());
            return Self::over(numbers, start..start + count, shape);
        } else {
            array.iter().copied().collect::<Vec<T>>()
        };
        let all = 0..numbers.len();
        Self::over(numbers, all, shape)
    }

    /// Takes a vector without copying it.
    ///
    /// # Errors
    /// If its length is not that of the shape.
    pub fn from_vec(numbers: Vec<T>, shape: &[usize]) -> Result<Self, ShapeError> {
        let all = 0..numbers.len();
        let bytes = Self::over(numbers, all, shape.to_vec()).bytes;
        Self::from_bytes(bytes, shape)
    }

    /// Makes a chunk by writing its numbers, which are zero at first, last axis fastest. It lies in the memory
    /// that transports hand over best: kept for the next chunks when it goes, and shared between the
    /// processes of a host where there is `shm://`.
    ///
    /// # Errors
    /// If there is no such memory.
    ///
    /// ```
    /// use rankine::array::Chunk;
    ///
    /// let chunk = Chunk::write(&[2, 3], |numbers: &mut [f64]| numbers[5] = 1.0)?;
    /// assert_eq!(chunk.view()[[1, 2]], 1.0);
    /// # Ok::<(), rankine::array::ShapeError>(())
    /// ```
    pub fn write(shape: &[usize], write: impl FnOnce(&mut [T])) -> Result<Self, ShapeError> {
        let none = || ShapeError::Memory { shape: shape.to_vec(), element: T::NAME };
        let count = shape.iter().try_fold(1usize, |count, length| count.checked_mul(*length));
        let nbytes = count.and_then(|count| count.checked_mul(size_of::<T>())).ok_or_else(none)?;
        let mut buffer = AlignedBuffer::new(nbytes as u64).map_err(|_| none())?;
        // Buffers are aligned for every element.
        write(bytemuck::try_cast_slice_mut(buffer.zeroed()).map_err(|_| none())?);
        Self::from_bytes(buffer.freeze(), shape)
    }

    fn over(numbers: Vec<T>, range: Range<usize>, shape: Vec<usize>) -> Self {
        struct Owner<T>(Vec<T>, Range<usize>);
        impl<T: Element> AsRef<[u8]> for Owner<T> {
            fn as_ref(&self) -> &[u8] {
                bytemuck::cast_slice(&self.0[self.1.clone()])
            }
        }
        let bytes = Bytes::from_owner(Owner(numbers, range));
        Self { bytes, strides: standard_strides(&shape), shape, element: PhantomData }
    }

    /// Views bytes as numbers of this machine's byte order, without gaps, last axis fastest.
    /// Copies only what is not aligned to the element.
    ///
    /// # Errors
    /// If their length is not that of the shape.
    pub fn from_bytes(bytes: Bytes, shape: &[usize]) -> Result<Self, ShapeError> {
        let chunk = Self::from_bytes_strided(bytes, shape, &standard_strides(shape))?;
        let needed = shape.iter().product::<usize>() * size_of::<T>();
        if chunk.bytes.len() == needed { Ok(chunk) } else { Err(chunk.length_error(needed as u128)) }
    }

    /// Views bytes as numbers that lie `strides` elements apart along each axis.
    ///
    /// # Errors
    /// If the last number lies beyond the bytes, or there is not a stride for each axis.
    pub fn from_bytes_strided(bytes: Bytes, shape: &[usize], strides: &[usize]) -> Result<Self, ShapeError> {
        if strides.len() != shape.len() {
            return Err(ShapeError::Strides { dimensions: shape.len(), strides: strides.len() });
        }
        // Whatever hostile numbers say, 128 bits hold the sum.
        let reach = shape.iter().zip(strides).try_fold(0u128, |reach, (length, stride)| {
            reach.checked_add((*length as u128).saturating_sub(1).checked_mul(*stride as u128)?)
        });
        let empty = shape.contains(&0);
        let elements = if empty { Some(0) } else { reach.and_then(|reach| reach.checked_add(1)) };
        let needed = elements.and_then(|e| e.checked_mul(size_of::<T>() as u128)).unwrap_or(u128::MAX);
        let aligned = bytes.as_ptr().align_offset(align_of::<T>()) == 0;
        let mut chunk =
            Self { bytes, shape: shape.to_vec(), strides: strides.to_vec(), element: PhantomData };
        if needed > chunk.bytes.len() as u128 {
            return Err(chunk.length_error(needed));
        }
        let whole = chunk.bytes.len() / size_of::<T>() * size_of::<T>();
        if !aligned {
            let numbers: Vec<T> = bytemuck::pod_collect_to_vec(&chunk.bytes[..whole]);
            let all = 0..numbers.len();
            chunk.bytes = Self::over(numbers, all, Vec::new()).bytes;
        }
        match chunk.try_view() {
            Ok(_) => Ok(chunk),
            Err(error) => Err(ShapeError::Layout(error.to_string())),
        }
    }

    fn length_error(&self, needed: u128) -> ShapeError {
        ShapeError::Length { shape: self.shape.clone(), element: T::NAME, needed, found: self.bytes.len() }
    }

    /// The length of each axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of its elements.
    pub fn nbytes(&self) -> u64 {
        (self.len() * size_of::<T>()) as u64
    }

    fn numbers(&self) -> &[T] {
        let whole = self.bytes.len() / size_of::<T>() * size_of::<T>();
        // Alignment and length were seen to when the chunk was made.
        bytemuck::try_cast_slice(&self.bytes[..whole]).unwrap_or_default()
    }

    /// The elements, where they lie without gaps, last axis fastest.
    pub fn as_slice(&self) -> Option<&[T]> {
        let standard = standard_strides(&self.shape);
        let same = self.shape.iter().zip(&self.strides).zip(&standard).all(|((n, a), b)| *n <= 1 || a == b);
        (same || self.is_empty()).then(|| &self.numbers()[..self.len()])
    }

    /// A view of the shape of the chunk.
    pub fn view(&self) -> ArrayViewD<'_, T> {
        self.try_view().expect("shape and strides were checked when the chunk was made")
    }

    fn try_view(&self) -> Result<ArrayViewD<'_, T>, ndarray::ShapeError> {
        if self.shape.contains(&0) {
            // The strides reach beyond the bytes, which nobody will follow.
            return ArrayView::from_shape(IxDyn(&self.shape), &[]);
        }
        ArrayView::from_shape(IxDyn(&self.shape).strides(IxDyn(&self.strides)), self.numbers())
    }

    /// A view of a known number of dimensions.
    ///
    /// # Errors
    /// If there are not that many.
    pub fn view_as<D: Dimension>(&self) -> Result<ArrayView<'_, T, D>, ShapeError> {
        let wanted = D::NDIM.unwrap_or(self.shape.len());
        self.view()
            .into_dimensionality()
            .map_err(|_| ShapeError::Dimensions { wanted, found: self.shape.len() })
    }

    /// The part of it that lies in `range` along `axis`: a view of the same bytes.
    ///
    /// # Panics
    /// If there is no such axis or the range does not lie within it.
    #[must_use]
    pub fn slice(&self, axis: usize, range: Range<usize>) -> Self {
        assert!(
            axis < self.shape.len() && range.start <= range.end && range.end <= self.shape[axis],
            "{range:?} of axis {axis} does not lie in a chunk of shape {:?}",
            self.shape
        );
        let mut slice = self.clone();
        slice.shape[axis] = range.len();
        if !slice.is_empty() {
            slice.bytes = self.bytes.slice(range.start * self.strides[axis] * size_of::<T>()..);
        }
        slice
    }

    /// The same with its axes in reverse: what was in Fortran order is in C order then.
    #[must_use]
    pub fn reversed_axes(mut self) -> Self {
        self.shape.reverse();
        self.strides.reverse();
        self
    }

    /// A copy of its elements as an array.
    pub fn to_array(&self) -> ArrayD<T> {
        self.view().to_owned()
    }
}

impl<T: Element> Serialize for Chunk<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let frame = if self.as_slice().is_some() {
            self.bytes.slice(..self.nbytes() as usize)
        } else {
            let packed: Vec<T> = self.view().iter().copied().collect();
            let all = 0..packed.len();
            Self::over(packed, all, Vec::new()).bytes
        };
        (T::NAME, &self.shape, Frame(frame)).serialize(serializer)
    }
}

impl<'de, T: Element> Deserialize<'de> for Chunk<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (name, shape, frame) = <(String, Vec<usize>, Frame)>::deserialize(deserializer)?;
        if name != T::NAME {
            let text = format!("a chunk of {name} was taken for one of {}", T::NAME);
            return Err(de::Error::custom(text));
        }
        // A product that overflows is caught by the reach that is checked in 128 bits.
        let count = shape.iter().try_fold(1usize, |product, n| product.checked_mul(*n));
        if count.and_then(|count| count.checked_mul(size_of::<T>())) != Some(frame.0.len()) {
            let text =
                format!("a chunk of shape {shape:?} of {name} does not fit its {} bytes", frame.0.len());
            return Err(de::Error::custom(text));
        }
        Self::from_bytes(frame.0, &shape).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, Ix2, Ix3, array};

    use super::*;
    use crate::serialize::{from_frames, to_frames};

    #[test]
    fn an_array_becomes_a_chunk_and_travels_without_a_copy() {
        let array = Array2::from_shape_fn((100, 200), |(i, j)| (i * 1000 + j) as f64);
        let place = array.as_ptr() as usize;
        let chunk = Chunk::from_array(array.clone());
        assert_ne!(chunk.view().as_ptr() as usize, place, "this one was cloned");
        let place = chunk.view().as_ptr();
        let (head, frames) = to_frames(&chunk).unwrap();
        assert_eq!((frames.len(), frames[0].as_ptr()), (1, place.cast()));
        let back: Chunk<f64> = from_frames(head, frames).unwrap();
        assert_eq!(back.view().as_ptr(), place);
        assert_eq!(back.view_as::<Ix2>().unwrap(), array);
        assert!(matches!(back.view_as::<Ix3>(), Err(ShapeError::Dimensions { wanted: 3, found: 2 })));
    }

    #[test]
    fn a_slice_is_a_view_and_is_packed_when_it_travels() {
        let chunk = Chunk::from_array(array![[1i32, 2, 3], [4, 5, 6]]);
        let slice = chunk.slice(1, 1..3);
        assert_eq!(slice.view(), array![[2, 3], [5, 6]].into_dyn());
        assert!(slice.as_slice().is_none());
        assert_eq!(chunk.slice(0, 1..2).as_slice(), Some(&[4, 5, 6][..]));
        assert!(chunk.slice(0, 1..1).is_empty());
        let (head, frames) = to_frames(&slice).unwrap();
        let back: Chunk<i32> = from_frames(head, frames).unwrap();
        assert_eq!(back.as_slice(), Some(&[2, 3, 5, 6][..]));
        let (head, frames) = to_frames(&chunk.slice(0, 1..1)).unwrap();
        let back: Chunk<i32> = from_frames(head, frames).unwrap();
        assert_eq!(back.view().shape(), [0, 3]);
    }

    #[test]
    fn misaligned_bytes_are_copied_and_wrong_lengths_refused() {
        let bytes = Bytes::from((0..33u8).collect::<Vec<_>>());
        let chunk = Chunk::<u32>::from_bytes(bytes.slice(1..), &[8]).unwrap();
        assert_eq!(chunk.as_slice().unwrap()[0], u32::from_le_bytes([1, 2, 3, 4]));
        assert!(Chunk::<u32>::from_bytes(bytes.clone(), &[8]).is_err());
        assert!(Chunk::<u32>::from_bytes_strided(bytes.clone(), &[2, usize::MAX], &[usize::MAX, 2]).is_err());
        assert!(Chunk::<u32>::from_bytes_strided(bytes, &[2], &[]).is_err());
    }

    #[test]
    fn a_hostile_chunk_is_refused() {
        for shape in [vec![usize::MAX, 2], vec![3], vec![1 << 40, 1 << 40]] {
            let (head, frames) =
                to_frames(&("float64", shape, Frame(Bytes::from_static(b"12345678")))).unwrap();
            assert!(from_frames::<Chunk<f64>>(head, frames).is_err());
        }
        let (head, frames) = to_frames(&Chunk::from_array(array![1f32, 2.0])).unwrap();
        let error = from_frames::<Chunk<i32>>(head, frames).unwrap_err().to_string();
        assert!(error.contains("float32") && error.contains("int32"), "{error}");
    }

    #[test]
    fn fortran_order_and_no_dimensions_work() {
        let array = ndarray::Array::from_shape_vec((2, 3).f(), vec![1.0, 4.0, 2.0, 5.0, 3.0, 6.0]).unwrap();
        assert_eq!(Chunk::from_array(array.clone()).view_as::<Ix2>().unwrap(), array);
        assert_eq!(Chunk::from_array(array.clone()).reversed_axes().view(), array.t().into_dyn());
        assert_eq!(Chunk::from_array(ndarray::arr0(5u8)).view().sum(), 5);
    }
}
