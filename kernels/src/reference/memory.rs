//! What lives "on the device": here, vectors of f32.

use std::fmt::Debug;
use std::sync::Arc;

use crate::args::{KvShape, StepOutput};
use crate::error::{KernelError, Result};
use crate::weights::{HostData, HostTensor, Int8Blocks, PackedAdapter, PackedSite};

/// Fails unless the two sizes, or lists of sizes, are equal.
pub(super) fn check<T: PartialEq + Debug>(what: &str, expected: T, found: T) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(KernelError::Shape {
        what: what.into(),
        expected: format!("{expected:?}"),
        found: format!("{found:?}"),
    })
}

/// Fails unless `index` is below `count`.
pub(super) fn check_index(what: &str, index: usize, count: usize) -> Result<()> {
    if index < count {
        return Ok(());
    }
    Err(KernelError::Shape {
        what: what.into(),
        expected: format!("below {count}"),
        found: format!("{index}"),
    })
}

/// Activations `[rows, width]`.
#[derive(Debug)]
pub struct Buffer {
    values: Vec<f32>,
    pub(super) width: usize,
}

impl Buffer {
    pub(super) fn new(rows: usize, width: usize) -> Self {
        Self { values: vec![f32::NAN; rows * width], width }
    }

    /// The first `rows` rows.
    pub(super) fn rows(&self, rows: usize) -> Result<&[f32]> {
        self.check_rows(rows)?;
        Ok(&self.values[..rows * self.width])
    }

    /// The first `rows` rows, for writing.
    pub(super) fn rows_mut(&mut self, rows: usize) -> Result<&mut [f32]> {
        self.check_rows(rows)?;
        Ok(&mut self.values[..rows * self.width])
    }

    fn check_rows(&self, rows: usize) -> Result<()> {
        let held = self.values.len() / self.width.max(1);
        if rows <= held {
            return Ok(());
        }
        Err(KernelError::Shape {
            what: "rows of a step".into(),
            expected: format!("at most {held}"),
            found: format!("{rows}"),
        })
    }
}

/// Elements of a weight, row-major.
#[derive(Debug)]
pub(super) enum Values {
    Float(Vec<f32>),
    Int8(Int8Blocks),
}

/// Weight `[out, inputs]`, with a bias or none.
#[derive(Debug)]
pub struct Linear {
    pub(super) values: Values,
    pub(super) bias: Option<Vec<f32>>,
    pub(super) out: usize,
    pub(super) inputs: usize,
}

impl Linear {
    /// Puts the rows of `parts` below each other.
    pub(super) fn stack(parts: &[HostTensor], bias: Option<&[f32]>) -> Result<Self> {
        let inputs = parts.first().map_or(0, |part| part.cols);
        let out = parts.iter().map(|part| part.rows).sum();
        for part in parts {
            check("columns of a stacked weight", inputs, part.cols)?;
        }
        let values = Values::stack(parts)?;
        let bias = bias.map(<[f32]>::to_vec);
        check("bias", out, bias.as_ref().map_or(out, Vec::len))?;
        Ok(Self { values, bias, out, inputs })
    }

    /// Writes the weights of one output to `to`.
    pub(super) fn row(&self, row: u32, to: &mut [f32]) -> Result<()> {
        let row = row as usize;
        check_index("row of a table", row, self.out)?;
        match &self.values {
            Values::Float(values) => to.copy_from_slice(&values[row * self.inputs..][..to.len()]),
            Values::Int8(blocks) => {
                let at = |col| blocks.at((row, col), self.inputs);
                to.iter_mut().enumerate().for_each(|(col, to)| *to = at(col));
            }
        }
        Ok(())
    }
}

impl Values {
    /// Puts the rows of `parts` below each other: all in 8 bits or none.
    fn stack(parts: &[HostTensor]) -> Result<Self> {
        let (mut float, mut int8) = (Vec::new(), None::<Int8Blocks>);
        for part in parts {
            match (&part.data, &mut int8) {
                (HostData::Int8(blocks), Some(all)) => {
                    all.scales.extend(&blocks.scales);
                    all.values.extend(&blocks.values);
                }
                (HostData::Int8(blocks), None) => int8 = Some(blocks.clone()),
                _ => float.extend(part.to_f32()),
            }
        }
        match int8 {
            Some(_) if !float.is_empty() => {
                Err(KernelError::Unsupported("a stacked weight with some parts in int8".into()))
            }
            Some(blocks) => Ok(Self::Int8(blocks)),
            None => Ok(Self::Float(float)),
        }
    }
}

/// Constants: norm weights, rotation tables.
#[derive(Debug)]
pub struct Vector {
    pub(super) values: Vec<f32>,
}

impl Vector {
    /// Row `row` of a table of rows of `width` values.
    pub(super) fn row(&self, row: u32, width: usize) -> Result<&[f32]> {
        let row = row as usize;
        check_index("position", row, self.values.len() / width.max(1))?;
        Ok(&self.values[row * width..][..width])
    }
}

/// K and V of all layers, each `[layers, slots, kv_heads * head_dim]`.
#[derive(Debug)]
pub struct KvCache {
    k: Vec<f32>,
    v: Vec<f32>,
    pub(super) shape: KvShape,
}

/// K and V of one layer, each `[slots, kv_heads * head_dim]`.
#[derive(Debug)]
pub(super) struct KvLayer<'a> {
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    pub(super) width: usize,
}

impl KvCache {
    pub(super) fn new(shape: KvShape) -> Self {
        let half = shape.blocks * shape.block_size * shape.elements_per_token() / 2;
        Self { k: vec![f32::NAN; half], v: vec![f32::NAN; half], shape }
    }

    /// Elements of K (or V) that one token takes in a layer.
    pub(super) fn width(&self) -> usize {
        self.shape.kv_heads * self.shape.head_dim
    }

    fn slots(&self) -> usize {
        self.shape.blocks * self.shape.block_size
    }

    /// Stores k and v of one token.
    pub(super) fn write(
        &mut self,
        layer: usize,
        slot: u32,
        (k, v): (&[f32], &[f32]),
    ) -> Result<()> {
        check_index("layer", layer, self.shape.layers)?;
        check_index("cache slot", slot as usize, self.slots())?;
        let first = (layer * self.slots() + slot as usize) * self.width();
        let span = first..first + self.width();
        self.k[span.clone()].copy_from_slice(k);
        self.v[span].copy_from_slice(v);
        Ok(())
    }

    /// What one layer holds.
    pub(super) fn layer(&self, layer: usize) -> Result<KvLayer<'_>> {
        check_index("layer", layer, self.shape.layers)?;
        let size = self.slots() * self.width();
        let span = layer * size..(layer + 1) * size;
        Ok(KvLayer { k: &self.k[span.clone()], v: &self.v[span], width: self.width() })
    }
}

/// A resident adapter.
#[derive(Debug, Clone)]
pub struct Adapter {
    weights: Arc<AdapterWeights>,
}

#[derive(Debug)]
struct AdapterWeights {
    values: Vec<f32>,
    sites: Vec<Option<PackedSite>>,
}

impl Adapter {
    pub(super) fn new(packed: &PackedAdapter) -> Self {
        let (values, sites) = (packed.bytes.to_f32s(), packed.sites.clone());
        Self { weights: Arc::new(AdapterWeights { values, sites }) }
    }

    /// What the adapter does at [`Site::slot`](crate::Site::slot), if anything.
    pub(super) fn site(&self, slot: usize) -> Option<&PackedSite> {
        self.weights.sites.get(slot)?.as_ref()
    }

    /// `count` values from a byte offset.
    pub(super) fn values(&self, offset: usize, count: usize) -> &[f32] {
        &self.weights.values[offset / size_of::<f32>()..][..count]
    }
}

/// A step whose results are there already.
#[derive(Debug)]
pub struct Ticket {
    pub(super) output: StepOutput,
}
