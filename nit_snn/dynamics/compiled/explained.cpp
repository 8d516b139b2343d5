// What a control variate explains of each row's loss, and its coefficients, where the loss's
// derivatives are known.
#include "replicas.h"

// In the order of `nit_snn.dynamics.compiled.settle`.
struct Given {
    const float *gradients, *deviations;  // g and d, (T, C * B, F)
    float *factors;  // (T, C * B, F), the mean of g over the other replicas, or null
    double *rows;    // (C * B,), what is explained; added to
    i64 steps, replicas, batch, inner;
    int32_t threads;
};

EXPORT void nit_explained(const Given *given) {
    const Given x = *given;
    const i64 C = x.replicas, replica = x.batch * x.inner;
    share_out(x.threads, replica, x.inner, [&x, C, replica](i64 begin, i64 end) {
        Explained explained(C, x.batch, x.inner);
        std::vector<Few> g(C);
        in_blocks(begin, end, replica, FEW, [&](i64 place, i64, int length) {
            explained.begin_block();
            for (i64 t = 0; t < x.steps; ++t) {
                const i64 at = t * C * replica + place;
                for (i64 r = 0; r < C; ++r)
                    std::memcpy(g[r].x, x.gradients + at + r * replica, length * sizeof(float));
                explained.step(g.data(), x.deviations + at, replica, length);
                for (i64 r = 0; r < C && x.factors; ++r)
                    explained.mean_of_others(g[r].x, x.factors + at + r * replica, length);
            }
            explained.end_block(place, length);
        });
        explained.tell(x.rows, begin / x.inner, end / x.inner);
    });
}
