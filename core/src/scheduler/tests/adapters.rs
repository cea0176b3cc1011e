//! Room for adapters: who is passed, who gives way, and who takes a successor.

use std::sync::Arc;
use std::time::Instant;

use super::super::*;
use super::Scene;
use crate::adapter::testing::adapter;
use crate::request::UpdatePolicy;

/// Adapters of ten bytes each, under names of their own.
fn adapters(count: u64) -> Vec<Arc<Adapter>> {
    (1..=count).map(|generation| adapter(&generation.to_string(), generation, 10)).collect()
}

impl Scene {
    fn has_ended(&self, id: SeqId) -> bool {
        self.endings.iter().any(|(ended, _)| *ended == id.0)
    }

    fn add_to(&mut self, adapter: &Arc<Adapter>, output: u32) -> SeqId {
        let first = 1000 * (self.next as u32 + 1);
        self.add_with(|request| {
            request.prompt = vec![first];
            request.params.max_tokens = output;
            request.adapter = Some(adapter.clone());
        })
    }
}

#[test]
fn who_finds_no_room_is_passed_and_comes_next() {
    // Room for three adapters.
    let mut scene = Scene::new(16, 8, 64);
    let all = adapters(4);
    for one in &all {
        scene.add_to(one, 2);
    }
    scene.add(1, 1);
    scene.add_to(&all[0], 1);
    assert_eq!(scene.step(), "0[0..1)* 1[0..1)* 2[0..1)* 4[0..1)* 5[0..1)*");
    assert_eq!(scene.step(), "0[1..2)* 1[1..2)* 2[1..2)*");
    assert_eq!(scene.run(), ["3[0..1)*", "3[1..2)*"]);
    assert_eq!(scene.scheduler.pool().evictions, 1);
}

#[test]
fn nobody_is_passed_for_ever() {
    // Three hot adapters always have somebody waiting; the fourth must have its turn all the same.
    let mut scene = Scene::new(16, 4, 256);
    let all = adapters(4);
    let mut served = None;
    for turn in 0..200 {
        for hot in &all[..3] {
            scene.add_to(hot, 3);
        }
        if turn == 5 {
            served = Some(scene.add_to(&all[3], 1));
        }
        scene.step();
        if served.is_some_and(|id| scene.has_ended(id)) {
            assert!(turn < 30, "it waits {turn} turns");
            scene.scheduler.abort_all(&mut scene.blocks);
            return;
        }
    }
    panic!("the fourth adapter starves");
}

/// Where requests are few, those of three adapters that always have one running would keep out the fourth for as many
/// requests as a batch has sequences, and so for hours.
#[test]
fn who_has_waited_for_long_is_let_in_where_few_pass() {
    let mut scene = Scene::new(16, 64, 256);
    let all = adapters(4);
    let now = Instant::now();
    let waits = SchedulerConfig::default().adapter_wait;
    let mut late = None;
    for turn in 0..120 {
        // Two of each, one ending after the other has begun.
        if turn % 4 == 0 {
            all[..3].iter().for_each(|hot| {
                scene.add_to(hot, 6);
            });
        }
        if turn == 10 {
            late = Some(scene.add_to(&all[3], 1));
        }
        scene.step();
        let clock = if turn < 60 { now } else { now + waits / 3 };
        assert!(scene.scheduler.expire(clock, &mut scene.blocks).is_empty());
        let Some(late) = late else { continue };
        assert!(turn >= 60 || !scene.has_ended(late), "nothing keeps it out");
        if scene.has_ended(late) {
            assert!(turn < 75, "it waits for {turn} turns");
            scene.scheduler.abort_all(&mut scene.blocks);
            return;
        }
    }
    panic!("the fourth adapter starves");
}

#[test]
fn many_adapters_over_little_room_run_in_full_batches() {
    // 64 adapters of 8 requests each, room for 8, 64 sequences at once; as many steps as 8 adapters would take.
    let now = Instant::now();
    let long = now + SchedulerConfig::default().adapter_wait / 3;
    let ends = |distinct: usize, order: fn(usize) -> usize, slow: bool| {
        let mut scene = Scene::new(512, 64, 4096);
        scene.scheduler.pool = AdapterPool::new(80);
        let all = adapters(64);
        for turn in 0..512 {
            scene.add_to(&all[order(turn) / (512 / distinct)], 32);
        }
        let (mut steps, mut ends) = (0, Vec::new());
        while scene.scheduler.has_work() {
            scene.step();
            steps += 1;
            ends.resize(scene.endings.len(), steps);
            // Where steps are slow, all that wait have waited for long.
            for clock in [now, if slow { long } else { now }] {
                assert!(scene.scheduler.expire(clock, &mut scene.blocks).is_empty());
            }
        }
        (ends, scene.scheduler.pool().evictions)
    };
    // All numbers below 512 once: one adapter after the other, or in no order, as clients come.
    let orders = [|turn| turn % 64 * 8 + turn / 64, |turn| (turn * 205 % 512) ^ 22];
    for (order, slow) in orders.into_iter().flat_map(|order| [(order, false), (order, true)]) {
        let ((few, _), (many, evictions)) = (ends(8, order, slow), ends(64, order, slow));
        let last = |ends: &[usize]| ends[511];
        assert!(
            last(&many) * 20 <= last(&few) * 21,
            "{} steps, {} with 8",
            last(&many),
            last(&few)
        );
        assert_eq!(evictions, 56, "each comes once");
        assert!(
            last(&many) <= 10 * many[256],
            "the last one waits {} times the median",
            last(&many)
        );
    }
}

#[test]
fn who_waits_too_long_for_room_is_taken_out() {
    let mut scene = Scene::new(16, 8, 64);
    let all = adapters(4);
    for one in &all[..3] {
        scene.add_to(one, 20);
    }
    scene.step();
    let late = scene.add_to(&all[3], 1);
    scene.step();
    let now = Instant::now();
    assert!(scene.scheduler.expire(now, &mut scene.blocks).is_empty());
    let later = now + SchedulerConfig::default().adapter_wait * 2;
    scene.scheduler.restart_waits();
    assert!(scene.scheduler.expire(later, &mut scene.blocks).is_empty(), "the wait began anew");
    let later = later + SchedulerConfig::default().adapter_wait * 2;
    let expired = scene.scheduler.expire(later, &mut scene.blocks);
    assert_eq!(expired.iter().map(|sequence| sequence.id).collect::<Vec<_>>(), [late]);
    assert_eq!(scene.run().len(), 18, "the others go on");
}

#[test]
fn followers_take_the_successor_and_the_pinned_stay() {
    let mut scene = Scene::new(16, 1, 64);
    let [old, new] = [1, 2].map(|generation| adapter("x", generation, 10));
    let generations = |scene: &Scene| {
        let (running, waiting) = scene.scheduler.queues();
        running.chain(waiting).map(Sequence::generation).collect::<Vec<_>>()
    };
    for update_policy in [UpdatePolicy::Follow, UpdatePolicy::Pin, UpdatePolicy::Follow] {
        scene.add_with(|request| {
            request.prompt = (0..9).collect();
            request.params.max_tokens = 8;
            request.adapter = Some(old.clone());
            request.update_policy = update_policy;
        });
    }
    scene.step();
    scene.scheduler.flip(&new);
    // Waiting followers take it at once, running ones at the next step.
    assert_eq!(generations(&scene), [Some(1), Some(1), Some(2)]);
    scene.step();
    assert_eq!(generations(&scene), [Some(2), Some(1), Some(2)]);
    scene.scheduler.flip(&adapter("another", 3, 10));
    scene.scheduler.flip(&old);
    scene.step();
    assert_eq!(generations(&scene), [Some(2), Some(1), Some(2)], "nobody goes back, or astray");
    // Two generations are in the first one's blocks: what it fills from here on is nobody's.
    while scene.scheduler.ids().len() == 3 {
        scene.step();
    }
    let mut table = BlockTable::default();
    let tokens: Vec<u32> = (0..9).chain([7; 8]).collect();
    let old_key = crate::kv_cache::PrefixKey::new(Some(1), None);
    assert_eq!(scene.blocks.take_prefix(old_key, &tokens, &mut table), 8, "two blocks of the old");
    scene.blocks.release(table);
    let mut table = BlockTable::default();
    let new_key = crate::kv_cache::PrefixKey::new(Some(2), None);
    assert_eq!(scene.blocks.take_prefix(new_key, &tokens, &mut table), 0, "none of the new");
    scene.blocks.release(table);
    scene.run();
}

#[test]
fn a_successor_waits_for_room_and_takes_its_predecessors() {
    let mut scene = Scene::new(16, 8, 64);
    let large = |name, generation| adapter(name, generation, 20);
    let (old, new, other) = (large("x", 1), large("x", 2), adapter("y", 3, 10));
    for one in [&old, &other] {
        scene.add_with(|request| {
            request.params.max_tokens = 9;
            request.adapter = Some(one.clone());
            request.update_policy = UpdatePolicy::Follow;
        });
    }
    scene.step();
    scene.scheduler.flip(&new);
    scene.step();
    let generation = |scene: &Scene, slot| scene.scheduler.sequences().get(Slot(slot)).generation();
    assert_eq!(generation(&scene, 0), Some(2), "the old one's room serves the new");
    scene.scheduler.flip(&adapter("x", 4, 25));
    scene.step();
    assert_eq!(generation(&scene, 0), Some(2), "tokens go on while there is none");
    scene.run();
}

#[test]
fn a_follower_that_comes_late_takes_the_successor() {
    let mut scene = Scene::new(16, 8, 64);
    let [old, new] = [1, 2].map(|generation| adapter("x", generation, 10));
    scene.scheduler.flip(&new);
    for update_policy in [UpdatePolicy::Follow, UpdatePolicy::Pin] {
        scene.add_with(|request| {
            request.adapter = Some(old.clone());
            request.update_policy = update_policy;
        });
    }
    let (_, waiting) = scene.scheduler.queues();
    assert_eq!(waiting.map(Sequence::generation).collect::<Vec<_>>(), [Some(2), Some(1)]);
    scene.run();
}

/// Adapters of ten bytes each that are copied to a device with room for three.
fn copying_scene() -> (Scene, Vec<Arc<Adapter>>) {
    let mut scene = Scene::new(16, 8, 64);
    scene.scheduler.pool = AdapterPool::new(30).with_copies(true);
    (scene, adapters(5))
}

#[test]
fn steps_go_on_while_an_adapter_is_copied() {
    let (mut scene, all) = copying_scene();
    scene.add(1, 9);
    scene.add_to(&all[0], 2);
    scene.add_to(&all[0], 2);
    assert_eq!(scene.step(), "0[0..1)*");
    assert_eq!(scene.step(), "0[1..2)*");
    assert!(scene.scheduler.awaits_adapters());
    scene.scheduler.adapter_arrived(1);
    assert_eq!(scene.step(), "0[2..3)* 1[0..1)* 2[0..1)*");
    assert!(!scene.scheduler.awaits_adapters());
    scene.run();
}

#[test]
fn a_copy_holds_its_room_until_it_has_ended() {
    let (mut scene, all) = copying_scene();
    let ids: Vec<SeqId> = all.iter().map(|one| scene.add_to(one, 1)).collect();
    assert_eq!(scene.step(), "", "three are copied, two find no room");
    assert_eq!(scene.scheduler.pool().residents, 3);
    scene.scheduler.abort(ids[0], &mut scene.blocks);
    assert_eq!(scene.step(), "");
    assert_eq!(scene.scheduler.pool().evictions, 0, "its memory is still written to");
    scene.scheduler.adapter_arrived(1);
    scene.scheduler.adapter_arrived(2);
    // The first is not wanted any more, so the fourth takes its place.
    assert_eq!(scene.step(), "1[0..1)*");
    assert!(scene.scheduler.pool.holds(4));
    for generation in 3..=5 {
        scene.step();
        scene.scheduler.adapter_arrived(generation);
    }
    scene.run();
    assert_eq!(scene.endings.len(), 4);
}

#[test]
fn followers_go_on_with_the_older_one_while_its_successor_is_copied() {
    let (mut scene, all) = copying_scene();
    let [old, new] = [1, 2].map(|generation| adapter("x", generation, 10));
    drop(all);
    scene.add_with(|request| {
        request.params.max_tokens = 9;
        request.adapter = Some(old);
        request.update_policy = UpdatePolicy::Follow;
    });
    scene.step();
    scene.scheduler.adapter_arrived(1);
    scene.step();
    scene.scheduler.flip(&new);
    let generation = |scene: &Scene| scene.scheduler.sequences().get(Slot(0)).generation();
    assert_eq!(scene.step(), "0[1..2)*");
    assert_eq!(generation(&scene), Some(1));
    scene.scheduler.adapter_arrived(2);
    assert_eq!(scene.step(), "0[2..3)*");
    assert_eq!(generation(&scene), Some(2));
    scene.run();
}
