// The gradient of a Linear layer under NIT-S, the sum over rows and steps of A * sign(eps) * +-1,
// from spikes kept as bits and noise that is drawn again. Up to 32 steps of a row lie in one
// word, and what they add up to is what is alike in two words less what is not. A unit of work is
// one such word of 16 rows.
#include "signs.cuh"
#include "tile.cuh"

// An integer of few bits as a float: through its mantissa, since converting is slow on many GPUs.
NIT_FN float small_float(int x) { return float_of((u32)(0x4B400000 + x)) - 12582912.0f; }

NIT_KERNEL void NIT_RESIDENT(256, 2) linear_sign_gradient(
    const u8 *bits,       // (planes, N, I), the first step at bit `slot`
    const float *weight,  // A, (N,)
    float *parts,         // (parts, O, I + 1), the bias last
    STREAM_PARAMETERS,
    i64 units, i64 units_of_part, i64 steps, i64 rows, int inputs, int outputs, int first_step,
    int slot) {
    NIT_SHARED Words signs[ROWS][OUTPUTS / 4], spikes[ROWS][INPUTS / 4];
    NIT_SHARED float weights[ROWS];
    NIT_SHARED Floats shares[ROWS][OUTPUTS / 4];
    Stream stream = STREAM;
    Tile tile = find_tile(outputs, inputs);
    // Words begin with a byte, so that those of the spikes are loaded as they are.
    i64 offset = slot % 8, words = (offset + steps + 31) / 32;
    i64 begin = blockIdx.y * units_of_part;
    i64 end = begin + units_of_part < units ? begin + units_of_part : units;
    i64 group = begin / words, word = begin % words, row = 0;
    bool idle = is_idle(tile), fresh = true, there = false;
    Row source = {};
    float sums[SUMS][SUMS] = {};
    Floats bias = {};

    for (i64 unit = begin; unit < end; ++unit) {
        if (fresh) {
            row = group * ROWS + tile.lane;
            there = row < rows;
            if (!there) row = 0;
            source = noise_of_row(stream, row, rows);
        }
        i64 start = 32 * word - offset;  // the step of bit 0
        int first = start < 0 ? (int)-start : 0;
        int last = steps - start < 32 ? (int)(steps - start) : 32, length = last - first;
        u32 mask = 0xFFFFFFFFu >> (32 - length) << first;
        float a = there ? weight[row] : 0.0f;

        Words sign = {};
        if (there && tile.output + 4 * tile.quad < outputs) {
            for (int bit = first; bit < last; ++bit) {
                u32 positive[4], step = (u32)(first_step + start + bit);
                noise_signs(source, (u32)(tile.output / 4 + tile.quad), step, positive);
                for (int j = 0; j < 4; ++j) sign.x[j] |= positive[j] << bit;
            }
            for (int j = 0; j < 4; ++j)
                bias.x[j] = fmaf(a, (float)(2 * (int)count_ones(sign.x[j]) - length), bias.x[j]);
        }
        signs[tile.lane][tile.quad] = sign;
        weights[tile.lane] = a;
        for (int own = 0; own < OWN; ++own) {
            int input = prepared_input(tile, own);
            Words spike = {};
            for (int byte = 0; byte < 4; ++byte) {
                const u8 *from = bits + ((slot / 8 + 4 * word + byte) * rows + row) * inputs;
                int count = there && 8 * byte < last ? inputs - input : 0;
                u32 four = load_bytes(from + input, count);
                for (int j = 0; j < 4; ++j) spike.x[j] |= (four >> 8 * j & 255u) << 8 * byte;
            }
            for (int j = 0; j < 4; ++j) spike.x[j] &= mask;
            spikes[tile.lane][tile.quad + own * ROWS] = spike;
        }
        fresh = ++word == words;
        if (fresh) {
            word = 0;
            ++group;
        }

        NIT_SYNC;
        for (int k = 0; k < ROWS && !idle; ++k) {
            Words e0 = signs[k][tile.o], e1 = signs[k][tile.o + 8];
            Words x0 = spikes[k][tile.i], x1 = spikes[k][tile.i + 4];
            float own = weights[k];
            for (int p = 0; p < SUMS; ++p)
                for (int q = 0; q < SUMS; ++q) {
                    u32 e = p < 4 ? e0.x[p] : e1.x[p - 4], x = q < 4 ? x0.x[q] : x1.x[q - 4];
                    int sum = length - 2 * (int)count_ones(e ^ x);
                    sums[p][q] = fmaf(own, small_float(sum), sums[p][q]);
                }
        }
        NIT_SYNC;
    }

    float *part = parts + blockIdx.y * (outputs * ((i64)inputs + 1));
    store_sums(tile, sums, part);
    store_bias(tile, bias, shares, part);
}
