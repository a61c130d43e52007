//! Matrix tiles of AMX: C\[16·R, 32\] (+)= A\[16·R, K\] · B\[K, 32\] for R = 1 or 2, bf16 into f32 or int8 into i32.
//!
//! A lies in tiles of 16 rows by 64 bytes (32 bf16 or 64 int8), \[K / that\]\[16\]\[64\]; B in rows of 128 bytes, each 32 columns
//! of 4 bytes that hold 2 bf16 or 4 int8 numbers of consecutive k (the panels of [`super::packed`]). An element of C is a
//! chain over ascending k and depends on its row of A and its column of B alone. Source: Intel 64 and IA-32 Architectures
//! Software Developer's Manual, volume 2, `TDPBF16PS`, `TDPBSSD`.
//!
//! The instructions are written as assembly, because their intrinsics are not stable. Linux gives a process the tile
//! registers when it asks (`arch_prctl`, `ARCH_REQ_XCOMP_PERM`).

/// Rows of a tile.
pub const TILE_ROWS: usize = 16;
/// Bytes of a tile's row.
pub const TILE_BYTES: usize = 64;

/// Which products the machine has and the system lets this process use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Available {
    /// bf16 into f32.
    pub bf16: bool,
    /// int8 into i32.
    pub int8: bool,
}

/// Asks CPU and system, once.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub fn available() -> Available {
    static ANSWER: std::sync::OnceLock<Available> = std::sync::OnceLock::new();
    *ANSWER.get_or_init(|| {
        use std::arch::x86_64::__cpuid_count;
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        if __cpuid_count(0, 0).eax < 7 {
            return Available::default();
        }
        let edx = __cpuid_count(7, 0).edx;
        let has = |bit: u32| edx & (1 << bit) != 0;
        let wanted = Available { bf16: has(24) && has(22), int8: has(24) && has(25) };
        if wanted == Available::default() {
            return wanted;
        }
        // SAFETY: the call only sets a permission of this process; an old kernel refuses it.
        let refused =
            unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) } != 0;
        if refused { Available::default() } else { wanted }
    })
}

/// Nowhere else.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub fn available() -> Available {
    Available::default()
}

/// Operands of one block of tiles.
#[derive(Clone, Copy)]
pub struct Block {
    /// Tiles along K.
    pub steps: usize,
    /// The first tile of A; those of rows 16.. lie `a_rows` bytes further.
    pub a: *const u8,
    /// Distance of A's tiles of rows 0.. and 16..
    pub a_rows: usize,
    /// Rows of B, 128 bytes each, 16 for a step.
    pub b: *const u8,
    /// C, rows of 32 numbers of 4 bytes.
    pub c: *mut u8,
    /// Bytes between rows of C.
    pub ldc: usize,
    /// Whether the chain goes on from what C holds.
    pub continues: bool,
}

/// The tile registers in use on this thread; released when dropped.
pub struct Tiles(());

#[cfg(target_arch = "x86_64")]
mod asm {
    use std::arch::asm;

    use super::{Available, Block, TILE_BYTES, TILE_ROWS, Tiles, available};

    /// `TILECFG`: palette 1, eight tiles of 16 rows by 64 bytes.
    #[repr(C, align(64))]
    struct Config {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }
    const _: () = assert!(size_of::<Config>() == 64);

    static CONFIG: Config = {
        let mut config =
            Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut i = 0;
        while i < 8 {
            config.row_bytes[i] = TILE_BYTES as u16;
            config.rows[i] = TILE_ROWS as u8;
            i += 1;
        }
        config
    };

    impl Tiles {
        /// Configures this thread's tiles.
        ///
        /// # Panics
        /// Where there are none.
        pub fn configure() -> Self {
            assert!(available() != Available::default(), "the machine has tiles");
            // SAFETY: the instruction exists and is permitted; it reads 64 bytes of a valid configuration.
            unsafe { asm!("ldtilecfg [{0}]", in(reg) &raw const CONFIG, options(nostack, readonly)) };
            Self(())
        }
    }

    impl Drop for Tiles {
        fn drop(&mut self) {
            // SAFETY: the instruction exists, or there would be no value to drop.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }

    /// Two tiles of 16 columns for each of one or two tiles of rows.
    macro_rules! kernel {
        ($name:ident, $dot:literal) => {
            /// Computes 16 (`ROWS` = 1) or 32 (2) rows.
            ///
            /// # Safety
            /// All of A, B and C as `block` describes them is readable, C writable by this thread alone; the machine has
            /// these products.
            pub unsafe fn $name<const ROWS: usize>(_tiles: &Tiles, block: Block) {
                let Block { steps, a, a_rows, b, c, ldc, continues } = block;
                let c1 = c.wrapping_add(16 * ldc);
                // SAFETY: the caller's promise.
                unsafe {
                    if continues {
                        asm!("tileloadd tmm0, [{c} + {ldc}*1]", "tileloadd tmm1, [{c} + {ldc}*1 + 64]",
                            c = in(reg) c, ldc = in(reg) ldc, options(nostack, readonly));
                        if ROWS == 2 {
                            asm!("tileloadd tmm2, [{c} + {ldc}*1]", "tileloadd tmm3, [{c} + {ldc}*1 + 64]",
                                c = in(reg) c1, ldc = in(reg) ldc, options(nostack, readonly));
                        }
                    } else {
                        asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                            options(nostack, nomem));
                    }
                    if ROWS == 2 {
                        asm!(
                            "2:",
                            "tileloadd tmm6, [{b} + {s}*2]",
                            "tileloadd tmm4, [{a} + {s}*1]",
                            concat!($dot, " tmm0, tmm4, tmm6"),
                            "tileloadd tmm5, [{a1} + {s}*1]",
                            concat!($dot, " tmm2, tmm5, tmm6"),
                            "tileloadd tmm7, [{b} + {s}*2 + 64]",
                            concat!($dot, " tmm1, tmm4, tmm7"),
                            concat!($dot, " tmm3, tmm5, tmm7"),
                            "add {a}, 1024",
                            "add {a1}, 1024",
                            "add {b}, 2048",
                            "dec {n}",
                            "jnz 2b",
                            a = inout(reg) a => _, a1 = inout(reg) a.wrapping_add(a_rows) => _,
                            b = inout(reg) b => _, n = inout(reg) steps => _, s = in(reg) 64usize,
                            options(nostack, readonly)
                        );
                        asm!("tilestored [{c} + {ldc}*1], tmm2", "tilestored [{c} + {ldc}*1 + 64], tmm3",
                            c = in(reg) c1, ldc = in(reg) ldc, options(nostack));
                    } else {
                        asm!(
                            "2:",
                            "tileloadd tmm6, [{b} + {s}*2]",
                            "tileloadd tmm4, [{a} + {s}*1]",
                            concat!($dot, " tmm0, tmm4, tmm6"),
                            "tileloadd tmm7, [{b} + {s}*2 + 64]",
                            concat!($dot, " tmm1, tmm4, tmm7"),
                            "add {a}, 1024",
                            "add {b}, 2048",
                            "dec {n}",
                            "jnz 2b",
                            a = inout(reg) a => _, b = inout(reg) b => _, n = inout(reg) steps => _,
                            s = in(reg) 64usize,
                            options(nostack, readonly)
                        );
                    }
                    asm!("tilestored [{c} + {ldc}*1], tmm0", "tilestored [{c} + {ldc}*1 + 64], tmm1",
                        c = in(reg) c, ldc = in(reg) ldc, options(nostack));
                }
            }
        };
    }

    kernel!(bf16, "tdpbf16ps");
    kernel!(int8, "tdpbssd");
}

#[cfg(target_arch = "x86_64")]
pub use asm::{bf16, int8};

#[cfg(not(target_arch = "x86_64"))]
mod none {
    use super::{Block, Tiles};

    impl Tiles {
        /// There are none.
        pub fn configure() -> Self {
            unreachable!("no kernel path of this machine has matrix tiles")
        }
    }

    /// # Safety
    /// Never called: there are no [`Tiles`].
    pub unsafe fn bf16<const ROWS: usize>(_tiles: &Tiles, _block: Block) {}

    /// # Safety
    /// Never called: there are no [`Tiles`].
    pub unsafe fn int8<const ROWS: usize>(_tiles: &Tiles, _block: Block) {}
}

#[cfg(not(target_arch = "x86_64"))]
pub use none::{bf16, int8};
