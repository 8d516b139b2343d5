// Backwards through the steps of a layer: what each drift is charged with, and what later ones ask
// of earlier ones.
#include "shared.h"

// In the order of `nit_snn.dynamics.compiled.conditioned`. Whatever is null counts as zero,
// or is not wanted.
struct Charge {
    const float *scores;     // (T, N, F)
    const float *weight;     // (N,), or (T, N) where `weight_stride` is N
    const float *factors, *densities;  // (T, N, F), what a control variate has to put back
    const float *decays;     // (T, N, F)
    const float *arriving;   // (N, F), what later drifts ask of the last membrane
    const float *carry, *rate;  // (period,), `rate` is 1 / sigma
    float *each, *total;     // (T, N, F) and (N, F)
    float *leaving;          // (N, F), what is asked of the membrane before the first step
    i64 count, period, steps, inner, weight_stride;
    int32_t threads;
};

// `A score / sigma + c phi(a) / sigma` of each drift, and what it means to later ones, carried
// back through the membranes (`nit_snn.gradients.accumulate.Gathering`).
EXPORT void nit_charge(const Charge *wanted) {
    const Charge x = *wanted;
    share_out(x.threads, x.count, x.period, [&x](i64 begin, i64 end) {
        in_blocks(begin, end, x.period, BLOCK, [&x](i64 place, i64 k, int length) {
            float scale[BLOCK], found[BLOCK], later[BLOCK], sum[BLOCK];
            for (int i = 0; i < length; ++i) sum[i] = 0.0f;
            for (int i = 0; i < length; ++i) later[i] = x.arriving ? x.arriving[place + i] : 0.0f;
            for (i64 t = x.steps - 1; t >= 0; --t) {
                i64 at = t * x.count + place;
                if (t + 1 == x.steps || x.weight_stride) {
                    const float *weight = x.weight + t * x.weight_stride;
                    for (int i = 0; i < length;) {
                        i64 row = (place + i) / x.inner;
                        i64 rest = (row + 1) * x.inner - place;
                        int end_of_row = rest < length ? (int)rest : length;
                        float a = weight[row];
                        for (; i < end_of_row; ++i) scale[i] = a * x.rate[k + i];
                    }
                }
                for (int i = 0; i < length; ++i) found[i] = x.scores[at + i] * scale[i];
                if (x.factors)
                    for (int i = 0; i < length; ++i)
                        found[i] += x.factors[at + i] * x.densities[at + i];
                if (x.decays)
                    for (int i = 0; i < length; ++i) {
                        found[i] += later[i] * x.decays[at + i];
                        later[i] = found[i] * x.carry[k + i];
                    }
                for (int i = 0; i < length; ++i) sum[i] += found[i];
                if (x.each) std::memcpy(x.each + at, found, length * sizeof(float));
            }
            std::memcpy(x.total + place, sum, length * sizeof(float));
            if (x.leaving) std::memcpy(x.leaving + place, later, length * sizeof(float));
        });
    });
}
