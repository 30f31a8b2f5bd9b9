//! Instruction sets: the only place that asks the CPU.
//!
//! An [`Isa`] is a small value that is made by detection and handed down. The variants carry proof
//! tokens with a private field, so whoever holds an `Isa::Avx512(_)` may call the functions
//! compiled for those features: detection has seen them.

use crate::error::{Error, Result};

/// Proof that the CPU and the system run AVX2 with BMI1, BMI2, FMA, F16C, LZCNT and POPCNT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Avx2(());

/// Proof of what [`Avx2`] proves and AVX-512 F, BW, CD, DQ, VL, VBMI, VBMI2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Avx512 {
    /// Whether AMX with bfloat16 and int8 may be used beside it.
    tiles: bool,
}

/// Proof of what [`Avx512`] proves and AVX-512 BF16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Avx512Bf16(());

/// Proof of what [`Avx512`] proves and AVX-512 VNNI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Avx512Vnni(());

/// Proof of what [`Avx512`] proves and AMX with bfloat16 and int8, which the system lets this
/// process use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amx(());

impl Avx512Bf16 {
    /// The proof that this one includes.
    pub fn avx512(self) -> Avx512 {
        Avx512 { tiles: false }
    }
}

impl Amx {
    /// The vectors beside the tiles.
    pub fn vectors(self) -> Isa {
        Isa::Avx512(Avx512 { tiles: true })
    }
}

/// An instruction set that this process may use, from the plain one upwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// What the compilation target guarantees.
    Scalar,
    /// AVX2 and its companions.
    Avx2(Avx2),
    /// AVX-512 with VBMI2, with AMX or without.
    Avx512(Avx512),
}

/// Names that [`Isa::up_to`] takes on some machine.
pub const CEILINGS: [&str; 5] = ["amx", "avx512", "avx2", "neon", "scalar"];

impl Isa {
    /// The best ISA of this machine.
    pub fn detect() -> Isa {
        *Isa::available().last().expect("the scalar ISA always runs")
    }

    /// Every ISA that this machine runs, lowest first.
    pub fn available() -> Vec<Isa> {
        let mut found = vec![Isa::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            macro_rules! have {
                ($($feature:tt),*) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
            }
            if have!("avx2", "bmi1", "bmi2", "fma", "f16c", "lzcnt", "popcnt") {
                found.push(Isa::Avx2(Avx2(())));
                if have!("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vbmi", "avx512vbmi2") {
                    found.push(Isa::Avx512(Avx512 { tiles: false }));
                    if *TILES {
                        found.push(Isa::Avx512(Avx512 { tiles: true }));
                    }
                }
            }
        }
        found
    }

    /// The best ISA that is not above the one called `name`, if this machine runs that. NEON has no
    /// kernels of its own: below it is what its target guarantees. Where the system does not give
    /// the tiles of AMX to this process, what is below them is taken.
    pub fn up_to(name: &str) -> Result<Isa> {
        match name {
            // Without asking the system for more than was named.
            "scalar" => Ok(Isa::Scalar),
            #[cfg(target_arch = "x86_64")]
            "amx" if amx_instructions() => Ok(Isa::detect()),
            "neon" if cfg!(target_arch = "aarch64") => Ok(Isa::Scalar),
            _ => Isa::available().into_iter().find(|isa| isa.name() == name).ok_or(Error::IsaUnavailable),
        }
    }

    /// Name, one of [`CEILINGS`].
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2(_) => "avx2",
            Isa::Avx512(Avx512 { tiles: false }) => "avx512",
            Isa::Avx512(Avx512 { tiles: true }) => "amx",
        }
    }

    /// The AVX2 proof that every higher x86 ISA implies.
    pub fn avx2(self) -> Option<Avx2> {
        match self {
            Isa::Scalar => None,
            Isa::Avx2(_) | Isa::Avx512(_) => Some(Avx2(())),
        }
    }

    /// The proof that this ISA multiplies bfloat16, which some CPUs with AVX-512 do.
    pub fn avx512_bf16(self) -> Option<Avx512Bf16> {
        #[cfg(target_arch = "x86_64")]
        if matches!(self, Isa::Avx512(_)) && std::arch::is_x86_feature_detected!("avx512bf16") {
            return Some(Avx512Bf16(()));
        }
        None
    }

    /// The proof that this ISA has tiles.
    pub fn amx(self) -> Option<Amx> {
        matches!(self, Isa::Avx512(Avx512 { tiles: true })).then_some(Amx(()))
    }

    /// The proof that this ISA multiplies bytes, which all CPUs with AVX-512 VBMI2 known today do.
    pub fn avx512_vnni(self) -> Option<Avx512Vnni> {
        #[cfg(target_arch = "x86_64")]
        if matches!(self, Isa::Avx512(_)) && std::arch::is_x86_feature_detected!("avx512vnni") {
            return Some(Avx512Vnni(()));
        }
        None
    }
}

/// Whether there is AMX with bfloat16 and int8, and the system lets this process use it: it is
/// asked once, and a refusal means no.
#[cfg(target_arch = "x86_64")]
static TILES: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| amx_instructions() && amx_permission());

/// Whether the CPU names Intel as its vendor: for measured constants, nothing else. With AVX-512
/// masks, expansions and pairs of bfloat16 take several times as long there as multiplications.
pub(crate) fn is_intel() -> bool {
    #[cfg(target_arch = "x86_64")]
    return !cfg!(miri) && *INTEL;
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Asked once: in a virtual machine the instruction takes microseconds.
#[cfg(target_arch = "x86_64")]
#[allow(unused_unsafe, reason = "the instruction is safe in newer versions of the standard library")]
static INTEL: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
    // SAFETY: every x86-64 has the instruction.
    let vendor = unsafe { std::arch::x86_64::__cpuid(0) };
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
});

/// Whether the CPU has them. Detection by the standard library is not stable yet.
#[cfg(target_arch = "x86_64")]
#[allow(unused_unsafe, reason = "the instruction is safe in newer versions of the standard library")]
fn amx_instructions() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const BF16_TILE_INT8: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    // SAFETY: every x86-64 has the instruction; leaf 7 is asked for where leaf 0 says that there is
    // one.
    unsafe { __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & BF16_TILE_INT8 == BF16_TILE_INT8 }
}

/// Asks the kernel for the tile registers of this process. Linux since 5.16 gives them to those who
/// ask.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_permission() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call changes nothing but what this process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn amx_permission() -> bool {
    false
}

/// Work in plain Rust that the compiler vectorises as well as the instruction set allows. `run`,
/// and everything hot below it, must be `#[inline(always)]`: only what is inlined into the function
/// that names the features is compiled for them.
pub trait Kernel {
    /// What it returns.
    type Output;
    /// Does the work.
    fn run(self) -> Self::Output;
}

impl Isa {
    /// Runs the kernel, compiled for this ISA.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Isa::Scalar => kernel.run(),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the token proves the features.
            Isa::Avx2(_) => unsafe { run_avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the token proves the features.
            Isa::Avx512(_) => unsafe { run_avx512(kernel) },
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2(_) | Isa::Avx512(_) => kernel.run(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,fma,f16c,lzcnt,popcnt")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,fma,f16c,lzcnt,popcnt")]
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}
