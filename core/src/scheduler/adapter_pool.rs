//! Which adapters are on the device: room by their own bytes, leases of running sequences, and who gives way.
//!
//! Pure accounting: the runner makes resident what a step needs and drops what [`StepPlan::evicted`](super::StepPlan)
//! names. A leased generation is never evicted. Where adapters have to be copied to the device, a copy holds a lease of its
//! own until it has ended.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use crate::adapter::Adapter;

/// The device's room for adapters.
#[derive(Debug)]
pub struct AdapterPool {
    limit: usize,
    used: usize,
    /// Bytes of residents with a lease.
    leased: usize,
    residents: HashMap<u64, Resident>,
    /// Counts uses, which orders residents by recency.
    ticks: u64,
    evictions: u64,
    /// Whether adapters are copied to the device, beside steps.
    copies: bool,
    /// Generations whose copy is under way.
    coming: Vec<u64>,
}

#[derive(Debug)]
struct Resident {
    adapter: Weak<Adapter>,
    bytes: usize,
    leases: usize,
    /// Leases that there were since it came.
    served: usize,
    used: u64,
}

/// What the pool holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Generations on the device.
    pub residents: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Bytes that there are.
    pub limit: usize,
    /// Generations that gave way to others, since the start.
    pub evictions: u64,
}

impl AdapterPool {
    /// Room for `limit` bytes on a device that reads adapters where they lie.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            used: 0,
            leased: 0,
            residents: HashMap::new(),
            ticks: 0,
            evictions: 0,
            copies: false,
            coming: Vec::new(),
        }
    }

    /// The same on a device to which adapters are copied if `copies`.
    pub fn with_copies(self, copies: bool) -> Self {
        Self { copies, ..self }
    }

    /// What it holds.
    pub fn stats(&self) -> PoolStats {
        PoolStats {
            residents: self.residents.len(),
            bytes: self.used,
            limit: self.limit,
            evictions: self.evictions,
        }
    }

    /// Whether `generation` is on the device.
    pub fn holds(&self, generation: u64) -> bool {
        self.residents.contains_key(&generation)
    }

    /// Whether a lease of `adapter` can be had now.
    pub fn can_lease(&self, adapter: &Adapter) -> bool {
        self.holds(adapter.generation) || self.limit - self.leased >= adapter.bytes()
    }

    /// Whether a step may use `adapter`, which [`AdapterPool::can_lease`] allows. If it has to be copied first, the copy
    /// takes its room now and is added to `copies`; [`AdapterPool::arrived`] says when it has ended.
    pub fn prepare(
        &mut self,
        adapter: &Arc<Adapter>,
        evicted: &mut Vec<u64>,
        copies: &mut Vec<Arc<Adapter>>,
    ) -> bool {
        if self.copies && !self.holds(adapter.generation) {
            self.lease(adapter, evicted);
            self.coming.push(adapter.generation);
            copies.push(adapter.clone());
        }
        !self.coming.contains(&adapter.generation)
    }

    /// A copy has ended.
    pub fn arrived(&mut self, generation: u64) {
        if let Some(at) = self.coming.iter().position(|&coming| coming == generation) {
            self.coming.swap_remove(at);
            self.release(generation);
        }
    }

    /// Whether a copy is under way.
    pub fn is_copying(&self) -> bool {
        !self.coming.is_empty()
    }

    /// Takes a lease of `adapter`, which [`AdapterPool::can_lease`] allows. What has to give way, least recently used
    /// first, is added to `evicted`.
    pub fn lease(&mut self, adapter: &Arc<Adapter>, evicted: &mut Vec<u64>) {
        self.ticks += 1;
        let ticks = self.ticks;
        let adapter_ref = Arc::downgrade(adapter);
        if let Some(resident) = self.residents.get_mut(&adapter.generation) {
            // It may have left host memory and be back.
            resident.adapter = adapter_ref;
            if resident.leases == 0 {
                self.leased += resident.bytes;
            }
            resident.leases += 1;
            resident.served += 1;
            resident.used = ticks;
            return;
        }
        let bytes = adapter.bytes();
        while self.used + bytes > self.limit {
            let idle = self.residents.iter().filter(|(_, resident)| resident.leases == 0);
            let oldest = idle.min_by_key(|(_, resident)| resident.used).map(|(&at, _)| at);
            let Some(oldest) = oldest else { break };
            self.evictions += 1;
            self.remove(oldest);
            evicted.push(oldest);
        }
        debug_assert!(self.used + bytes <= self.limit, "a lease follows can_lease");
        self.used += bytes;
        self.leased += bytes;
        let resident = Resident { adapter: adapter_ref, bytes, leases: 1, served: 1, used: ticks };
        self.residents.insert(adapter.generation, resident);
    }

    /// Gives a lease back. The weights stay until others need the room.
    pub fn release(&mut self, generation: u64) {
        let resident = self.residents.get_mut(&generation).expect("what is leased is resident");
        resident.leases -= 1;
        if resident.leases == 0 {
            self.leased -= resident.bytes;
        }
    }

    /// Takes out all that have no lease, and adds them to `evicted`. Returns their bytes.
    pub fn evict_idle(&mut self, evicted: &mut Vec<u64>) -> usize {
        let before = self.used;
        let idle = self.residents.iter().filter(|(_, resident)| resident.leases == 0);
        let idle: Vec<u64> = idle.map(|(&generation, _)| generation).collect();
        self.evictions += idle.len() as u64;
        for &generation in &idle {
            self.remove(generation);
        }
        evicted.extend(idle);
        before - self.used
    }

    /// Forgets generations that nobody else holds any more; the runner drops them too.
    pub fn release_unused(&mut self) {
        let used = &mut self.used;
        self.residents.retain(|_, resident| {
            let keep = resident.leases > 0 || resident.adapter.strong_count() > 0;
            if !keep {
                *used -= resident.bytes;
            }
            keep
        });
    }

    /// Whether `generation` has had its share of leases since it came, of `all` that residents have at once.
    pub fn had_its_share(&self, generation: u64, all: usize) -> bool {
        let share = all / self.residents.len().max(1);
        self.residents.get(&generation).is_some_and(|resident| resident.served > share)
    }

    /// Leased generations that must end for `bytes` to have room, if there are enough: of those that have had their share of
    /// `all` leases the ones with the fewest, so that the fewest requests wait for it. Who is `impatient` has the others give
    /// way, too. One that is being copied has served nobody yet and stays.
    pub fn victims(&self, bytes: usize, (all, impatient): (usize, bool), victims: &mut Vec<u64>) {
        victims.clear();
        let mut leased: Vec<(bool, usize, u64, usize)> = self
            .residents
            .iter()
            .filter(|(generation, resident)| {
                resident.leases > 0 && !self.coming.contains(generation)
            })
            .map(|(&generation, resident)| {
                let lacks = !self.had_its_share(generation, all);
                (lacks, resident.leases, generation, resident.bytes)
            })
            .filter(|(lacks, ..)| impatient || !lacks)
            .collect();
        leased.sort_unstable();
        let mut room = self.limit - self.leased;
        for (_, _, generation, freed) in leased {
            if room >= bytes {
                return;
            }
            room += freed;
            victims.push(generation);
        }
        if room < bytes && !impatient {
            victims.clear();
        }
    }

    fn remove(&mut self, generation: u64) {
        if let Some(resident) = self.residents.remove(&generation) {
            self.used -= resident.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::testing::adapter;

    #[test]
    fn what_is_leased_stays_and_the_least_recently_used_gives_way() {
        let mut pool = AdapterPool::new(30);
        let mut evicted = Vec::new();
        let [a, b, c, d] = [1, 2, 3, 4].map(|generation| adapter("x", generation, 10));
        for one in [&a, &b, &c] {
            pool.lease(one, &mut evicted);
        }
        assert!(!pool.can_lease(&d), "all is leased");
        assert!(pool.can_lease(&a), "what is resident can be shared");
        pool.release(2);
        pool.release(1);
        pool.lease(&d, &mut evicted);
        assert_eq!(evicted, [1], "1 was used before 2");
        assert!(pool.holds(2) && !pool.holds(1));
        assert!(!pool.can_lease(&adapter("x", 5, 11)), "two are leased");
        let large = adapter("x", 5, 10);
        pool.lease(&large, &mut evicted);
        assert_eq!(evicted, [1, 2]);
        assert_eq!(pool.stats().bytes, 30);
    }

    #[test]
    fn ranks_take_their_own_room() {
        let mut pool = AdapterPool::new(30);
        let all: Vec<_> = (0..15).map(|generation| adapter("x", generation, 2)).collect();
        let mut evicted = Vec::new();
        for one in &all {
            assert!(pool.can_lease(one));
            pool.lease(one, &mut evicted);
        }
        assert_eq!((evicted.len(), pool.stats().residents), (0, 15));
    }

    #[test]
    fn a_generation_that_nobody_holds_is_forgotten() {
        let mut pool = AdapterPool::new(30);
        let old = adapter("x", 1, 10);
        pool.lease(&old, &mut Vec::new());
        drop(old);
        pool.release_unused();
        assert!(pool.holds(1), "its lease keeps it");
        pool.release(1);
        pool.release_unused();
        assert_eq!(pool.stats(), PoolStats { limit: 30, ..PoolStats::default() });
    }

    #[test]
    fn all_but_what_is_leased_can_leave_at_once() {
        let mut pool = AdapterPool::new(30);
        let [a, b] = [1, 2].map(|generation| adapter("x", generation, 10));
        for one in [&a, &b] {
            pool.lease(one, &mut Vec::new());
        }
        pool.release(1);
        let mut evicted = Vec::new();
        assert_eq!((pool.evict_idle(&mut evicted), &evicted[..]), (10, &[1][..]));
        assert!(pool.holds(2) && pool.stats().bytes == 10);
        pool.release(2);
        assert_eq!(pool.evict_idle(&mut evicted), 10);
        assert_eq!((pool.stats().bytes, pool.stats().evictions), (0, 2));
    }

    #[test]
    fn the_fewest_leases_end_for_who_has_waited_too_long() {
        let mut pool = AdapterPool::new(30);
        let mut evicted = Vec::new();
        let [a, b, c] = [1, 2, 3].map(|generation| adapter("x", generation, 10));
        for one in [&a, &a, &a, &b, &c, &c] {
            pool.lease(one, &mut evicted);
        }
        let mut victims = Vec::new();
        pool.victims(10, (0, false), &mut victims);
        assert_eq!(victims, [2]);
        pool.victims(20, (0, false), &mut victims);
        assert_eq!(victims, [2, 3]);
        pool.release(2);
        pool.victims(10, (0, false), &mut victims);
        assert_eq!(victims, [0u64; 0]);
    }
}
