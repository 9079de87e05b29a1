use std::collections::BTreeMap;

use ndarray::{ArrayD, IxDyn};
use proptest::prelude::*;
use serde::Deserialize;

use super::*;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Shape {
    Nothing,
    Number(i64),
    Pair(u8, f64),
    Fields { name: String, inside: Option<Box<Shape>>, many: Vec<Shape> },
    Map(BTreeMap<String, (i32, char)>),
    Numbers(Vec<f32>),
    Unit(()),
    Bytes(Vec<u8>),
}

fn shapes() -> impl Strategy<Value = Shape> {
    let leaf = prop_oneof![
        Just(Shape::Nothing),
        Just(Shape::Unit(())),
        any::<i64>().prop_map(Shape::Number),
        (any::<u8>(), -1e9f64..1e9).prop_map(|(a, b)| Shape::Pair(a, b)),
        prop::collection::btree_map(".{0,5}", any::<(i32, char)>(), 0..4).prop_map(Shape::Map),
        prop::collection::vec(-1e9f32..1e9, 0..2000).prop_map(Shape::Numbers),
        prop::collection::vec(any::<u8>(), 0..6000).prop_map(Shape::Bytes),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        (".{0,9}", prop::option::of(inner.clone()), prop::collection::vec(inner, 0..4))
            .prop_map(|(name, inside, many)| Shape::Fields { name, inside: inside.map(Box::new), many })
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(shape in shapes()) {
        let (head, frames) = to_frames(&shape).unwrap();
        prop_assert_eq!(from_frames::<Shape>(head, frames).unwrap(), shape);
    }

    #[test]
    fn hostile_bytes_are_refused_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let frames = vec![Bytes::from_static(b"12345678")];
        let _ = from_frames::<Shape>(bytes.clone().into(), frames.clone());
        let _ = from_frames::<Vec<()>>(bytes.clone().into(), frames.clone());
        let _ = from_frames::<crate::protocol::FromClient>(bytes.clone().into(), frames.clone());
        let _ = from_frames::<Vec<crate::protocol::ToWorker>>(bytes.into(), frames);
    }

    #[test]
    fn damaged_bytes_are_refused_without_harm(shape in shapes(), at in any::<prop::sample::Index>(), flip in 1u8..) {
        let (head, frames) = to_frames(&shape).unwrap();
        let mut head = head.to_vec();
        let at = at.index(head.len());
        head[at] ^= flip;
        let _ = from_frames::<Shape>(head.clone().into(), frames.clone());
        head.truncate(at);
        prop_assert!(from_frames::<Shape>(head.into(), frames).is_err());
    }
}

#[test]
fn a_hostile_count_allocates_nothing() {
    for count in [u64::MAX, 1 << 60, 1 << 63] {
        let mut head = vec![ser::INLINE];
        head.extend(count.to_le_bytes());
        assert!(from_frames::<Vec<()>>(head.clone().into(), vec![]).is_err());
        assert!(from_frames::<String>(head.clone().into(), vec![]).is_err());
        let mut head = vec![ser::FRAMED, 10];
        head.extend(count.to_le_bytes());
        assert!(from_frames::<Vec<f64>>(head.into(), vec![Bytes::from_static(b"12345678")]).is_err());
    }
}

#[test]
fn deep_nesting_is_refused() {
    #[derive(Debug, Serialize, Deserialize)]
    struct Node(Option<Box<Node>>);
    let head: Bytes = vec![1; 100_000].into();
    assert!(matches!(from_frames::<Node>(head, vec![]), Err(Error::Depth(_))));
}

#[test]
fn big_frames_are_handed_over_small_ones_go_inline() {
    #[derive(Serialize, Deserialize)]
    struct Three(Frame, String, Frame, Frame);
    let big = Bytes::from(vec![7u8; OUT_OF_BAND]);
    let small = Bytes::from_static(b"small");
    let three = Three(Frame(big.clone()), "text".into(), Frame(small), Frame(big.clone()));
    let (head, frames) = to_frames(&three).unwrap();
    assert_eq!(frames.len(), 2);
    assert_eq!(frames[0].as_ptr(), big.as_ptr(), "the sender copies nothing");
    assert!(head.len() < 100);
    let back: Three = from_frames(head, frames).unwrap();
    assert_eq!(back.0.0.as_ptr(), big.as_ptr(), "nor does the receiver");
    assert_eq!(&back.2.0[..], b"small");
}

#[test]
fn vectors_and_arrays_of_numbers_are_frames_at_any_depth() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Model {
        name: String,
        weights: Vec<Vec<f64>>,
        grid: ArrayD<f32>,
        maybe: Option<Vec<u8>>,
    }
    let model = Model {
        name: "m".into(),
        weights: vec![vec![1.5; 1000], vec![2.5; 2000], vec![3.0; 3]],
        grid: ArrayD::from_elem(IxDyn(&[20, 30, 5]), 4.0),
        maybe: Some(vec![1; 5000]),
    };
    let (head, frames) = to_frames(&model).unwrap();
    let lengths: Vec<usize> = frames.iter().map(Bytes::len).collect();
    assert_eq!(lengths, [8000, 16000, 12000, 5000]);
    assert!(head.len() < 300, "{}", head.len());
    assert_eq!(nbytes(&model).unwrap() / 1000, (head.len() as u64 + 41000) / 1000);
    assert_eq!(from_frames::<Model>(head, frames).unwrap(), model);
}

#[test]
fn a_shared_vector_is_not_copied() {
    let vector = Arc::new(vec![1.5f64; 10_000]);
    let (head, frames) = to_frames_shared(&vector).unwrap();
    assert_eq!(frames[0].as_ptr(), vector.as_ptr().cast());
    assert_eq!(from_frames::<Vec<f64>>(head, frames).unwrap(), *vector);
    let text = Arc::new("no numbers".to_owned());
    let (head, frames) = to_frames_shared(&text).unwrap();
    assert_eq!(from_frames::<String>(head, frames).unwrap(), *text);
}

#[test]
fn a_mixed_sequence_of_numbers_is_still_right() {
    struct Mixed;
    impl Serialize for Mixed {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            use serde::ser::SerializeSeq;
            let mut sequence = serializer.serialize_seq(Some(1001))?;
            for i in 0..1000u64 {
                sequence.serialize_element(&i)?;
            }
            sequence.serialize_element(&-1i64)?;
            sequence.end()
        }
    }
    let (head, frames) = to_frames(&Mixed).unwrap();
    assert!(frames.is_empty());
    let back: Vec<i64> = from_frames(head, frames).unwrap();
    assert_eq!((back.len(), back[999], back[1000]), (1001, 999, -1));
}

#[test]
fn a_local_value_says_that_it_stays() {
    let error = to_frames(&Local::new(std::sync::Mutex::new(1))).unwrap_err().to_string();
    assert!(error.contains("Mutex<i32>") && error.contains("only within its process"), "{error}");
}

#[test]
fn what_is_left_over_is_an_error() {
    let (head, mut frames) = to_frames(&1u8).unwrap();
    frames.push(Bytes::new());
    assert_eq!(from_frames::<u8>(head, frames), Err(Error::Rest(0, 1)));
}
