// The sum over rows and steps of A * (eps^2 - 1), the noise drawn again in registers.
// One thread has four neighbouring neurons and one part of the rows, which lie side by side; what
// the parts come to is added up elsewhere, in the same order each time.
#include "philox.cuh"
#include "replay.cuh"

NIT_KERNEL void sigma_gradient(
    const float *weight,  // A, (T, N), or (N,) for all steps where `weight_stride` is 0
    float *sums,          // (parts, F)
    REPLAY_PARAMETERS, STREAM_PARAMETERS,
    i64 weight_stride, i64 steps, i64 rows, i64 rows_of_part, i64 parts, int inner,
    int first_step) {
    Replay replay = REPLAY;
    bool replays = replay.decay.values;
    Stream stream = STREAM;
    i64 quads = (inner + 3) / 4, thread = thread_number();
    if (thread >= parts * quads) return;
    i64 part = thread / quads, quad = thread % quads;
    int neuron = (int)quad * 4, count = inner - neuron < 4 ? inner - neuron : 4;
    bool aligned = inner % 4 == 0;
    i64 first = part * rows_of_part, end = first + rows_of_part < rows ? first + rows_of_part : rows;

    float total[4] = {0.0f, 0.0f, 0.0f, 0.0f}, eps[4];
    Four four;
    if (replays) find_neurons(&four, replay, neuron, count);
    for (i64 row = first; row < end; ++row) {
        Row source = noise_of_row(stream, row, rows);
        if (source.sign == 0.0f) continue;
        i64 place = row * inner + neuron;
        if (replays) start(&four, replay, place, count, aligned);
        float own[4] = {0.0f, 0.0f, 0.0f, 0.0f};  // of one row, so that rounding adds up less
        for (i64 t = 0; t < steps; ++t) {
            float a = weight[t * weight_stride + row];
            noise(source, (u32)quad, (u32)(first_step + t), eps);
            if (replays) advance(&four, replay, t, place, count, aligned, eps);
            for (int j = 0; j < 4; ++j) {
                float score = fmaf(eps[j], eps[j], -1.0f);
                if (replays && four.spike[j]) score = four.level[j] * hazard(four.level[j]);
                own[j] = fmaf(a, score, own[j]);
            }
        }
        for (int j = 0; j < 4; ++j) total[j] += own[j];
    }
    store_quad(sums + part * inner + neuron, count, aligned, total);
}
