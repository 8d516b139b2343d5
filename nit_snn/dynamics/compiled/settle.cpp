// A control variate's coefficients and what they explain, in the same pass back through the steps
// that finds the loss's derivatives: all replicas of a sample at once, so that none of it has to be
// written down.
#include "replicas.h"

// In the order of `nit_snn.dynamics.compiled.settle`. Whatever is null counts as zero, or is not
// wanted.
struct Settle {
    const float *given;      // (T, N, F), the loss's derivative in the spikes as read, or (N, F)
                             // for all steps where `given_stride` is 0
    const float *arriving;   // (N, F), in the membrane that the last step leaves behind
    const float *residuals, *densities;  // (T, N, F), as all that follow
    const float *decays, *jumps, *gaps, *wanderings;
    const float *carry, *fall;  // (period,); `fall` stands for `jumps` where these are alike
    float *factors, *drifts;
    double *rows;            // (N,), what is explained; added to
    i64 given_stride, steps, replicas, batch, inner, period;
    int32_t threads;
};

// `g_t = dL/ds_t + f_{t+1} jump_t + w_t gap_t` and `w_t = f_{t+1} carry` of one replica in one step
// of a block, from f of the step after, which becomes
// `f_t = g_t phi(a_t) / sigma + w_t du_t/dm_t`: `Followed.collect` of
// `nit_snn.estimators.control_steps`.
static void step_back(const Settle &x, i64 t, i64 row, i64 k, i64 at, int length, float *g,
                      float *w, float *f) {
    const float *density = x.densities + at, *decay = x.decays + at;
    if (x.given)
        std::memcpy(g, x.given + t * x.given_stride + row, length * sizeof(float));
    else
        std::memset(g, 0, length * sizeof(float));
    if (t + 1 < x.steps) {
        const float *jump = x.jumps ? x.jumps + at : x.fall + k, *carry = x.carry + k;
        for (int i = 0; i < length; ++i) g[i] += f[i] * jump[i];
        for (int i = 0; i < length; ++i) w[i] = f[i] * carry[i];
    } else if (x.arriving) {
        std::memcpy(w, x.arriving + row, length * sizeof(float));
    } else {
        std::memset(w, 0, length * sizeof(float));
    }
    if (x.gaps)
        for (int i = 0; i < length; ++i) g[i] += w[i] * x.gaps[at + i];
    for (int i = 0; i < length; ++i) f[i] = g[i] * density[i] + w[i] * decay[i];
    if (x.drifts) std::memcpy(x.drifts + at, f, length * sizeof(float));
}

EXPORT void nit_settle(const Settle *wanted) {
    const Settle x = *wanted;
    const i64 C = x.replicas, replica = x.batch * x.inner;
    share_out(x.threads, replica, x.inner, [&x, C, replica](i64 begin, i64 end) {
        Explained spikes(C, x.batch, x.inner), membranes(C, x.batch, x.inner);
        std::vector<Few> f(C), g(C), w(C);
        in_blocks(begin, end, x.period, FEW, [&](i64 place, i64 k, int length) {
            spikes.begin_block();
            membranes.begin_block();
            for (i64 t = x.steps - 1; t >= 0; --t) {
                const i64 at = t * C * replica + place;
                for (i64 r = 0; r < C; ++r)
                    step_back(x, t, place + r * replica, k, at + r * replica, length, g[r].x,
                              w[r].x, f[r].x);
                spikes.step(g.data(), x.residuals + at, replica, length);
                membranes.step(w.data(), x.wanderings + at, replica, length);
                for (i64 r = 0; r < C; ++r)
                    spikes.mean_of_others(g[r].x, x.factors + at + r * replica, length);
            }
            spikes.end_block(place, length);
            membranes.end_block(place, length);
        });
        spikes.tell(x.rows, begin / x.inner, end / x.inner);
        membranes.tell(x.rows, begin / x.inner, end / x.inner);
    });
}
