//! Where tensors lie in which file.

use super::{DATA_ALIGN, TENSOR_ALIGN, WeightDecl};
use std::ops::Range;

/// One file: its header and the place of its tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileLayout {
    pub file: String,
    /// Everything before the data: length, JSON, spaces.
    pub header: Vec<u8>,
    /// Tensors in it, as indices of the declarations.
    pub tensors: Range<usize>,
    /// Size of the file.
    pub bytes: u64,
}

/// Divides tensors, in order, over files of at most `max_file_bytes`, and places them.
pub fn layout(weights: &[WeightDecl], max_file_bytes: u64) -> Vec<FileLayout> {
    let mut groups: Vec<Range<usize>> = vec![];
    let mut used = 0;
    for (i, w) in weights.iter().enumerate() {
        let bytes = w.bytes.next_multiple_of(TENSOR_ALIGN);
        match groups.last_mut() {
            Some(group) if used + bytes <= max_file_bytes => {
                group.end = i + 1;
                used += bytes;
            }
            _ => {
                groups.push(i..i + 1);
                used = bytes;
            }
        }
    }
    let count = groups.len();
    let place = |(n, tensors): (usize, Range<usize>)| {
        let (header, data) = header(&weights[tensors.clone()]);
        let bytes = header.len() as u64 + data;
        FileLayout { file: format!("weights-{:05}-of-{count:05}.safetensors", n + 1), header, tensors, bytes }
    };
    groups.into_iter().enumerate().map(place).collect()
}

/// The header of a file and the size of its data.
fn header(weights: &[WeightDecl]) -> (Vec<u8>, u64) {
    let mut json = String::from("{\"__metadata__\":{\"format\":\"deepfuse\"}");
    let mut at = 0;
    for w in weights {
        let end = at + w.bytes.next_multiple_of(TENSOR_ALIGN);
        let (dtype, size) = w.elements.only().unwrap_or(crate::elements::Element::U8).safetensors();
        let name = serde_json::to_string(&w.name).expect("a string is always JSON");
        let count = (end - at) / size;
        let entry = format!(",{name}:{{\"dtype\":\"{dtype}\",\"shape\":[{count}],\"data_offsets\":[{at},{end}]}}");
        json.push_str(&entry);
        at = end;
    }
    json.push('}');
    let total = (8 + json.len() as u64).next_multiple_of(DATA_ALIGN);
    let mut header = (total - 8).to_le_bytes().to_vec();
    header.extend(json.as_bytes());
    header.resize(total as usize, b' ');
    (header, at)
}
