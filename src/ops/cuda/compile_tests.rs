//! Every kernel through the run-time compiler, which needs no driver.

use std::collections::BTreeSet;

use rayon::prelude::*;

use super::all_variants;
use crate::base::env_vars;
use crate::device::cuda::{Variant, compile, compiler_version};

/// Every kernel compiles for every architecture, without stack frames or spilled registers: each variant for one, for all
/// those with matrix instructions, which take most registers, and the two most used of each other source. Needs the compiler,
/// but no driver.
#[test]
fn kernels_compile_without_spills() {
    if let Err(error) = compiler_version() {
        assert!(env_vars::get(env_vars::DAY0_NVRTC).is_none(), "DAY0_NVRTC is set, but: {error}");
        eprintln!("skipped: {error}");
        return;
    }
    let variants = all_variants();
    let for_all = |i: usize| {
        let source = variants[i].source;
        source.text.contains("mma.cuh") || variants[..i].iter().filter(|v| v.source == source).count() < 2
    };
    let mut work = Vec::new();
    for architecture in ["sm_80", "sm_89", "sm_90", "sm_100", "sm_120"] {
        let chosen = (0..variants.len()).filter(|i| architecture == "sm_90" || for_all(*i));
        work.extend(chosen.map(|i| (architecture, &variants[i])));
    }
    let table: Vec<String> = work
        .into_par_iter()
        .flat_map(|(architecture, variant)| {
            let cubin = compile(variant, architecture).unwrap();
            assert!(cubin.image.starts_with(b"\x7fELF"), "{variant}: no image");
            let kernels = resources(&cubin.log);
            assert!(!kernels.is_empty(), "{variant}: no resources in the log:\n{}", cubin.log);
            let line = |kernel: Resources| {
                let wasted = (kernel.stack_bytes, kernel.spill_bytes);
                assert_eq!(wasted, (0, 0), "{variant} on {architecture}: {kernel:?}");
                format!("{architecture:7} {:3} registers  {} in {variant}", kernel.registers, kernel.name)
            };
            kernels.into_iter().map(line).collect::<Vec<_>>()
        })
        .collect();
    println!("{}", table.join("\n"));
}

/// Kernels of activations are compiled for both types.
#[test]
fn kernels_of_activations_are_compiled_for_both_types() {
    let variants = all_variants();
    let act = |of: &Variant| of.defines.iter().find(|(name, _)| *name == "ACT").map(|(_, act)| act.clone());
    for of in variants.iter().filter(|of| act(of).is_some()) {
        let of_source = variants.iter().filter(|other| other.source == of.source);
        let acts: BTreeSet<String> = of_source.filter_map(act).collect();
        assert_eq!(acts.into_iter().collect::<Vec<_>>(), ["BF16", "F32"], "{}", of.source.name);
    }
}

/// What the assembler says of one kernel.
#[derive(Debug, PartialEq, Eq)]
struct Resources {
    name: String,
    registers: u32,
    stack_bytes: u32,
    spill_bytes: u32,
}

/// Reads the verbose output of the assembler.
fn resources(log: &str) -> Vec<Resources> {
    let mut found: Vec<Resources> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or_default().to_owned();
            // Until a line says so, the worst is assumed.
            found.push(Resources { name, registers: u32::MAX, stack_bytes: u32::MAX, spill_bytes: u32::MAX });
        }
        let Some(kernel) = found.last_mut() else { continue };
        let before = |text: &str| -> Option<u32> {
            line.split_once(text)?.0.split([' ', ',']).next_back()?.parse().ok()
        };
        if let Some(stack) = before(" bytes stack frame") {
            kernel.stack_bytes = stack;
            kernel.spill_bytes =
                before(" bytes spill stores").unwrap_or(u32::MAX) + before(" bytes spill loads").unwrap_or(0);
        }
        if let Some(registers) = before(" registers") {
            kernel.registers = registers;
        }
    }
    found
}

#[test]
fn resources_are_read_from_the_assembler() {
    let log = "ptxas info    : 0 bytes gmem\nptxas info    : Compiling entry function 'a' for 'sm_90'\n\
        ptxas info    : Function properties for a\n\
        ptxas         .     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
        ptxas info    : Used 46 registers, used 1 barriers, 384 bytes smem\n\
        ptxas info    : Compiling entry function 'b' for 'sm_90'\n\
        ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
        ptxas info    : Used 24 registers\n";
    let of = |name: &str, registers, stack_bytes, spill_bytes| Resources {
        name: name.to_owned(),
        registers,
        stack_bytes,
        spill_bytes,
    };
    assert_eq!(resources(log), [of("a", 46, 8, 16), of("b", 24, 0, 0)]);
}
