//! What a message begins with on the wire: a few bytes that say what follows, and its frames' lengths.
//!
//! ```text
//! magic | kind | A | B | C ...
//!   4      4     8   8   8
//! ```
//!
//! Numbers are little-endian. What they mean is each transport's, and so is how many there are.

/// The bytes of a magic, a kind and so many numbers.
pub const fn length(numbers: usize) -> usize {
    8 + 8 * numbers
}

/// Writes the prefix, whose [`length`] the bytes have; those of the kind that it leaves are zero already.
pub fn write(bytes: &mut [u8], magic: [u8; 4], kind: u8, numbers: &[u64]) {
    bytes[..4].copy_from_slice(&magic);
    bytes[4] = kind;
    for (place, number) in bytes[8..].chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
}

/// Reads the kind and the numbers of what begins with this magic.
///
/// # Errors
/// If it does not, or is shorter.
pub fn read<const N: usize>(bytes: &[u8], magic: [u8; 4]) -> Result<(u8, [u64; N]), String> {
    match bytes.get(..length(N)) {
        Some(prefix) if prefix[..4] == magic => {
            let (words, _) = prefix[8..].as_chunks();
            Ok((prefix[4], std::array::from_fn(|i| u64::from_le_bytes(words[i]))))
        }
        _ => Err("it does not begin like a message of this version of Rankine".into()),
    }
}

/// Reads the frames' lengths, 8 bytes each, which must add up to the payload that was announced.
///
/// # Errors
/// If they do not.
pub fn read_lengths(table: &[u8], payload: u64) -> Result<Vec<u64>, String> {
    let (words, _) = table.as_chunks();
    let lengths: Vec<u64> = words.iter().copied().map(u64::from_le_bytes).collect();
    let sum = lengths.iter().try_fold(0u64, |sum, length| sum.checked_add(*length));
    if sum == Some(payload) { Ok(lengths) } else { Err("frames that do not add up to their sum".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_read_as_it_was_written_and_no_other_is() {
        let mut bytes = [0; length(3) + 5];
        write(&mut bytes[..length(3)], *b"RKNX", 7, &[1, u64::MAX, 3]);
        assert_eq!(read(&bytes, *b"RKNX"), Ok((7, [1, u64::MAX, 3])));
        assert!(read::<3>(&bytes, *b"RKNY").is_err());
        assert!(read::<3>(&bytes[..length(3) - 1], *b"RKNX").is_err());
        assert!(read::<3>(&[], *b"RKNX").is_err());
    }

    #[test]
    fn lengths_add_up_or_are_refused() {
        let table = |lengths: [u64; 2]| lengths.map(u64::to_le_bytes).concat();
        assert_eq!(read_lengths(&table([5, 6]), 11), Ok(vec![5, 6]));
        assert!(read_lengths(&table([5, 6]), 12).is_err());
        assert!(read_lengths(&table([5, u64::MAX]), 4).is_err());
    }
}
