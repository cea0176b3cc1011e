//! Running ahead changes when steps are submitted and nothing else.

use futures::future::join_all;

use super::*;

/// The engine, and how many steps it has submitted ahead.
fn ahead(change: impl FnOnce(&mut EngineOptions)) -> (EngineHandle, Arc<AtomicUsize>) {
    let runner = Counting::default();
    let count = runner.ahead.clone();
    let engine = engine_of(runner, |options| {
        options.scheduler.run_ahead = Some(true);
        change(options);
    });
    (engine, count)
}

fn tokens(output: &Output) -> Vec<u32> {
    output.tokens.iter().map(|token| token.id).collect()
}

#[test]
fn steps_are_submitted_ahead_and_give_the_same_tokens() {
    let (engine, count) = ahead(|_| {});
    let output = wait(engine.submit(request(20, 40)).unwrap().collect()).unwrap();
    assert!(tokens(&output).into_iter().eq(21..61));
    // All but the prompt's step and the first that follows it could be; a command may have come between.
    let count = count.load(Ordering::Relaxed);
    assert!((30..40).contains(&count), "{count} steps of 40");
    // A request whose last token is known by its number leaves no step behind.
    assert_eq!(engine.open_requests(), 0);
}

#[test]
fn no_step_runs_ahead_while_a_replacement_is_about_to_come() {
    let runner = Counting { pace: Duration::from_millis(2), ..Counting::default() };
    let count = runner.ahead.clone();
    let engine = engine_of(runner, |options| options.scheduler.run_ahead = Some(true));
    let expected = engine.expect_replacement();
    wait(engine.submit(request(20, 40)).unwrap().collect()).unwrap();
    assert_eq!(count.load(Ordering::Relaxed), 0);
    drop(expected);
    let mut stream = engine.submit(request(100, 60)).unwrap();
    while count.load(Ordering::Relaxed) < 20 {
        wait(stream.next()).unwrap().unwrap();
    }
    // From the next step on, whatever is under way.
    let _expected = engine.expect_replacement();
    let before = count.load(Ordering::Relaxed);
    wait(stream.collect()).unwrap();
    assert!(count.load(Ordering::Relaxed) <= before + 1, "{before} and {count:?}");
}

#[test]
fn what_ran_ahead_of_a_stop_is_thrown_away() {
    // Two sequences run at once, over blocks for three: others take the places of those that have stopped.
    let (engine, count) = ahead(|options| options.blocks = BlockManager::new(16, 4, true));
    let asks = (0..40_u32).map(|index| {
        let mut ask = request(100 + index * 20, 30);
        // Somewhere on its way, or never.
        ask.params.stop_token_ids = vec![100 + index * 20 + 1 + index % 33];
        engine.submit(ask).unwrap().collect()
    });
    for (index, output) in wait(join_all(asks)).into_iter().enumerate() {
        let (output, first) = (output.unwrap(), 100 + index as u32 * 20);
        let end = first + 1 + (index as u32 % 33).min(29);
        assert!(tokens(&output).into_iter().eq(first + 1..=end), "{index}: {output:?}");
        let stopped = output.finish.unwrap().reason == FinishReason::Stop;
        assert_eq!(stopped, index % 33 <= 29, "{index}");
    }
    assert!(count.load(Ordering::Relaxed) > 100, "{count:?}");
}

#[test]
fn a_step_that_fails_ahead_fails_in_its_turn() {
    let (engine, _) = ahead(|_| {});
    // 99 is drawn after nine tokens, and met by the step behind. Who reads slowly finds the failure before its last tokens.
    let mut stream = engine.submit(request(90, 20)).unwrap();
    let mut found = Vec::new();
    let error = loop {
        match wait(stream.next()).unwrap() {
            Ok(piece) => found.extend(tokens(&piece)),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind, ErrorKind::Internal);
    assert!(found.len() <= 9 && found.iter().copied().eq(91..91 + found.len() as u32), "{found:?}");
    assert!(wait(engine.submit(request(20, 2)).unwrap().collect()).is_ok());
}

/// A generation of an adapter that takes all room there is.
fn of_adapter(generation: u64) -> GenerateRequest {
    GenerateRequest {
        adapter: Some(adapter("x", generation, 10)),
        ..request(100 * generation as u32, 60)
    }
}

#[test]
fn steps_run_ahead_while_others_wait_for_room() {
    let (engine, count) = ahead(|options| options.adapter_pool = 10);
    let streams = [1, 2, 3].map(|at| (at, engine.submit(of_adapter(at)).unwrap()));
    for (at, stream) in streams {
        let output = wait(stream.collect()).unwrap();
        let first = 100 * at as u32;
        assert!(tokens(&output).into_iter().eq(first + 1..=first + 60));
    }
    let count = count.load(Ordering::Relaxed);
    assert!((150..180).contains(&count), "{count} steps of 180");
}

#[test]
fn who_has_waited_too_long_for_room_is_told_while_steps_run_ahead() {
    let runner = Counting { pace: Duration::from_millis(1), ..Counting::default() };
    let count = runner.ahead.clone();
    let engine = engine_of(runner, |options| {
        options.scheduler.run_ahead = Some(true);
        options.scheduler.adapter_wait = Duration::ZERO;
        options.adapter_pool = 10;
        (options.max_model_len, options.vocab_size) = (1 << 15, 1 << 15);
        options.blocks = BlockManager::new(1 << 13, 4, true);
    });
    // One that does not end by itself.
    let mut first = of_adapter(20);
    first.params.max_tokens = 30_000;
    let mut runs = engine.submit(first).unwrap();
    wait(runs.next()).unwrap().unwrap();
    let error = wait(engine.submit(of_adapter(21)).unwrap().collect()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    drop(runs);
    assert!(count.load(Ordering::Relaxed) > 0);
}
