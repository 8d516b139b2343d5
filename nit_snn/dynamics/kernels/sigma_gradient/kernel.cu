// The sum over rows and steps of A * (eps^2 - 1), the noise drawn again in registers.
// One thread has four neighbouring neurons and one part of the rows, which lie side by side; what
// the parts come to is added up elsewhere, in the same order each time.
#include "philox.cuh"
#include "real.cuh"

NIT_KERNEL void sigma_gradient(
    const float *weight,  // A, (T, N), or (N,) for all steps where `weight_stride` is 0
    float *sums,          // (parts, F)
    STREAM_PARAMETERS, i64 weight_stride, i64 steps, i64 rows, i64 rows_of_part, i64 parts,
    int inner, int first_step) {
    Stream stream = STREAM;
    i64 quads = (inner + 3) / 4, thread = thread_number();
    if (thread >= parts * quads) return;
    i64 part = thread / quads, quad = thread % quads;
    int neuron = (int)quad * 4, count = inner - neuron < 4 ? inner - neuron : 4;
    bool aligned = inner % 4 == 0;
    i64 first = part * rows_of_part, end = first + rows_of_part < rows ? first + rows_of_part : rows;

    float total[4] = {0.0f, 0.0f, 0.0f, 0.0f}, eps[4];
    for (i64 row = first; row < end; ++row) {
        Row source = noise_of_row(stream, row, rows);
        float own[4] = {0.0f, 0.0f, 0.0f, 0.0f};  // of one row, so that rounding adds up less
        for (i64 t = 0; t < steps; ++t) {
            float a = weight[t * weight_stride + row];
            noise(source, (u32)quad, (u32)(first_step + t), eps);
            for (int j = 0; j < 4; ++j) own[j] = fmaf(a, fmaf(eps[j], eps[j], -1.0f), own[j]);
        }
        for (int j = 0; j < 4; ++j) total[j] += own[j];
    }
    store_quad(sums + part * inner + neuron, count, aligned, total);
}
