//! Elements as files have them.

use super::*;

fn stored(dtype: DType, bytes: &[u8]) -> HostData {
    HostData::Stored(dtype, SharedBytes::new(bytes.to_vec()))
}

#[test]
fn stored_elements_are_whole_and_as_many_as_the_shape_says() {
    let bytes: Vec<u8> = [1.5f32, -2.0, 0.25, 8.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let tensor = HostTensor::new(2, 2, stored(DType::F32, &bytes)).unwrap();
    assert_eq!(tensor.to_f32(), [1.5, -2.0, 0.25, 8.0]);
    let mut row = [0.0; 2];
    tensor.row_f32(1, &mut row);
    assert_eq!(row, [0.25, 8.0]);
    for len in [0, 12, 15] {
        assert!(HostTensor::new(2, 2, stored(DType::F32, &bytes[..len])).is_err(), "{len} bytes");
    }
    let more = [&bytes[..], &[0]].concat();
    assert!(HostTensor::new(2, 2, stored(DType::F32, &more)).is_err(), "a byte too many");
    // The same bytes are eight elements of half the size.
    assert!(HostTensor::new(2, 4, stored(DType::F16, &bytes)).is_ok());
}

#[test]
fn one_value_that_is_not_finite_is_found_anywhere() {
    for count in [1, 1024, 1025, 5000] {
        for bad in [0, count / 2, count - 1] {
            // The least that rounds to infinity in bf16.
            let too_large = f32::from_bits(0x7F7F_8000);
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::MAX, too_large] {
                let mut values = vec![1.0; count];
                let check = |values: &[f32]| {
                    let halves = || values.iter().map(|&v| bf16::from_f32(v));
                    let other = || values.iter().map(|&v| f16::from_f32(v));
                    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                    let half_bytes: Vec<u8> = halves().flat_map(bf16::to_le_bytes).collect();
                    let other_bytes: Vec<u8> = other().flat_map(f16::to_le_bytes).collect();
                    [
                        HostData::F32(values.to_vec()),
                        HostData::Bf16(halves().collect()),
                        HostData::F16(other().collect()),
                        stored(DType::F32, &bytes),
                        stored(DType::Bf16, &half_bytes),
                        stored(DType::F16, &other_bytes),
                    ]
                    .map(|data| data.is_finite())
                };
                assert_eq!(check(&values), [true; 6]);
                values[bad] = value;
                assert_eq!(check(&values), [false; 6], "{value} at {bad} of {count}");
                values[bad] = too_large.next_down();
                assert_eq!(check(&values), [true, true, false, true, true, false]);
            }
        }
    }
}
