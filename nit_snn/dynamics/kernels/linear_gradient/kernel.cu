// The gradient of a Linear layer under NIT, the sum over rows and steps of A * eps * spike, from
// spikes kept as bits and noise that is drawn again. A unit of work is one step of 16 rows.
#include "levels.cuh"
#include "tile.cuh"

enum { UNITS = 2, DEPTH = UNITS * ROWS };  // what is in shared memory at a time

NIT_KERNEL void NIT_RESIDENT(256, 2) linear_gradient(
    const u8 *bits,       // (planes, N, I), the first step at bit `slot`
    const float *weight,  // A, (N,)
    LEVELS_PARAMETERS(scale),
    float *parts,         // (parts, O, I + 1), the bias last
    STREAM_PARAMETERS,
    i64 units, i64 units_of_part, i64 steps, i64 rows, int inputs, int outputs, int first_step,
    int slot) {
    NIT_SHARED Floats scores[DEPTH][OUTPUTS / 4], spikes[DEPTH][INPUTS / 4];
    Stream stream = STREAM;
    Tile tile = find_tile(outputs, inputs);
    i64 begin = blockIdx.y * units_of_part;
    i64 end = begin + units_of_part < units ? begin + units_of_part : units;
    i64 group = begin / steps, t = begin % steps, row = 0;
    bool idle = is_idle(tile), fresh = true, there = false;
    Row source = {};
    float a = 0.0f, sums[SUMS][SUMS] = {};
    u32 bytes[OWN] = {};
    Floats bias = {};

    for (i64 unit = begin; unit < end; unit += UNITS) {
        for (int u = 0; u < UNITS; ++u) {
            int bit = (int)((slot + t) % 8), k = u * ROWS + tile.lane;
            if (fresh) {
                row = group * ROWS + tile.lane;
                there = row < rows;
                if (!there) row = 0;
                source = noise_of_row(stream, row, rows);
                a = weight[row];
            }
            if (fresh || bit == 0) {
                const u8 *from = bits + ((slot + t) / 8 * rows + row) * inputs;
                for (int own = 0; own < OWN; ++own) {
                    int input = prepared_input(tile, own);
                    bytes[own] = there ? load_bytes(from + input, inputs - input) : 0;
                }
            }

            Floats score = {};
            if (there && unit + u < end && tile.output + 4 * tile.quad < outputs) {
                noise(source, (u32)(tile.output / 4 + tile.quad), (u32)(first_step + t), score.x);
                for (int j = 0; j < 4; ++j) {
                    score.x[j] *= a;
                    bias.x[j] += score.x[j];
                }
            }
            scores[k][tile.quad] = score;
            for (int own = 0; own < OWN; ++own) {
                Floats four;
                for (int j = 0; j < 4; ++j) four.x[j] = (float)(bytes[own] >> (8 * j + bit) & 1u);
                spikes[k][tile.quad + own * ROWS] = four;
            }

            fresh = ++t == steps;
            if (fresh) {
                t = 0;
                ++group;
            }
        }
        NIT_SYNC;
        for (int k = 0; k < DEPTH && !idle; ++k) {
            Floats a0 = scores[k][tile.o], a1 = scores[k][tile.o + 8];
            Floats x0 = spikes[k][tile.i], x1 = spikes[k][tile.i + 4];
            for (int p = 0; p < SUMS; ++p)
                for (int q = 0; q < SUMS; ++q)
                    sums[p][q] = fmaf(
                        p < 4 ? a0.x[p] : a1.x[p - 4], q < 4 ? x0.x[q] : x1.x[q - 4], sums[p][q]);
        }
        NIT_SYNC;
    }

    for (int p = 0; p < SUMS; ++p) {
        int output = output_of(tile, p);
        float factor = output < outputs ? level_of(Levels LEVELS(scale), output) : 0.0f;
        for (int q = 0; q < SUMS; ++q) sums[p][q] *= factor;
    }
    for (int j = 0; j < 4; ++j) {
        int output = tile.output + 4 * tile.quad + j;
        if (output < outputs) bias.x[j] *= level_of(Levels LEVELS(scale), output);
    }
    float *part = parts + blockIdx.y * (outputs * ((i64)inputs + 1));
    store_sums(tile, sums, part);
    store_bias(tile, bias, scores, part);
}
