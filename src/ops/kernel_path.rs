//! Which CPU instructions the ops use, chosen once at run time, and what linear layers multiply: f32 or bf16.
//!
//! Every op is written once over fixed lanes and compiled for each path. On one path its result has the same bits on
//! every machine, for every batch and thread count; between paths results may differ (the portable one has no fused
//! multiply-add, bf16 dot products of different instructions round differently). The name is part of an engine's
//! identity. Integer products are exact, so they need no name of their own.

use serde::{Deserialize, Serialize};

use super::amx;

/// A kernel path this machine can run: values exist only for detected features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KernelPath {
    pub(super) isa: Isa,
    pub(super) dot: Dot,
}

/// What linear layers multiply; sums, norms, softmax, residuals and log-sum-exp are f32 either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputeDtype {
    /// Weights and inputs as they are: parity with a reference in float32.
    #[default]
    F32,
    /// Weights and inputs of linear layers rounded to bf16: speed.
    Bf16,
}

/// Instruction sets with kernels of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Isa {
    /// AVX-512 F, BW, DQ, VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What the compiler makes of plain Rust.
    Portable,
}

/// How products of floats are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Dot {
    /// f32 multiply-adds.
    F32,
    /// Products of bf16 numbers, which are exact in f32, by f32 multiply-adds.
    Bf16,
    /// `vdpbf16ps`.
    #[cfg(target_arch = "x86_64")]
    Bf16Avx512,
    /// `tdpbf16ps`.
    #[cfg(target_arch = "x86_64")]
    Bf16Amx,
}

impl KernelPath {
    /// The best f32 path of this machine.
    pub fn detect() -> Self {
        Self::best(ComputeDtype::F32)
    }

    /// The best path of this machine for `dtype`.
    pub fn best(dtype: ComputeDtype) -> Self {
        match dtype {
            ComputeDtype::F32 => Self::available()[0],
            ComputeDtype::Bf16 => Self::available_bf16()[0],
        }
    }

    /// Plain Rust in f32, which runs everywhere.
    pub fn portable() -> Self {
        Self { isa: Isa::Portable, dot: Dot::F32 }
    }

    /// Every f32 path of this machine, best first.
    pub fn available() -> Vec<Self> {
        isas().into_iter().map(|isa| Self { isa, dot: Dot::F32 }).collect()
    }

    /// Every bf16 path of this machine, best first.
    pub fn available_bf16() -> Vec<Self> {
        let mut paths = Vec::new();
        for isa in isas() {
            #[cfg(target_arch = "x86_64")]
            if isa == Isa::Avx512 && std::arch::is_x86_feature_detected!("avx512bf16") {
                if amx::available().bf16 {
                    paths.push(Self { isa, dot: Dot::Bf16Amx });
                }
                paths.push(Self { isa, dot: Dot::Bf16Avx512 });
            }
            paths.push(Self { isa, dot: Dot::Bf16 });
        }
        paths
    }

    /// Every path of this machine.
    pub fn all() -> Vec<Self> {
        [Self::available(), Self::available_bf16()].concat()
    }

    /// What linear layers multiply.
    pub fn dtype(self) -> ComputeDtype {
        if self.dot == Dot::F32 { ComputeDtype::F32 } else { ComputeDtype::Bf16 }
    }

    /// The name in records, e.g. `cpu-f32-avx512`.
    pub fn name(self) -> &'static str {
        match (self.dot, self.isa) {
            #[cfg(target_arch = "x86_64")]
            (Dot::F32, Isa::Avx512) => "cpu-f32-avx512",
            #[cfg(target_arch = "x86_64")]
            (Dot::F32, Isa::Avx2) => "cpu-f32-avx2",
            (Dot::F32, Isa::Portable) => "cpu-f32-portable",
            #[cfg(target_arch = "x86_64")]
            (Dot::Bf16Amx, _) => "cpu-bf16-amx",
            #[cfg(target_arch = "x86_64")]
            (Dot::Bf16Avx512, _) => "cpu-bf16-avx512bf16",
            #[cfg(target_arch = "x86_64")]
            (Dot::Bf16, Isa::Avx512) => "cpu-bf16-avx512",
            #[cfg(target_arch = "x86_64")]
            (Dot::Bf16, Isa::Avx2) => "cpu-bf16-avx2",
            (Dot::Bf16, Isa::Portable) => "cpu-bf16-portable",
        }
    }
}

/// Every instruction set of this machine, best first.
fn isas() -> Vec<Isa> {
    let mut isas = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        let avx2 = has!("avx2") && has!("fma");
        if avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
            isas.push(Isa::Avx512);
        }
        if avx2 {
            isas.push(Isa::Avx2);
        }
    }
    isas.push(Isa::Portable);
    isas
}

/// Compiles `body::<FMA, …>(args)` once for each path and dispatches on a leading `path: KernelPath` argument. The body
/// is an `#[inline(always)]` function; `FMA` tells whether fused multiply-add is one instruction.
macro_rules! per_path {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident $(<$($generic:ident: $bound:path),+>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?
            = $body:ident
    ) => {
        $(#[$meta])*
        $vis fn $name $(<$($generic: $bound),+>)? (
            path: $crate::ops::kernel_path::KernelPath,
            $($arg: $ty),*
        ) $(-> $ret)? {
            use $crate::ops::kernel_path::Isa;
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512 $(<$($generic: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
                $body::<true $($(, $generic)+)?>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2 $(<$($generic: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
                $body::<true $($(, $generic)+)?>($($arg),*)
            }
            match path.isa {
                // SAFETY: a `KernelPath` of this kind exists only where its features were detected.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => unsafe { avx512 $(::<$($generic),+>)? ($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { avx2 $(::<$($generic),+>)? ($($arg),*) },
                Isa::Portable => {
                    $body::<{ cfg!(target_feature = "fma") || cfg!(target_arch = "aarch64") } $($(, $generic)+)?>($($arg),*)
                }
            }
        }
    };
}
pub(super) use per_path;
