// Noisy leaky integrate-and-fire steps, and what there is to know of each of them.
// The equations are those of `neurons/closed_form.py`, `nit_snn/firing.py`, `nit_snn/pathwise.py`.
#include "normal.h"

enum Reset { NONE, HARD, SOFT, WHOLE };

// In the order of `nit_snn.native.steps`. Whatever is null is not wanted.
struct Steps {
    const float *current;       // (T, N, F), or (N, F) for all steps where `current_stride` is 0
    const float *state;         // (N, F)
    const float *const *noise;  // T addresses of (N, F)
    const float *signs;         // (T,), what the noise is multiplied with
    const float *decay, *gain, *threshold, *sigma;  // (period,)
    float *spikes;                          // (T, N, F)
    float *last;                            // (N, F), what the last step leaves behind
    float *membranes;                       // (T, N, F), before they fire
    float *levels;                          // a
    float *residuals, *densities;           // s - p and phi(a) / sigma
    float *scores, *sigma_scores;           // those of the spike, without 1 / sigma
    float *decays, *sigma_decays;           // du/dm and du/dsigma of what is left behind
    float *wanderings, *gaps, *jumps;       // see `nit_snn.conditioned.Conditioned`
    float *silent;                          // (N, F), the last membrane without its spike
    i64 current_stride, count, period, steps;  // `count` is N * F
    float rest, v_reset;
    int32_t reset, delayed, or_equal, threads;
};

static const float RARE = 1e-6f;

static inline bool fires(float u, float threshold, bool or_equal) {
    return or_equal ? u >= threshold : u > threshold;
}

// One step of a block: membranes before they fire, spikes, and levels (threshold - m) / sigma;
// `v` becomes what is left behind.
static void advance(const Steps &x, const float *current, const float *eps, i64 k, int length,
                    float *v, float *u, float *s, float *a) {
    const float *decay = x.decay + k, *gain = x.gain + k;
    const float *threshold = x.threshold + k, *sigma = x.sigma + k;
    const bool or_equal = x.or_equal;
    const float rest = x.rest, v_reset = x.v_reset;
    if (x.delayed && x.reset != NONE)
        for (int i = 0; i < length; ++i) s[i] = fires(v[i], threshold[i], or_equal) ? 1.0f : 0.0f;
    if (x.delayed && x.reset == HARD)
        for (int i = 0; i < length; ++i) v[i] = s[i] != 0.0f ? v_reset : v[i];
    for (int i = 0; i < length; ++i)
        u[i] = std::fma(v[i] - rest, decay[i], current[i] * gain[i]) + rest;
    if (x.delayed && x.reset == SOFT)
        for (int i = 0; i < length; ++i) u[i] -= s[i] * threshold[i];
    if (x.delayed && x.reset == WHOLE)
        for (int i = 0; i < length; ++i) u[i] = s[i] != 0.0f ? 0.0f : u[i];
    for (int i = 0; i < length; ++i) a[i] = (threshold[i] - u[i]) / sigma[i];
    for (int i = 0; i < length; ++i) u[i] = std::fma(eps[i], sigma[i], u[i]);
    for (int i = 0; i < length; ++i) s[i] = fires(u[i], threshold[i], or_equal) ? 1.0f : 0.0f;
    if (x.delayed || x.reset == NONE)
        std::memcpy(v, u, length * sizeof(float));
    else if (x.reset == HARD)
        for (int i = 0; i < length; ++i) v[i] = s[i] != 0.0f ? v_reset : u[i];
    else
        for (int i = 0; i < length; ++i) v[i] = u[i] - s[i] * threshold[i];
}

// What is asked for of one step of a block; `at` is where it begins in a tensor of all steps.
static void tell(const Steps &x, const float *eps, i64 k, int length, i64 at, const float *s,
                 const float *a, float *silent) {
    const float *sigma = x.sigma + k, *threshold = x.threshold + k, *decay = x.decay + k;
    const bool wiped = x.reset == HARD;
    float phi[BLOCK], tail[BLOCK], p[BLOCK], h[BLOCK], score[BLOCK], share[BLOCK];
    for (int i = 0; i < length; ++i) {
        float absolute = std::fabs(a[i]), z = s[i] != 0.0f ? a[i] : -a[i];
        float ratio = scaled_mills_ratio(absolute);
        phi[i] = normal_density(a[i]);
        tail[i] = phi[i] * ratio / (1.0f + absolute);
        p[i] = a[i] >= 0.0f ? tail[i] : 1.0f - tail[i];
        h[i] = hazard(z, phi[i], ratio);
    }
    if (x.levels) std::memcpy(x.levels + at, a, length * sizeof(float));
    if (x.residuals)
        for (int i = 0; i < length; ++i) x.residuals[at + i] = s[i] - p[i];
    if (x.densities)
        for (int i = 0; i < length; ++i) x.densities[at + i] = phi[i] / sigma[i];
    if (!x.scores) return;
    for (int i = 0; i < length; ++i) score[i] = s[i] != 0.0f ? h[i] : -h[i];
    std::memcpy(x.scores + at, score, length * sizeof(float));
    if (x.sigma_scores)
        for (int i = 0; i < length; ++i) x.sigma_scores[at + i] = score[i] * a[i];
    if (x.decays) {
        for (int i = 0; i < length; ++i) {
            float z = s[i] != 0.0f ? eps[i] : -eps[i];
            float own = hazard(z, normal_density(z), scaled_mills_ratio(std::fabs(z)));
            share[i] = h[i] / own;
            share[i] = share[i] > 1.0f ? 1.0f : share[i];
        }
        for (int i = 0; i < length; ++i)
            x.decays[at + i] = wiped && s[i] != 0.0f ? 0.0f : 1.0f - share[i];
        if (x.sigma_decays)
            for (int i = 0; i < length; ++i)
                x.sigma_decays[at + i] = wiped && s[i] != 0.0f ? 0.0f : eps[i] - share[i] * a[i];
    }
    if (!x.wanderings) return;
    for (int i = 0; i < length; ++i)
        x.wanderings[at + i] = wiped && s[i] != 0.0f ? 0.0f : (eps[i] - score[i]) * sigma[i];
    if (x.gaps)
        for (int i = 0; i < length; ++i) {
            float both = tail[i] * (1.0f - tail[i]);
            x.gaps[at + i] = phi[i] / (both < RARE ? RARE : both) * sigma[i];
        }
    for (int i = 0; i < length; ++i) silent[i] = threshold[i] - a[i] * sigma[i];
    if (wiped)
        for (int i = 0; i < length; ++i) {
            float quiet = a[i] >= 0.0f ? 1.0f - tail[i] : tail[i];
            silent[i] -= phi[i] / (quiet < RARE ? RARE : quiet) * sigma[i];
        }
    if (x.jumps)
        for (int i = 0; i < length; ++i)
            x.jumps[at + i] = -decay[i] * (wiped ? silent[i] - x.v_reset : threshold[i]);
}

EXPORT void nit_steps(const Steps *given) {
    const Steps x = *given;
    share_out(x.threads, x.count, x.period, [&x](i64 begin, i64 end) {
        in_blocks(begin, end, x.period, BLOCK, [&x](i64 place, i64 k, int length) {
            float v[BLOCK], u[BLOCK], s[BLOCK], a[BLOCK], eps[BLOCK], silent[BLOCK];
            std::memcpy(v, x.state + place, length * sizeof(float));
            for (i64 t = 0; t < x.steps; ++t) {
                const float *noise = x.noise[t] + place, sign = x.signs[t];
                for (int i = 0; i < length; ++i) eps[i] = sign * noise[i];
                i64 at = t * x.count + place;
                advance(x, x.current + t * x.current_stride + place, eps, k, length, v, u, s, a);
                std::memcpy(x.spikes + at, s, length * sizeof(float));
                if (x.membranes) std::memcpy(x.membranes + at, u, length * sizeof(float));
                if (x.residuals || x.scores) tell(x, eps, k, length, at, s, a, silent);
            }
            std::memcpy(x.last + place, v, length * sizeof(float));
            if (x.silent) std::memcpy(x.silent + place, silent, length * sizeof(float));
        });
    });
}
