//! Each backend against the reference, and the reference against a decoder in f64 that is written differently.
//!
//! A case is a model shape, adapters and a workload; all of it is random, from a seed made of the case's name. Buffers
//! are opaque, so a run issues the operations up to a [`Probe`], multiplies what is there with a random head, and reads
//! the log-probabilities of the whole (small) vocabulary. Before a run every buffer and every cache block is filled
//! with NaN.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod case;
mod compare;
mod device;
mod draws;
mod naive;
mod plan;
mod run;
mod world;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Mutex, OnceLock};

use loraplex_kernels::cpu::{CpuBackend, CpuOptions, Isa};
use loraplex_kernels::cuda::{CudaBackend, CudaOptions};
use loraplex_kernels::reference::ReferenceBackend;
use loraplex_kernels::{
    Backend, DType, OpCounters, Part, Penalties, SampleRow, SampleTask, SamplingParams, Seen, Site,
    StepOutput,
};

use case::{Case, cases};
use compare::{Tolerance, assert_close, assert_consistent, assert_same_bits, widened};
use draws::{Sheet, all_logits, all_rows, assert_drawn, assert_lawful, is_same};
use plan::Plan;
use run::{Job, Outputs, run_case};
use world::{LAYERS, Probe, World};

/// A backend under test.
struct Subject {
    name: String,
    /// Largest difference to the reference, as a share of the spread of a row's log-probabilities.
    tolerance: Tolerance,
    /// Whether a row's results promise not to depend on its neighbours, by a bit.
    bit_identical: bool,
    run: Box<Run>,
    /// Draws from known logits, so many rows in a step.
    draw: Box<Draw>,
}

type Run = dyn Fn(&Job<'_>) -> (Outputs, OpCounters);
type Draw = dyn Fn(&Sheet<'_>, usize) -> StepOutput;

/// Every backend of this crate that this machine can run. A new one is a line here.
fn backends() -> Vec<Subject> {
    let mut subjects = vec![subject("reference", true, ReferenceBackend::new)];
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
        for dtype in [DType::Bf16, DType::F32] {
            // Three threads, so that tasks of an operation run in another order than they are made.
            let options = CpuOptions { dtype, threads: 3, isa: Some(isa) };
            let make = move || CpuBackend::new(options).unwrap();
            subjects.push(subject(&make().device().name, true, make));
        }
    }
    if CudaBackend::probe(0).is_ok() {
        subjects.push(subject("cuda", false, || cuda(&[], 0)));
        subjects.push(subject("cuda, adapters below weights", false, || cuda(&[], 8)));
    }
    subjects
}

/// The first GPU; steps of decodes are padded to `graph_rows` and captured.
fn cuda(graph_rows: &[usize], slots: usize) -> CudaBackend {
    // One backend stays open: the last to go would close the device, which takes long to open.
    static OPEN: OnceLock<Mutex<CudaBackend>> = OnceLock::new();
    let kernel_cache = Some(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("cubin"));
    let options = |graph_rows| CudaOptions { device: 0, kernel_cache, graph_rows };
    OPEN.get_or_init(|| Mutex::new(CudaBackend::new(options.clone()(Vec::new())).unwrap()));
    let mut backend = CudaBackend::new(options(graph_rows.to_vec())).unwrap();
    backend.make_slots(slots);
    backend
}

fn subject<B: Backend>(name: &str, bit_identical: bool, make: impl Fn() -> B + 'static) -> Subject {
    let (most, root) = match make().device().dtype {
        DType::F32 => (2e-5, 4e-6),
        DType::F16 => (1e-2, 2e-3),
        // Of some million values; one in ten thousand differs by more than 6e-2.
        DType::Bf16 if bit_identical => (2e-1, 4e-2),
        // The GPU rounds what LoRA adds too: one in twenty thousand is off by over 1e-1, nearly all of them in a few rows.
        DType::Bf16 => (4e-1, 4e-2),
    };
    let tolerance = Tolerance { most, root };
    let make = Rc::new(make);
    let make_too = make.clone();
    Subject {
        name: name.into(),
        tolerance,
        bit_identical,
        run: Box::new(move |job| run_case(&*make, job)),
        draw: Box::new(move |sheet, at_once| draws::draw(make_too(), sheet, at_once)),
    }
}

impl Subject {
    /// What the reference rounds down to 8 bits another backend may round up, beside the rounding to its own dtype.
    fn tolerance(&self, case: &Case) -> Tolerance {
        let Tolerance { most, root } = self.tolerance;
        if case.int8 {
            return Tolerance { most: (1.25 * most).max(3e-1), root: root.max(4e-2) };
        }
        self.tolerance
    }

    fn outputs(&self, case: &Case, world: &World, plan: &Plan, probe: Probe) -> Outputs {
        (self.run)(&Job { case, world, plan, probe, draws: None }).0
    }
}

#[test]
fn the_reference_agrees_with_a_naive_decoder() {
    let reference = subject("reference", true, ReferenceBackend::new);
    for case in cases() {
        let world = World::new(&case);
        let expected = naive::run(&case, &world);
        for probe in Probe::ALL {
            let found = reference.outputs(&case, &world, &Plan::mixed(&case), probe);
            assert_consistent(&case, &world, &found);
            let name = format!("{}, {probe:?}", case.name);
            assert_close(&name, &expected[&probe], &found, reference.tolerance(&case));
        }
    }
}

#[test]
fn every_backend_agrees_with_the_reference() {
    let reference = subject("reference", true, ReferenceBackend::new);
    for case in cases() {
        let world = World::new(&case);
        let plan = Plan::mixed(&case);
        for probe in Probe::ALL {
            let expected = widened(&reference.outputs(&case, &world, &plan, probe));
            for backend in backends() {
                let found = backend.outputs(&case, &world, &plan, probe);
                assert_consistent(&case, &world, &found);
                let name = format!("{}: {}, {probe:?}", backend.name, case.name);
                assert_close(&name, &expected, &found, backend.tolerance(&case));
            }
        }
    }
}

#[test]
fn replayed_steps_agree_with_the_reference() {
    if CudaBackend::probe(0).is_err() {
        return;
    }
    let reference = subject("reference", true, ReferenceBackend::new);
    let replayed = subject("cuda, replayed", false, || cuda(&[2, 4, 16], 8));
    // Steps that fill the cache with NaN come one row a sequence where blocks hold one token, but from another table.
    for case in cases().into_iter().filter(|case| case.block_size > 1) {
        let (world, plan, probe) = (World::new(&case), Plan::mixed(&case), Probe::Decoder);
        let expected = widened(&reference.outputs(&case, &world, &plan, probe));
        let found = replayed.outputs(&case, &world, &plan, probe);
        assert_consistent(&case, &world, &found);
        assert_close(
            &format!("replayed: {}", case.name),
            &expected,
            &found,
            replayed.tolerance(&case),
        );
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours_by_a_bit() {
    for backend in backends().iter().filter(|backend| backend.bit_identical) {
        for case in cases() {
            let world = World::new(&case);
            let run = |plan: Plan| backend.outputs(&case, &world, &plan, Probe::Decoder);
            let mixed = run(Plan::mixed(&case));
            let plans = [
                ("all at once", Plan::at_once(&case)),
                ("alone", Plan::alone(&case, usize::MAX)),
                ("alone, in chunks of 5", Plan::alone(&case, 5)),
                ("alone, row by row", Plan::alone(&case, 1)),
            ];
            for (how, plan) in plans {
                let name = format!("{}: {}, {how}", backend.name, case.name);
                assert_same_bits(&name, &mixed, &run(plan));
            }
        }
    }
}

/// Parameters as different as the places.
fn varied((sequence, position): (usize, usize)) -> SamplingParams<'static> {
    const PENALTIES: Penalties<'_> = Penalties {
        repetition: 1.0,
        presence: 0.8,
        frequency: 0.3,
        seen: &[
            Seen { token: 1, in_output: 0 },
            Seen { token: 2, in_output: 0 },
            Seen { token: 3, in_output: 0 },
            Seen { token: 4, in_output: 3 },
            Seen { token: 5, in_output: 1 },
            Seen { token: 6, in_output: 1 },
        ],
        // One that the step before drew, where steps are issued one behind.
        own: true,
    };
    let of = |choices: &[f32]| choices[position % choices.len()];
    SamplingParams {
        banned: if sequence % 2 == 0 { &[7, 8] } else { &[] },
        bias: if position % 2 == 0 { &[(9, 3.0), (10, -2.0)] } else { &[] },
        penalties: (position % 3 == 0).then_some(PENALTIES),
        temperature: of(&[0.0, 0.7, 1.0, 1.5, 1.0]),
        min_p: of(&[0.0, 0.031, 0.0]),
        top_k: of(&[0.0, 5.0, 20.0, 0.0, 0.0, 0.0, 1.0]) as u32,
        top_p: of(&[1.0, 0.83, 1.0, 0.37]),
        seed: sequence as u64,
        draw: position as u64,
    }
}

#[test]
fn every_row_draws_with_its_own_parameters() {
    for case in cases() {
        let world = World::new(&case);
        let (plan, probe, draws) = (Plan::at_once(&case), Probe::Decoder, Some(varied as _));
        for backend in backends() {
            let job = Job { case: &case, world: &world, plan: &plan, probe, draws };
            for (place, row) in (backend.run)(&job).0 {
                // Log-probabilities are logits but for a constant, which changes nothing here, and for their rounding.
                let name = format!("{}: {}, {place:?}", backend.name, case.name);
                let own = world.tokens[place.0][place.1];
                assert_drawn(&name, (&row.logprobs, 4e-6), (&varied(place), own), row.token);
            }
        }
    }
}

/// Every combination for short rows of logits, a few for long ones.
fn sheets() -> Vec<Sheet<'static>> {
    let sheet = |(name, logits): (_, Vec<f32>)| {
        let rows = all_rows(logits.len(), if logits.len() > 100_000 { 13 } else { 1 });
        Sheet { name, logits, rows }
    };
    all_logits().into_iter().map(sheet).collect()
}

#[test]
fn draws_follow_the_formulas() {
    for sheet in sheets() {
        let mut lawful: Vec<StepOutput> = Vec::new();
        for backend in backends() {
            let output = (backend.draw)(&sheet, usize::MAX);
            // The formulas take long.
            if !lawful.iter().any(|other| is_same(other, &output)) {
                assert_lawful(&backend.name, &sheet, &output);
                lawful.push(output);
            }
        }
    }
}

#[test]
fn a_draw_does_not_depend_on_the_rows_beside_it() {
    for mut sheet in sheets() {
        sheet.rows = sheet.rows.into_iter().step_by(5).collect();
        for backend in backends() {
            let expected = (backend.draw)(&sheet, usize::MAX);
            for at_once in [1, 3] {
                let found = (backend.draw)(&sheet, at_once);
                let name = format!("{}: {}, {at_once} at once", backend.name, sheet.name);
                assert!(is_same(&found, &expected), "{name}: {found:?}, not {expected:?}");
            }
        }
    }
}

#[test]
fn more_changes_than_a_device_takes_are_made() {
    let seen: Vec<Seen> =
        (0..20_000).map(|i| Seen { token: i * 3, in_output: u32::from(i < 9) }).collect();
    let penalties =
        Penalties { repetition: 1.2, presence: 2.0, frequency: 0.0, seen: &seen, own: true };
    let rows = (0..3).map(|draw| {
        let penalties = Some(penalties);
        let params = SamplingParams { temperature: 1.0, penalties, draw, ..SamplingParams::GREEDY };
        SampleRow { row: 0, task: SampleTask::Draw(params), logprobs: Some(3) }
    });
    let (name, logits) = all_logits().into_iter().find(|(name, _)| *name == "large").unwrap();
    let mut sheet = Sheet { name, logits, rows: rows.collect() };
    // Beside one whose changes the device does take.
    sheet.rows.extend(all_rows(sheet.logits.len(), 97));
    for backend in backends() {
        assert_lawful(&backend.name, &sheet, &(backend.draw)(&sheet, usize::MAX));
    }
}

#[test]
fn operations_are_counted() {
    for case in cases().into_iter().filter(|case| case.sorted) {
        let world = World::new(&case);
        let plan = Plan::mixed(&case);
        let (mut shrinks, mut expands) = (0, 0);
        for chunks in &plan.steps {
            let adapters: BTreeSet<usize> =
                chunks.iter().filter_map(|chunk| world.adapter_of[chunk.sequence]).collect();
            for ranks in adapters.into_iter().map(|adapter| case.adapters[adapter]) {
                let touched = |part: &&Part| ranks[**part as usize] > 0;
                let parts = |site: Site| site.parts().iter().filter(touched).count();
                shrinks += LAYERS * Site::ALL.into_iter().filter(|site| parts(*site) > 0).count();
                expands += LAYERS * Site::ALL.into_iter().map(parts).sum::<usize>();
            }
        }
        let expected = OpCounters {
            steps: plan.steps.len() as u64,
            lora_shrinks: shrinks as u64,
            lora_expands: expands as u64,
        };
        for backend in backends() {
            let (plan, probe) = (&plan, Probe::Decoder);
            let job = Job { case: &case, world: &world, plan, probe, draws: None };
            assert_eq!((backend.run)(&job).1, expected, "{}: {}", backend.name, case.name);
        }
    }
}
