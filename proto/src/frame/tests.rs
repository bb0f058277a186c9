use super::*;
use proptest::prelude::*;

fn kinds() -> impl Strategy<Value = Kind> {
    (1u8..=9).prop_map(|byte| Kind::from_byte(byte).unwrap())
}

proptest! {
    #[test]
    fn decode_undoes_encode(kind in kinds(), stream: u32, payload in proptest::collection::vec(any::<u8>(), 0..64)) {
        let frame = Frame::new(kind, stream, payload);
        let mut bytes = Vec::new();
        frame.encode(&mut bytes).unwrap();
        for cut in 0..bytes.len() {
            let mut part = bytes[..cut].to_vec();
            let need = Frame::decode(&mut part).unwrap().unwrap_err();
            prop_assert!(need > cut && need <= bytes.len());
        }
        bytes.extend_from_slice(b"next");
        prop_assert_eq!(Frame::decode(&mut bytes).unwrap().unwrap(), frame);
        prop_assert_eq!(bytes, b"next");
    }

    #[test]
    fn any_bytes_are_a_frame_an_error_or_incomplete(mut bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(Err(need)) = Frame::decode(&mut bytes) {
            prop_assert!(need <= MAX_REPLY + HEADER);
        }
    }
}

#[test]
fn length_is_refused_before_the_payload_arrives() {
    let mut bytes = vec![0xff, 0xff, 0xff, 0xff, Kind::Hello as u8];
    assert!(matches!(Frame::decode(&mut bytes), Err(FrameError::BadLength { .. })));
    let mut short = vec![0, 0, 0, 2, Kind::Ping as u8];
    assert!(matches!(Frame::decode(&mut short), Err(FrameError::BadLength { .. })));
    let mut kind = vec![0, 0, 0, 5, 200];
    assert_eq!(Frame::decode(&mut kind), Err(FrameError::UnknownKind(200)));
}
