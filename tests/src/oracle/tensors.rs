//! Matrices and the file format that holds them.

use serde_json::{Map, Value, json};

/// A matrix of f32 that is zero where nothing was written.
#[derive(Debug, Clone)]
pub(super) struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

impl Matrix {
    pub(super) fn zeros(rows: usize, columns: usize) -> Self {
        Self { rows, columns, values: vec![0.0; rows * columns] }
    }

    pub(super) fn set(mut self, row: usize, column: usize, value: f32) -> Self {
        self.add(row, column, value);
        self
    }

    pub(super) fn add(&mut self, row: usize, column: usize, value: f32) {
        self.values[row * self.columns + column] += value;
    }

    fn shape(&self) -> Vec<usize> {
        // A vector is a matrix of one row.
        if self.rows == 1 { vec![self.columns] } else { vec![self.rows, self.columns] }
    }
}

/// A safetensors file.
pub(super) fn safetensors(tensors: &[(String, Matrix)], keep_rows: bool) -> Vec<u8> {
    let mut header = Map::new();
    let mut data = Vec::new();
    for (name, matrix) in tensors {
        let start = data.len();
        data.extend(matrix.values.iter().flat_map(|value| value.to_le_bytes()));
        let shape = if keep_rows { vec![matrix.rows, matrix.columns] } else { matrix.shape() };
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    let mut header = Value::Object(header).to_string();
    // The format aligns the data.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    file
}
