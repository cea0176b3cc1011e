//! Times steps of Llama-3.1-8B's shape on a GPU, with random weights made there, and writes one JSON.
//!
//! `gpu bench OUT.json` measures decode steps over batch sizes and adapters (rank 16 on all projections), and prefill.
//! `gpu profile BATCH ADAPTERS` issues a few decode steps without graphs, and `gpu prefill ADAPTERS` one step of prompts,
//! for a profiler to look at. `gpu sites` tells what adapters of each site cost, `gpu decode ROWS/ADAPTERS …` and
//! `gpu prompts ROWS/ADAPTERS …` what they cost steps of so many rows.
//! `gpu draw` times the head and the draws alone, `gpu idle ROWS …` what room for adapters costs steps without any.
#![allow(clippy::print_stdout, reason = "a program for people")]

mod bench;
mod draws;
mod model;

use std::error::Error;

use loraplex_kernels::cuda::{CudaBackend, CudaOptions};
use loraplex_kernels::{KernelError, Site};

use bench::Bench;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // As where there is no room for adapters below the weights.
    let slots = if arguments.first() == Some(&"--no-slots") { 0 } else { 64 };
    arguments.retain(|&argument| argument != "--no-slots");
    let open_with = |graph_rows: Vec<usize>, slots: usize| {
        let mut backend = CudaBackend::new(CudaOptions {
            device: 0,
            kernel_cache: Some(std::env::temp_dir().join("loraplex-cubin")),
            graph_rows,
        })?;
        backend.make_slots(slots);
        Ok::<_, KernelError>(backend)
    };
    let open = |graph_rows: Vec<usize>| open_with(graph_rows, slots);
    match arguments[..] {
        ["bench", out] => {
            let mut bench = Bench::new(open(CudaOptions::usual_graph_rows())?, &Site::ALL)?;
            std::fs::write(out, bench.run()?)?;
        }
        [kind @ ("decode" | "prompts"), ref cells @ ..] => {
            let mut bench = Bench::new(open(CudaOptions::usual_graph_rows())?, &Site::ALL)?;
            for cell in cells {
                let (rows, distinct) = cell.split_once('/').ok_or("a cell is ROWS/ADAPTERS")?;
                let cell = (rows.parse()?, distinct.parse()?);
                if kind == "decode" { bench.cost(cell)? } else { bench.prompts(cell)? }
            }
        }
        ["idle", ref rows @ ..] => {
            let open = |slots| open_with(CudaOptions::usual_graph_rows(), slots);
            let (mut with, mut without) =
                (Bench::new(open(slots)?, &Site::ALL)?, Bench::new(open(0)?, &Site::ALL)?);
            for rows in rows {
                bench::idle(&mut with, &mut without, rows.parse()?)?;
            }
        }
        ["profile", batch, adapters] => {
            let mut bench = Bench::new(open(Vec::new())?, &Site::ALL)?;
            println!("{:.3} ms a step", bench.decode(batch.parse()?, adapters.parse()?, 6)?);
        }
        ["prefill", adapters] => {
            let mut bench = Bench::new(open(Vec::new())?, &Site::ALL)?;
            println!("{:.4} s for the step", bench.prefill_step(adapters.parse()?)?);
        }
        ["sites"] => {
            for sites in [&Site::ALL[..], &[Site::Qkv], &[Site::O], &[Site::GateUp], &[Site::Down]]
            {
                println!("adapters of {sites:?}");
                let backend = open(CudaOptions::usual_graph_rows())?;
                Bench::new(backend, sites)?.costs()?;
            }
        }
        ["draw"] => draws::run(open(Vec::new())?)?,
        _ => println!(
            "gpu [--no-slots] bench OUT.json | gpu decode ROWS/ADAPTERS … | gpu prompts ROWS/ADAPTERS … | gpu profile BATCH ADAPTERS | gpu prefill ADAPTERS | gpu sites | gpu draw | gpu idle ROWS …"
        ),
    }
    Ok(())
}
