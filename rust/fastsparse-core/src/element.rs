//! Element types: bits, magnitudes and orders.
//!
//! Weights are handled as their bits. For all IEEE-like formats the bits without the sign, read as
//! an unsigned integer, order the magnitudes: finite numbers first, then infinity, then the NaNs.
//! That integer is the *magnitude key*.

mod sealed {
    pub trait Sealed {}
}

/// An unsigned word that holds the bits of an element, or a key.
pub trait Word: sealed::Sealed + Copy + Ord + Default + Send + Sync + std::fmt::Debug + 'static {
    /// Bytes of a word.
    const BYTES: usize;
    /// The largest word.
    const MAX: Self;
    /// Widened, without sign.
    fn to_u64(self) -> u64;
    /// The low bits of `x`.
    fn from_u64(x: u64) -> Self;
}

macro_rules! word {
    ($($t:ty),*) => { $(
        impl sealed::Sealed for $t {}
        impl Word for $t {
            const BYTES: usize = size_of::<$t>();
            const MAX: $t = <$t>::MAX;
            #[inline(always)]
            fn to_u64(self) -> u64 { self as u64 }
            #[inline(always)]
            fn from_u64(x: u64) -> $t { x as $t }
        }
    )* };
}
word!(u8, u16, u32, u64);

/// The element types that fastsparse knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE binary64.
    F64,
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    BF16,
    /// float8_e4m3fn: no infinities, one NaN a sign.
    F8E4M3,
    /// float8_e5m2.
    F8E5M2,
    /// Signed byte.
    I8,
    /// Unsigned byte.
    U8,
}

impl DType {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::F8E4M3 | DType::F8E5M2 | DType::I8 | DType::U8 => 1,
        }
    }
}

/// An element type, as a type: how to read its bits.
pub trait Element: sealed::Sealed + Copy + Send + Sync + 'static {
    /// The word that holds its bits.
    type Bits: Word;
    /// Its tag.
    const DTYPE: DType;
    /// Magnitude key of the largest number (infinity where there is one); larger keys are NaN.
    const MAX_MAGNITUDE: Self::Bits;
    /// Order key of the largest number; larger keys are NaN.
    const MAX_ORDERED: Self::Bits;
    /// `magnitude(bits) == bits & mask` for this mask, where the type has one.
    const MAGNITUDE_MASK: Option<Self::Bits>;
    /// A number that orders |x|.
    fn magnitude(bits: Self::Bits) -> Self::Bits;
    /// A number that orders x; −0 equals +0; NaN is above everything.
    fn ordered(bits: Self::Bits) -> Self::Bits;
    /// The value, exact.
    fn to_f64(bits: Self::Bits) -> f64;
    /// The |x| that a magnitude key stands for.
    fn magnitude_value(key: Self::Bits) -> f64;
    /// The x that an order key stands for.
    fn ordered_value(key: Self::Bits) -> f64;
}

macro_rules! float_element {
    ($(#[$doc:meta])* $name:ident, $bits:ty, $dtype:ident, $max:expr, $to_f64:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name;
        impl sealed::Sealed for $name {}
        impl Element for $name {
            type Bits = $bits;
            const DTYPE: DType = DType::$dtype;
            const MAX_MAGNITUDE: $bits = $max;
            const MAX_ORDERED: $bits = $max | !(<$bits>::MAX >> 1);
            const MAGNITUDE_MASK: Option<$bits> = Some(<$bits>::MAX >> 1);
            #[inline(always)]
            fn magnitude(bits: $bits) -> $bits { bits & (<$bits>::MAX >> 1) }
            #[inline(always)]
            fn ordered(bits: $bits) -> $bits {
                const SIGN: $bits = !(<$bits>::MAX >> 1);
                let magnitude = Self::magnitude(bits);
                if magnitude > $max {
                    <$bits>::MAX
                } else if bits & SIGN != 0 {
                    SIGN - magnitude
                } else {
                    SIGN + magnitude
                }
            }
            #[inline(always)]
            fn to_f64(bits: $bits) -> f64 { $to_f64(bits) }
            #[inline(always)]
            fn magnitude_value(key: $bits) -> f64 { $to_f64(key) }
            #[inline(always)]
            fn ordered_value(key: $bits) -> f64 {
                const SIGN: $bits = !(<$bits>::MAX >> 1);
                if key >= SIGN { $to_f64(key - SIGN) } else { -$to_f64(SIGN - key) }
            }
        }
    };
}

float_element!(/** float64. */ F64, u64, F64, 0x7ff0_0000_0000_0000, f64::from_bits);
float_element!(/** float32. */ F32, u32, F32, 0x7f80_0000, |b| f32::from_bits(b) as f64);
float_element!(/** float16. */ F16, u16, F16, 0x7c00, f16_to_f64);
float_element!(/** bfloat16. */ BF16, u16, BF16, 0x7f80, |b: u16| f32::from_bits((b as u32) << 16) as f64);
float_element!(/** float8_e5m2: the upper byte of a float16. */ F8E5M2, u8, F8E5M2, 0x7c,
    |b: u8| f16_to_f64((b as u16) << 8));
float_element!(/** float8_e4m3fn. */ F8E4M3, u8, F8E4M3, 0x7e, e4m3_to_f64);

// The narrow floats are widened without branches and without subnormal operands, so that a loop of
// this vectorises and runs at one speed: exponent and mantissa move into float32's fields and the
// exponent's bias is mended by an addition. For a subnormal number the same with an exponent of
// one, whose implicit leading bit is subtracted again.

#[inline(always)]
fn f16_to_f64(bits: u16) -> f64 {
    const REBIAS: u32 = (127 - 15) << 23;
    const SMALLEST_NORMAL: u32 = REBIAS + (1 << 23);
    let magnitude = ((bits & 0x7fff) as u32) << 13;
    let subnormal = f32::from_bits(magnitude + SMALLEST_NORMAL) - f32::from_bits(SMALLEST_NORMAL);
    let finite = if magnitude < 1 << 23 { subnormal } else { f32::from_bits(magnitude + REBIAS) };
    let value = if magnitude < 31 << 23 { finite } else { f32::from_bits(magnitude | 0x7f80_0000) };
    f32::from_bits(value.to_bits() | ((bits & 0x8000) as u32) << 16) as f64
}

#[inline(always)]
fn e4m3_to_f64(bits: u8) -> f64 {
    const REBIAS: u32 = (127 - 7) << 23;
    const SMALLEST_NORMAL: u32 = REBIAS + (1 << 23);
    let magnitude = ((bits & 0x7f) as u32) << 20;
    let subnormal = f32::from_bits(magnitude + SMALLEST_NORMAL) - f32::from_bits(SMALLEST_NORMAL);
    let finite = if magnitude < 1 << 23 { subnormal } else { f32::from_bits(magnitude + REBIAS) };
    let value = if magnitude < 0x7f << 20 { finite } else { f32::NAN };
    f32::from_bits(value.to_bits() | ((bits & 0x80) as u32) << 24) as f64
}

macro_rules! byte_element {
    ($(#[$doc:meta])* $name:ident, $int:ty, $flip:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name;
        impl sealed::Sealed for $name {}
        impl Element for $name {
            type Bits = u8;
            const DTYPE: DType = DType::$name;
            const MAX_MAGNITUDE: u8 = u8::MAX;
            const MAX_ORDERED: u8 = u8::MAX;
            const MAGNITUDE_MASK: Option<u8> = if $flip == 0 { Some(u8::MAX) } else { None };
            #[inline(always)]
            fn magnitude(bits: u8) -> u8 { if $flip == 0 { bits } else { (bits as i8).unsigned_abs() } }
            #[inline(always)]
            fn ordered(bits: u8) -> u8 { bits ^ $flip }
            #[inline(always)]
            fn to_f64(bits: u8) -> f64 { bits as $int as f64 }
            #[inline(always)]
            fn magnitude_value(key: u8) -> f64 { key as f64 }
            #[inline(always)]
            fn ordered_value(key: u8) -> f64 { (key ^ $flip) as $int as f64 }
        }
    };
}

byte_element!(/** int8: |−128| is 128. */ I8, i8, 0x80u8);
byte_element!(/** uint8. */ U8, u8, 0u8);

/// A borrowed array of elements of a type known at run time only.
#[derive(Debug, Clone, Copy)]
pub enum Elements<'a> {
    /// float64
    F64(&'a [u64]),
    /// float32
    F32(&'a [u32]),
    /// float16
    F16(&'a [u16]),
    /// bfloat16
    BF16(&'a [u16]),
    /// float8_e4m3fn
    F8E4M3(&'a [u8]),
    /// float8_e5m2
    F8E5M2(&'a [u8]),
    /// int8
    I8(&'a [u8]),
    /// uint8
    U8(&'a [u8]),
}

/// `dispatch!(elements, E, data => expression)`: the expression with `E` the element type and
/// `data` the bits.
#[macro_export]
macro_rules! dispatch {
    ($elements:expr, $E:ident, $data:pat => $body:expr) => {
        match $elements {
            $crate::element::Elements::F64($data) => {
                type $E = $crate::element::F64;
                $body
            }
            $crate::element::Elements::F32($data) => {
                type $E = $crate::element::F32;
                $body
            }
            $crate::element::Elements::F16($data) => {
                type $E = $crate::element::F16;
                $body
            }
            $crate::element::Elements::BF16($data) => {
                type $E = $crate::element::BF16;
                $body
            }
            $crate::element::Elements::F8E4M3($data) => {
                type $E = $crate::element::F8E4M3;
                $body
            }
            $crate::element::Elements::F8E5M2($data) => {
                type $E = $crate::element::F8E5M2;
                $body
            }
            $crate::element::Elements::I8($data) => {
                type $E = $crate::element::I8;
                $body
            }
            $crate::element::Elements::U8($data) => {
                type $E = $crate::element::U8;
                $body
            }
        }
    };
}

impl Elements<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        dispatch!(self, E, data => { let _: Option<E> = None; data.len() })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        dispatch!(self, E, _ => E::DTYPE)
    }
}
