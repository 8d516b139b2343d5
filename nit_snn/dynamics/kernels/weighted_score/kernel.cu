// A * score * scale of each step, or of all steps together, the noise drawn again in registers.
// One thread has four neighbouring neurons of one row. Where steps are not added up, the grid's
// second dimension shares them out.
#include "levels.cuh"
#include "philox.cuh"
#include "real.cuh"

NIT_KERNEL void weighted_score(
    const float *weight,  // A, (T, N), or (N,) for all steps where `weight_stride` is 0
    LEVELS_PARAMETERS(scale),
    real *scores,         // (T, N, F), or (N, F) if `summed`
    STREAM_PARAMETERS,
    i64 weight_stride, i64 steps, i64 rows, int inner, int first_step, int signs, int summed) {
    Stream stream = STREAM;
    i64 quads = (inner + 3) / 4, thread = thread_number();
    if (thread >= rows * quads) return;
    i64 row = thread / quads, quad = thread % quads;
    int neuron = (int)quad * 4, count = inner - neuron < 4 ? inner - neuron : 4;
    bool aligned = inner % 4 == 0;
    i64 size = rows * inner, place = row * inner + neuron;

    float factor[4], total[4] = {0.0f, 0.0f, 0.0f, 0.0f}, out[4], eps[4];
    for (int j = 0; j < 4; ++j)
        factor[j] = level_of(Levels LEVELS(scale), j < count ? neuron + j : neuron);
    Row source = noise_of_row(stream, row, rows);

    for (i64 t = blockIdx.y; t < steps; t += gridDim.y) {
        float a = weight[t * weight_stride + row];
        noise(source, (u32)quad, (u32)(first_step + t), eps);
        for (int j = 0; j < 4; ++j) {
            float score = eps[j];
            if (signs) score = score >= 0.0f ? 1.0f : -1.0f;
            total[j] = fmaf(a, score, summed ? total[j] : 0.0f);
            out[j] = total[j] * factor[j];
        }
        if (!summed) store_quad(scores + t * size + place, count, aligned, out);
    }
    if (summed) {
        for (int j = 0; j < 4; ++j) out[j] = total[j] * factor[j];
        store_quad(scores + place, count, aligned, out);
    }
}
