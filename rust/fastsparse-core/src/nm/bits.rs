//! Bits of a mask at any position: writing into a cleared one, and reading.

/// Sets the bits of `value`, which has no bit from `count ≤ 64` upwards, from bit `at` on. Touches
/// no byte but those that the `count` bits lie in.
#[inline(always)]
pub(super) fn put(mask: &mut [u8], at: usize, value: u64, count: usize) {
    let (first, shift) = (at / 8, at % 8);
    if shift == 0 {
        match count {
            8 => return or_bytes(&mut mask[first..], [value as u8]),
            16 => return or_bytes(&mut mask[first..], (value as u16).to_le_bytes()),
            32 => return or_bytes(&mut mask[first..], (value as u32).to_le_bytes()),
            64 => return or_bytes(&mut mask[first..], value.to_le_bytes()),
            _ => {}
        }
    }
    let wide = (value as u128) << shift;
    for (k, byte) in mask[first..(at + count).div_ceil(8)].iter_mut().enumerate() {
        *byte |= (wide >> (8 * k)) as u8;
    }
}

/// Sets `width` bits for each of `values`, one after the other, from bit `at` on.
#[inline(always)]
pub(super) fn put_run(mask: &mut [u8], at: usize, values: &[u64], width: usize) {
    if !at.is_multiple_of(8) {
        return put_stream(mask, at, values, width);
    }
    let bytes = &mut mask[at / 8..];
    match width {
        8 => put_whole(bytes, values, |value| [value as u8]),
        16 => put_whole(bytes, values, |value| (value as u16).to_le_bytes()),
        32 => put_whole(bytes, values, |value| (value as u32).to_le_bytes()),
        64 => put_whole(bytes, values, u64::to_le_bytes),
        _ => put_stream(mask, at, values, width),
    }
}

#[inline(always)]
fn put_whole<const N: usize>(mask: &mut [u8], values: &[u64], bytes: impl Fn(u64) -> [u8; N]) {
    let (whole, _) = mask.as_chunks_mut::<N>();
    for (out, &value) in whole[..values.len()].iter_mut().zip(values) {
        *out = bytes(value);
    }
}

/// Collects 64 bits at a time: a read-modify-write for each value would wait for the one before.
#[inline(always)]
fn put_stream(mask: &mut [u8], at: usize, values: &[u64], width: usize) {
    let mut position = at / 8 * 8;
    let mut used = at % 8;
    let mut word = 0;
    for &value in values {
        word |= value << used;
        used += width;
        if used >= 64 {
            used -= 64;
            or_bytes(&mut mask[position / 8..], word.to_le_bytes());
            position += 64;
            // What of the value did not fit; in two steps, since all of it may have.
            word = (value >> 1) >> (width - 1 - used);
        }
    }
    put(mask, position, word, used);
}

#[inline(always)]
fn or_bytes<const N: usize>(mask: &mut [u8], bytes: [u8; N]) {
    for (old, byte) in mask[..N].iter_mut().zip(bytes) {
        *old |= byte;
    }
}

/// The `count ≤ 64` bits from bit `at` on.
#[inline]
pub(super) fn get(mask: &[u8], at: usize, count: usize) -> u64 {
    let bytes = &mask[at / 8..(at + count).div_ceil(8)];
    let mut wide = [0; 16];
    wide[..bytes.len()].copy_from_slice(bytes);
    let word = (u128::from_le_bytes(wide) >> (at % 8)) as u64;
    if count < 64 { word & ((1 << count) - 1) } else { word }
}
