//! What bounds a piece, and where the bound lies on this machine in this second.

use loraplex_kernels::cpu::probe::Probe;

/// Reads at each of the probe's turns; the best counts, since others may use the machine.
const TURNS: usize = 5;

/// What a piece cannot do without.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Floor {
    /// To be read from memory.
    Bytes(usize),
    /// Multiplications and additions.
    Operations(usize),
}

impl Floor {
    /// The time that it takes, for people.
    pub(crate) fn limit(self, probe: &mut Probe) -> String {
        let mut best = |measure: fn(&mut Probe) -> loraplex_kernels::Result<f64>| {
            (0..TURNS).filter_map(|_| measure(probe).ok()).fold(f64::MIN_POSITIVE, f64::max)
        };
        let (what, unit, rate) = match self {
            Self::Bytes(bytes) => (bytes as f64, "MB at", best(Probe::read)),
            Self::Operations(count) => {
                (count as f64, "million operations at", best(Probe::multiply))
            }
        };
        let micros = what / rate * 1e6;
        format!("{micros:.1} us: {:.1} {unit} {:.1} G/s", what / 1e6, rate / 1e9)
    }
}
