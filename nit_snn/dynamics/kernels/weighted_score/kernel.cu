// A * score * scale of each step, or of all steps together, the noise drawn again in registers.
// One thread has four neighbouring neurons of one row. Where steps do not depend on each other,
// the grid's second dimension shares them out.
#include "philox.cuh"
#include "replay.cuh"

NIT_KERNEL void weighted_score(
    const float *weight,  // A, (T, N), or (N,) for all steps where `weight_stride` is 0
    LEVELS_PARAMETERS(scale),
    real *scores,         // (T, N, F), or (N, F) if `summed`
    float *last,          // (N, F), what a replay leaves behind, or null
    REPLAY_PARAMETERS, STREAM_PARAMETERS,
    i64 weight_stride, i64 steps, i64 rows, int inner, int first_step, int signs, int summed) {
    Replay replay = REPLAY;
    bool replays = replay.decay.values;
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
    Four four;
    if (replays) {
        find_neurons(&four, replay, neuron, count);
        start(&four, replay, place, count, aligned);
    }
    Row source = noise_of_row(stream, row, rows);

    for (i64 t = blockIdx.y; t < steps; t += gridDim.y) {
        // Without noise there is no score, whatever the sign of zero and the hazard may be.
        float a = source.sign != 0.0f ? weight[t * weight_stride + row] : 0.0f;
        noise(source, (u32)quad, (u32)(first_step + t), eps);
        if (replays) advance(&four, replay, t, place, count, aligned, eps);
        for (int j = 0; j < 4; ++j) {
            float score = eps[j];
            if (signs) score = score >= 0.0f ? 1.0f : -1.0f;
            if (replays && four.spike[j]) score = hazard(four.level[j]);
            total[j] = fmaf(a, score, summed ? total[j] : 0.0f);
            out[j] = total[j] * factor[j];
        }
        if (!summed) store_quad(scores + t * size + place, count, aligned, out);
    }
    if (summed) {
        for (int j = 0; j < 4; ++j) out[j] = total[j] * factor[j];
        store_quad(scores + place, count, aligned, out);
    }
    if (last) store_quad(last + place, count, aligned, four.membrane);
}
