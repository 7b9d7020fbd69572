//! Requests and answers of the Open Inference Protocol v2 (KServe's, Triton's), as JSON and with binary tensors.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use steadfast_infer::ImageShape;

use super::http::Failure;
use super::model::{Input, Model};
use super::{Part, Service, verdict_name};

/// Says where the JSON of a request or answer ends and its binary tensors begin.
const JSON_LENGTH: &str = "Inference-Header-Content-Length";
/// The name of the input of floats, and of that of image files.
const INPUTS: [&str; 2] = [IMAGE, FILE];
const IMAGE: &str = "image";
const FILE: &str = "file";
/// The names of the outputs.
const OUTPUTS: [&str; 4] = [LOGITS, PROBABILITIES, LABEL, VERDICT];
const LOGITS: &str = "logits";
const PROBABILITIES: &str = "probabilities";
const LABEL: &str = "label";
const VERDICT: &str = "verdict";
/// Images in a request, at most.
const MOST_IMAGES: usize = 256;

#[derive(Deserialize)]
struct Request {
    id: Option<String>,
    inputs: Vec<Tensor>,
    #[serde(default)]
    outputs: Vec<Wanted>,
    #[serde(default)]
    parameters: Map<String, Value>,
}

#[derive(Deserialize)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    datatype: String,
    #[serde(default)]
    parameters: Map<String, Value>,
    data: Option<Value>,
}

#[derive(Deserialize)]
struct Wanted {
    name: String,
    #[serde(default)]
    parameters: Map<String, Value>,
}

/// What the model takes and gives.
pub fn metadata(model: &Model) -> Value {
    let loaded = model.loaded();
    let manifest = &loaded.bundle.manifest;
    let ImageShape { channels, height, width } = manifest.input.shape();
    let classes = manifest.labels.len();
    json!({
        "name": model.name,
        "versions": [loaded.version],
        "platform": "steadfast",
        "inputs": [
            { "name": IMAGE, "datatype": "FP32", "shape": [-1, channels, height, width] },
            { "name": FILE, "datatype": "BYTES", "shape": [-1] },
        ],
        "outputs": [
            { "name": LOGITS, "datatype": "FP32", "shape": [-1, classes] },
            { "name": PROBABILITIES, "datatype": "FP32", "shape": [-1, classes] },
            { "name": LABEL, "datatype": "BYTES", "shape": [-1] },
            { "name": VERDICT, "datatype": "BYTES", "shape": [-1] },
        ],
    })
}

fn wrong(said: impl Into<String>) -> Failure {
    Failure(StatusCode::BAD_REQUEST, said.into())
}

/// Answers a request.
pub async fn infer(
    service: &Service,
    model: &Arc<Model>,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Response, Failure> {
    let started = Instant::now();
    let (request, mut binary) = parse(headers, body)?;
    let loaded = model.loaded();
    let shape = loaded.bundle.manifest.input.shape();
    let [tensor] = &request.inputs[..] else {
        return Err(wrong(format!(
            "{} inputs; one is wanted: {}",
            request.inputs.len(),
            INPUTS.join(" or ")
        )));
    };
    let input = input(tensor, shape, &mut binary)?;
    if !binary.is_empty() {
        return Err(wrong(format!("{} bytes follow the tensors of the request", binary.len())));
    }
    if let Some(Wanted { name, .. }) = request.outputs.iter().find(|wanted| !OUTPUTS.contains(&&*wanted.name))
    {
        return Err(wrong(format!("{name} is no output; there are {}", OUTPUTS.join(", "))));
    }
    let answer = model.answer(loaded.clone(), input).await;
    service.latency(model, started);
    let parts = service.note(model, answer, "the request")?;
    Ok(respond(&request, model, &loaded.version, &parts))
}

fn parse(headers: &HeaderMap, body: Bytes) -> Result<(Request, Bytes), Failure> {
    let length = match headers.get(JSON_LENGTH) {
        Some(length) => length.to_str().ok().and_then(|length| length.parse().ok()),
        None => Some(body.len()),
    };
    let length = length.filter(|&length| length <= body.len());
    let length = length.ok_or_else(|| wrong(format!("{JSON_LENGTH} is no length within the request")))?;
    let request = serde_json::from_slice(&body[..length]);
    let request = request.map_err(|error| wrong(format!("the request is no inference request: {error}")))?;
    Ok((request, body.slice(length..)))
}

/// What a request wants to be classified.
fn input(tensor: &Tensor, shape: ImageShape, binary: &mut Bytes) -> Result<Input, Failure> {
    let Tensor { name, datatype, shape: given, .. } = tensor;
    let bytes = binary_part(tensor, binary)?;
    match (name.as_str(), datatype.as_str()) {
        (IMAGE, "FP32") => {
            let wanted = [shape.channels, shape.height, shape.width];
            let (Some(&count), Some(rest)) = (given.first(), given.get(1..)) else {
                return Err(wrong("image: it has no shape"));
            };
            if rest != wanted || !(1..=MOST_IMAGES).contains(&count) {
                return Err(wrong(format!(
                    "image: its shape is {given:?}, and [n, {}, {}, {}] with n of 1 to {MOST_IMAGES} is wanted",
                    wanted[0], wanted[1], wanted[2]
                )));
            }
            let values = match (&bytes, &tensor.data) {
                (Some(bytes), None) => steadfast_infer::from_bytes(bytes),
                (None, Some(data)) => numbers(data)?,
                _ => return Err(wrong("image: give either data or binary_data_size")),
            };
            let exact = bytes.is_none_or(|bytes| bytes.len() == 4 * values.len());
            if !exact || values.len() != count * shape.len() {
                return Err(wrong(format!("image: {} values for the shape {given:?}", values.len())));
            }
            if let Some(value) = values.iter().find(|value| !(0.0..=1.0).contains(*value)) {
                return Err(wrong(format!("image: {value} is not within 0 and 1")));
            }
            Ok(Input::Values(values))
        }
        (FILE, "BYTES") => {
            let Some(bytes) = bytes else {
                return Err(wrong("file: image files are sent as binary data, with binary_data_size"));
            };
            let files = split(&bytes)?;
            if given[..] != [files.len()] || !(1..=MOST_IMAGES).contains(&files.len()) {
                return Err(wrong(format!("file: {} files for the shape {given:?}", files.len())));
            }
            Ok(Input::Files(files))
        }
        _ => {
            Err(wrong(format!("{name} of {datatype} is no input; there are image of FP32 and file of BYTES")))
        }
    }
}

/// The binary data of a tensor, if it has some.
fn binary_part(tensor: &Tensor, binary: &mut Bytes) -> Result<Option<Bytes>, Failure> {
    let Some(size) = tensor.parameters.get("binary_data_size") else { return Ok(None) };
    let size = size.as_u64().and_then(|size| usize::try_from(size).ok()).filter(|&size| size <= binary.len());
    let size =
        size.ok_or_else(|| wrong(format!("{}: binary_data_size is more than there is", tensor.name)))?;
    Ok(Some(binary.split_to(size)))
}

/// Elements of BYTES, each with its length before it.
fn split(bytes: &Bytes) -> Result<Vec<Bytes>, Failure> {
    let (mut rest, mut elements) = (bytes.clone(), Vec::new());
    while !rest.is_empty() {
        let length = rest.first_chunk::<4>().map(|length| u32::from_le_bytes(*length) as usize);
        let length = length.filter(|length| 4 + length <= rest.len());
        let length = length.ok_or_else(|| wrong("file: an element is longer than the data"))?;
        let element = rest.split_to(4 + length);
        elements.push(element.slice(4..));
    }
    Ok(elements)
}

/// Numbers in lists of any depth.
fn numbers(data: &Value) -> Result<Vec<f32>, Failure> {
    let mut values = Vec::new();
    let mut open = vec![std::slice::from_ref(data).iter()];
    while let Some(last) = open.last_mut() {
        match last.next() {
            None => _ = open.pop(),
            Some(Value::Array(inner)) => open.push(inner.iter()),
            Some(Value::Number(number)) => values.push(number.as_f64().unwrap_or(f64::NAN) as f32),
            Some(other) => return Err(wrong(format!("image: {other} is no number"))),
        }
    }
    Ok(values)
}

enum Data {
    Floats(Vec<f32>),
    Texts(Vec<String>),
}

fn respond(request: &Request, model: &Model, version: &str, parts: &[Part]) -> Response {
    let count = parts.len();
    let mut outputs = Vec::new();
    let mut binary = Vec::new();
    let wanted: Vec<&str> = match request.outputs.is_empty() {
        true => OUTPUTS.to_vec(),
        false => request.outputs.iter().map(|output| output.name.as_str()).collect(),
    };
    let is_true = |parameters: &Map<String, Value>, name: &str| {
        parameters.get(name).and_then(Value::as_bool).unwrap_or(false)
    };
    for name in wanted {
        let data = data_of(name, parts);
        let own = request.outputs.iter().find(|output| output.name == name);
        let as_binary = is_true(&request.parameters, "binary_data_output")
            || own.is_some_and(|output| is_true(&output.parameters, "binary_data"));
        let (datatype, shape) = match &data {
            Data::Floats(values) => ("FP32", json!([count, values.len() / count.max(1)])),
            Data::Texts(_) => ("BYTES", json!([count])),
        };
        let mut output = json!({ "name": name, "datatype": datatype, "shape": shape });
        if as_binary {
            let before = binary.len();
            match data {
                Data::Floats(values) => binary.extend(steadfast_infer::to_bytes(&values)),
                Data::Texts(texts) => texts.iter().for_each(|text| {
                    binary.extend((text.len() as u32).to_le_bytes());
                    binary.extend(text.as_bytes());
                }),
            }
            output["parameters"] = json!({ "binary_data_size": binary.len() - before });
        } else {
            output["data"] = match data {
                Data::Floats(values) => json!(values),
                Data::Texts(texts) => json!(texts),
            };
        }
        outputs.push(output);
    }
    let mut answer = json!({ "model_name": model.name, "model_version": version, "outputs": outputs });
    if let Some(id) = &request.id {
        answer["id"] = json!(id);
    }
    if binary.is_empty() {
        return Json(answer).into_response();
    }
    let mut bytes = answer.to_string().into_bytes();
    let headers = [
        (header::CONTENT_TYPE.as_str(), "application/octet-stream".to_string()),
        (JSON_LENGTH, bytes.len().to_string()),
    ];
    bytes.extend(binary);
    (headers, bytes).into_response()
}

/// An output of [`OUTPUTS`].
fn data_of(name: &str, parts: &[Part]) -> Data {
    let floats = |of: fn(&Part) -> &Vec<f32>| Data::Floats(parts.iter().flat_map(of).copied().collect());
    let texts = |of: fn(&Part) -> &str| Data::Texts(parts.iter().map(|part| of(part).to_string()).collect());
    match name {
        LOGITS => floats(|part| &part.logits),
        PROBABILITIES => floats(|part| &part.shares),
        LABEL => texts(|part| &part.classification.label),
        _ => texts(|part| verdict_name(part.classification.verdict)),
    }
}
