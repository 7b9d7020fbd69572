//! `model.safetensors`.

use std::collections::HashMap;

use safetensors::tensor::{Dtype, TensorView, serialize};
use steadfast_infer::BATCHES_TRACKED;

use super::{File, Source};
use crate::model::state_dict::StateDict;

pub fn files(source: &Source) -> Vec<File> {
    vec![("model.safetensors".to_string(), serialised(source.weights))]
}

/// The weights as `torch.load_state_dict(strict=True)` takes them.
pub fn serialised(model: &StateDict) -> Vec<u8> {
    let zero = 0i64.to_le_bytes();
    let bytes: Vec<_> = model.iter().map(|(name, values)| (name, &values.shape, values.to_bytes())).collect();
    let mut tensors: Vec<(String, TensorView)> = bytes
        .iter()
        .map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, (*shape).clone(), bytes).expect("shape and bytes agree");
            ((*name).clone(), view)
        })
        .collect();
    for name in model.keys().filter_map(|name| name.strip_suffix("running_mean")) {
        let view = TensorView::new(Dtype::I64, Vec::new(), &zero).expect("a scalar has eight bytes");
        tensors.push((format!("{name}{BATCHES_TRACKED}"), view));
    }
    serialize(tensors, Some(HashMap::from([("format".to_string(), "pt".to_string())])))
        .expect("plain tensors serialise")
}
