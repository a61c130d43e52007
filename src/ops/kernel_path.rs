//! Which CPU instructions the ops use, chosen once at run time.
//!
//! Every op is written once over fixed lanes and compiled for each path. On one path its result has the same bits on
//! every machine, for every batch and thread count; between paths results may differ (the portable one has no fused
//! multiply-add). The name is part of an engine's identity.

/// A kernel path this machine can run: values exist only for detected features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KernelPath(pub(super) Isa);

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

impl KernelPath {
    /// The best path of this machine.
    pub fn detect() -> Self {
        Self::available()[0]
    }

    /// Plain Rust, which runs everywhere.
    pub fn portable() -> Self {
        Self(Isa::Portable)
    }

    /// Every path of this machine, best first.
    pub fn available() -> Vec<Self> {
        let mut paths = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma");
            if avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
                paths.push(Self(Isa::Avx512));
            }
            if avx2 {
                paths.push(Self(Isa::Avx2));
            }
        }
        paths.push(Self::portable());
        paths
    }

    /// The name in records, e.g. `cpu-f32-avx512`.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "cpu-f32-avx512",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "cpu-f32-avx2",
            Isa::Portable => "cpu-f32-portable",
        }
    }
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
            match path.0 {
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
