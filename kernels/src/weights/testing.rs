//! What every [`AdapterPacker`] promises, for the tests of each.

use half::{bf16, f16};

use super::{
    AdapterMemory, DType, HostData, HostTensor, LoraPart, LoraWeights, PackedAdapter, Part,
    SharedBytes,
};
use crate::backend::AdapterPacker;

const LAYERS: usize = 10;

/// Fails unless `packer` makes the same of tensors in their file's bytes as of decoded ones, and the same in memory that
/// another adapter has left as in cleared memory. It may leave gaps of less than 64 bytes at multiples of 64, which the
/// shapes here do not have.
pub(crate) fn packer_contract(packer: &dyn AdapterPacker) {
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        let pack = |stored, memory: &AdapterMemory| -> PackedAdapter {
            packer.pack(LAYERS, &weights(dtype, stored), memory).unwrap()
        };
        let plain = pack(false, &AdapterMemory::default());
        let bytes = plain.bytes.as_slice();
        assert!(bytes.iter().any(|&byte| byte != 0));
        let stored = pack(true, &AdapterMemory::default());
        assert!(stored.bytes.as_slice() == bytes, "{dtype:?} in a file's bytes");
        let garbage = AdapterMemory::holding(vec![0xFF; bytes.len() + 4096]);
        assert!(pack(true, &garbage).bytes.as_slice() == bytes, "{dtype:?} over garbage");
    }
}

/// Ranks and widths that every layout has to round up, in more than a megabyte.
fn weights(dtype: DType, stored: bool) -> LoraWeights {
    let tensor = |rows: usize, cols: usize| tensor((rows, cols), dtype, stored);
    let parts = (0..LAYERS).flat_map(|layer| {
        [(Part::K, 3), (Part::Q, 9), (Part::Down, 1)].map(|(part, rank)| LoraPart {
            layer,
            part,
            scale: 2.0,
            a: tensor(rank, 2052),
            b: tensor(2044, rank),
        })
    });
    LoraWeights { parts: parts.collect() }
}

fn tensor((rows, cols): (usize, usize), dtype: DType, stored: bool) -> HostTensor {
    let values = (0..rows * cols).map(|i| (i % 251) as f32 / 8.0 - 9.0);
    let data = match (dtype, stored) {
        (DType::F32, false) => HostData::F32(values.collect()),
        (DType::Bf16, false) => HostData::Bf16(values.map(bf16::from_f32).collect()),
        (DType::F16, false) => HostData::F16(values.map(f16::from_f32).collect()),
        (_, true) => {
            // A byte before them: files promise no alignment.
            let mut bytes = vec![0];
            values.for_each(|value| match dtype {
                DType::F32 => bytes.extend(value.to_le_bytes()),
                DType::Bf16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
                DType::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
            });
            let len = bytes.len();
            HostData::Stored(dtype, SharedBytes::new(bytes).get(1..len).unwrap())
        }
    };
    HostTensor::new(rows, cols, data).unwrap()
}
