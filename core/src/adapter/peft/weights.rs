//! Tensors of an adapter to modules of the model: each one lands or is refused by its name.

use std::collections::BTreeMap;

use loraplex_kernels::{HostData, HostTensor, LoraPart, Part, SharedBytes};
use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};

use super::config::Spec;
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::model::checkpoint::safetensors::{Entry, Header, float_type};

/// What PEFT puts before the name that a module has in the model.
const PREFIX: &str = "base_model.model.";
/// Names of the modules that adapters may change, with the block that they stand in.
const MODULES: [(Part, &str, &str); 7] = [
    (Part::Q, "self_attn", "q_proj"),
    (Part::K, "self_attn", "k_proj"),
    (Part::V, "self_attn", "v_proj"),
    (Part::O, "self_attn", "o_proj"),
    (Part::Gate, "mlp", "gate_proj"),
    (Part::Up, "mlp", "up_proj"),
    (Part::Down, "mlp", "down_proj"),
];

/// A tensor of the file.
type Named<'a> = (&'a str, &'a Entry);

/// The two matrices of a module.
#[derive(Default)]
struct Pair<'a> {
    module: &'a str,
    a: Option<Named<'a>>,
    b: Option<Named<'a>>,
}

/// All modules of the adapter whose bytes are `file`, by layer and part.
pub(super) fn assemble(
    header: &Header,
    file: &SharedBytes,
    spec: &Spec,
    model: &ModelConfig,
) -> Result<Vec<LoraPart>> {
    let mut pairs = BTreeMap::<(usize, Part), Pair<'_>>::new();
    for (name, entry) in &header.tensors {
        let place = Place::find(name, model)?;
        let pair = pairs.entry((place.layer, place.part)).or_default();
        pair.module = place.module;
        let slot = if place.is_a { &mut pair.a } else { &mut pair.b };
        if let Some((other, _)) = slot.replace((name, entry)) {
            return Err(Error::invalid(format!("{name} and {other} are the same tensor")));
        }
    }
    if pairs.is_empty() {
        return Err(Error::invalid("the adapter has no LoRA tensors"));
    }
    // All shapes before any element: a file that does not fit costs nothing.
    for ((_, part), pair) in &pairs {
        check_shapes(pair, *part, spec, model)?;
    }
    let parts = pairs.into_par_iter().map(|((layer, part), pair)| {
        let (Some(a), Some(b)) = (pair.a, pair.b) else {
            return Err(Error::internal("a pair without its parts"));
        };
        let scale = spec.scale(pair.module)?;
        Ok(LoraPart { layer, part, scale, a: read(a, file)?, b: read(b, file)? })
    });
    parts.collect()
}

/// Where a tensor belongs.
struct Place<'a> {
    layer: usize,
    part: Part,
    is_a: bool,
    /// The module's name in the model.
    module: &'a str,
}

impl<'a> Place<'a> {
    fn find(name: &'a str, model: &ModelConfig) -> Result<Self> {
        let plain = name.strip_prefix(PREFIX).unwrap_or(name);
        let (module, is_a) =
            match (plain.strip_suffix(".lora_A.weight"), plain.strip_suffix(".lora_B.weight")) {
                (Some(module), _) => (module, true),
                (None, Some(module)) => (module, false),
                (None, None) => return Err(unsupported(name)),
            };
        let last = module.rsplit('.').next().unwrap_or(module);
        if matches!(last, "lm_head" | "embed_tokens") {
            return Err(Error::invalid(format!(
                "{name} is unsupported LoRA weight: adapters of {last} are not supported"
            )));
        }
        let Some((part, block, _)) = MODULES.iter().find(|(.., module)| *module == last) else {
            let known: Vec<_> = MODULES.iter().map(|(.., name)| format!("'{name}'")).collect();
            return Err(Error::invalid(format!(
                "While loading the adapter, expected target modules in {{{}}} but received ['{module}']. Please verify that the loaded LoRA module is correct",
                known.join(", ")
            )));
        };
        let layer = module
            .strip_suffix(last)
            .and_then(|rest| rest.strip_suffix('.')?.strip_suffix(block)?.strip_suffix('.'))
            .and_then(|rest| rest.strip_prefix("model.layers."))
            .and_then(layer_number)
            .filter(|layer| *layer < model.layers);
        match layer {
            Some(layer) => Ok(Self { layer, part: *part, is_a, module }),
            None => Err(Error::invalid(format!(
                "{name}: the model has no module {module}; it has model.layers.0 to {}, with {last} in {block}",
                model.layers - 1
            ))),
        }
    }
}

/// A layer as Python writes it: no sign, no leading zero.
fn layer_number(text: &str) -> Option<usize> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let plain = digits && (text.len() == 1 || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

fn unsupported(name: &str) -> Error {
    let why = if name.contains("lora_embedding_") {
        ": adapters of embeddings are not supported"
    } else if name.contains("lora_magnitude_vector") {
        ": DoRA is not supported"
    } else if name.contains(".lora_A.") || name.contains(".lora_B.") {
        ": the name of the adapter stands in the tensor's; save it with PEFT's save_pretrained"
    } else {
        ""
    };
    Error::invalid(format!("{name} is unsupported LoRA weight{why}"))
}

fn check_shapes(pair: &Pair<'_>, part: Part, spec: &Spec, model: &ModelConfig) -> Result<()> {
    let (a, b) = match (pair.a, pair.b) {
        (Some(a), Some(b)) => (a, b),
        (Some((name, _)), None) => return Err(alone(name, "lora_B")),
        (None, Some((name, _))) => return Err(alone(name, "lora_A")),
        (None, None) => return Err(Error::internal("a pair without its parts")),
    };
    let rank = spec.rank(pair.module);
    let (inputs, outputs) = model.module_shape(part);
    for ((name, entry), expected) in [(a, [rank, inputs]), (b, [outputs, rank])] {
        if entry.shape != expected {
            return Err(Error::invalid(format!(
                "{name} has shape {:?}, expected {expected:?} for rank {rank}",
                entry.shape
            )));
        }
    }
    Ok(())
}

fn alone(name: &str, other: &str) -> Error {
    Error::invalid(format!("{name} has no {other} beside it"))
}

/// A tensor whose shape is checked, in the bytes of its file.
fn read((name, entry): Named<'_>, file: &SharedBytes) -> Result<HostTensor> {
    let place = usize::try_from(entry.span.start).ok().zip(usize::try_from(entry.span.end).ok());
    let bytes = place
        .and_then(|(from, to)| file.get(from..to))
        .ok_or_else(|| Error::invalid(format!("{name} lies beyond the end of the file")))?;
    let data = HostData::Stored(float_type(entry.dtype).map_err(|e| e.context(name))?, bytes);
    if !data.is_finite() {
        return Err(Error::invalid(format!("{name} holds NaN or infinite values (in bf16)")));
    }
    let [rows, cols] = entry.shape[..] else {
        return Err(Error::internal(format!("{name} is not a matrix")));
    };
    Ok(HostTensor::new(rows, cols, data)?)
}
