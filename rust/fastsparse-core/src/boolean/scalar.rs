//! Eight elements as one word: a product brings their bits together, another one spreads them.

const ONES: u64 = 0x0101_0101_0101_0101;

/// The bits of eight elements, the first one lowest.
fn gather(elements: [u8; 8]) -> u8 {
    let x = u64::from_le_bytes(elements);
    // The top bit of each byte that is not 0; the sums do not carry into the next byte.
    let top = ((x & (0x7f * ONES)) + 0x7f * ONES) | x;
    // Bit 8k goes to bit 56 + k, by the factor's bit 56 − 7k; no two products meet.
    ((top >> 7 & ONES).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8
}

/// Eight elements, from their bits.
fn spread(bits: u8) -> [u8; 8] {
    // Bit k of byte k, at most 0x80: adding 0x7f brings it to the top of the byte.
    let apart = (bits as u64 * ONES) & 0x8040_2010_0804_0201;
    ((apart + 0x7f * ONES) >> 7 & ONES).to_le_bytes()
}

/// Writes the bits of rows of `cols` > 0 elements.
pub fn pack_rows(elements: &[u8], cols: usize, bits: &mut [u8]) {
    for (elements, bits) in elements.chunks_exact(cols).zip(bits.chunks_exact_mut(cols.div_ceil(8))) {
        pack_row(elements, bits);
    }
}

/// Writes the bits of a row, or of the rest of one.
pub fn pack_row(elements: &[u8], bits: &mut [u8]) {
    let (eights, tail) = elements.as_chunks::<8>();
    for (eight, bits) in eights.iter().zip(bits.iter_mut()) {
        *bits = gather(*eight);
    }
    if let (false, Some(last)) = (tail.is_empty(), bits.last_mut()) {
        *last = tail.iter().rev().fold(0, |bits, &element| bits << 1 | (element != 0) as u8);
    }
}

/// Writes the elements of rows of `cols` > 0 elements.
pub fn unpack_rows(bits: &[u8], cols: usize, elements: &mut [u8]) {
    for (elements, bits) in elements.chunks_exact_mut(cols).zip(bits.chunks_exact(cols.div_ceil(8))) {
        let (eights, tail) = elements.as_chunks_mut::<8>();
        for (eight, &bits) in eights.iter_mut().zip(bits) {
            *eight = spread(bits);
        }
        if let (false, Some(&last)) = (tail.is_empty(), bits.last()) {
            unpack_word(last as u64, tail);
        }
    }
}

/// Writes up to 64 elements.
pub fn unpack_word(word: u64, elements: &mut [u8]) {
    for (lane, element) in elements.iter_mut().enumerate() {
        *element = (word >> lane & 1) as u8;
    }
}
