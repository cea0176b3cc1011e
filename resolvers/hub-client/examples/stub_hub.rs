//! A Hub for clients that nobody here wrote: serves FOLDER as REPO until its input ends. Usage: stub_hub REPO FOLDER

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a tool of the tests")]

#[allow(dead_code, reason = "the client's own tests use the rest")]
#[path = "../tests/hub/stub.rs"]
mod stub;

use std::path::Path;

use stub::{Access, Stub};

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [repo, folder] = arguments.as_slice() else { panic!("usage: stub_hub REPO FOLDER") };
    let mut files = Vec::new();
    read(Path::new(folder), "", &mut files);
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let stub = Stub::start().await;
    stub.push(repo, Access::Public, &files);
    println!("{}", stub.url());
    // Whoever started it keeps the other end of its input.
    let wait = || std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    tokio::task::spawn_blocking(wait).await.unwrap().unwrap();
}

fn read(folder: &Path, prefix: &str, files: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() {
            read(&path, &format!("{name}/"), files);
        } else {
            files.push((name, std::fs::read(path).unwrap()));
        }
    }
}
