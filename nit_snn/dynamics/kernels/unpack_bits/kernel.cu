// Spikes that are kept as bits, as numbers. One thread has four neighbours, and up to eight steps
// of them, which lie in one byte each; the grid's second dimension shares out the planes.
#include "real.cuh"

NIT_KERNEL void unpack_bits(
    const u8 *bits,  // (planes, size)
    real *spikes,    // (T, size), the first step from bit `slot % 8` of plane `slot / 8`
    i64 steps, i64 size, i64 slot) {
    i64 place = thread_number() * 4;
    if (place >= size) return;
    int count = size - place < 4 ? (int)(size - place) : 4;
    bool aligned = size % 4 == 0;
    i64 end = (slot + steps + 7) / 8;

    for (i64 plane = slot / 8 + blockIdx.y; plane < end; plane += gridDim.y) {
        u32 bytes[4];
        for (int j = 0; j < 4; ++j) bytes[j] = j < count ? bits[plane * size + place + j] : 0u;
        for (int bit = 0; bit < 8; ++bit) {
            i64 t = plane * 8 + bit - slot;
            if (t < 0 || t >= steps) continue;
            float out[4];
            for (int j = 0; j < 4; ++j) out[j] = (float)(bytes[j] >> bit & 1u);
            store_quad(spikes + t * size + place, count, aligned, out);
        }
    }
}
