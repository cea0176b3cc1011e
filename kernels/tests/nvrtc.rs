//! Every kernel compiles for every architecture and keeps its variables in registers.
//!
//! Needs NVRTC but no GPU: `cuda/check.sh` fetches it and runs this.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use loraplex_kernels::cuda::compile::{SOURCES, compile_all};

const ARCHITECTURES: [&str; 6] = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a"];

/// Kernels that may keep variables in memory, with the architecture.
const MAY_SPILL: &[(&str, &str)] = &[];

#[test]
#[ignore = "needs NVRTC: run cuda/check.sh"]
fn every_kernel_compiles_for_every_architecture_without_spills() {
    for arch in ARCHITECTURES {
        let compiled = compile_all(arch, None).unwrap();
        assert_eq!(compiled.len(), SOURCES.len());
        for source in compiled {
            assert!(!source.cubin.is_empty(), "{}", source.name);
            // "serialized": the assembler makes products of four warps wait for each other.
            for bad in ["warning", "serialized"] {
                assert!(!source.log.contains(bad), "{} for {arch}:\n{}", source.name, source.log);
            }
            for report in source.log.split("Compiling entry function '").skip(1) {
                let kernel = report.split('\'').next().unwrap();
                if !MAY_SPILL.contains(&(kernel, arch)) {
                    let kept = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
                    assert!(report.contains(kept), "{kernel} for {arch}:\n{report}");
                }
            }
        }
    }
}

#[test]
fn sources_name_no_other_file() {
    for source in SOURCES {
        assert!(!source.text().contains("#include"), "{} includes a file", source.name);
    }
}
