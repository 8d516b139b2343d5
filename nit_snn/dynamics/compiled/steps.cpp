// Noisy leaky integrate-and-fire steps, and what there is to know of each of them.
// The equations are those of `closed_form.py`, `firing.py` and `pathwise.py` in `nit_snn/dynamics`.
#include "normal.h"

enum Reset { NONE, HARD, SOFT, WHOLE };

// In the order of `nit_snn.dynamics.compiled.steps`. Whatever is null is not wanted.
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
    float *wanderings, *gaps, *jumps;       // see `nit_snn.dynamics.conditioned.Conditioned`
    float *silent;                          // (N, F), the last membrane without its spike
    float *sums, *sigma_sums;  // (N, F), of eps or its sign, and of eps^2 - 1; added to
    uint8_t *bits;             // (planes, N, F), bit `slot % 8` of plane `slot / 8`
    i64 current_stride, count, period, steps, slot;  // `count` is N * F
    float rest, v_reset;
    int32_t reset, delayed, or_equal, signs_alone, threads;
};

static const float RARE = 1e-6f;

// One step of a block: membranes before they fire, spikes and, if wanted, levels
// (threshold - m) / sigma; `v` becomes what is left behind.
template <int RESET, bool DELAYED, bool LEVELS>
static void advance(const Steps &x, const float *current, const float *eps, i64 k, int length,
                    float *v, float *u, float *s, float *a) {
    const float *decay = x.decay + k, *gain = x.gain + k;
    const float *threshold = x.threshold + k, *sigma = x.sigma + k;
    const bool or_equal = x.or_equal;
    const float rest = x.rest, v_reset = x.v_reset;
#pragma omp simd
    for (int i = 0; i < length; ++i) {
        const float height = threshold[i];
        float before = v[i];
        const bool fired = or_equal ? before >= height : before > height;
        if (DELAYED && RESET == HARD) before = fired ? v_reset : before;
        float m = (before - rest) * decay[i] + current[i] * gain[i] + rest;
        if (DELAYED && RESET == SOFT) m = fired ? m - height : m;
        if (DELAYED && RESET == WHOLE) m = fired ? 0.0f : m;
        if (LEVELS) a[i] = bounded((height - m) / sigma[i]);
        const float now = eps[i] * sigma[i] + m;
        const bool spike = or_equal ? now >= height : now > height;
        float after = now;
        if (!DELAYED && RESET == HARD) after = spike ? v_reset : now;
        if (!DELAYED && RESET == SOFT) after = spike ? now - height : now;
        u[i] = now;
        s[i] = spike ? 1.0f : 0.0f;
        v[i] = after;
    }
}

typedef void (*Advance)(const Steps &, const float *, const float *, i64, int, float *, float *,
                        float *, float *);

template <bool DELAYED, bool LEVELS>
static Advance advance_of(int reset) {
    switch (reset) {
        case HARD: return advance<HARD, DELAYED, LEVELS>;
        case SOFT: return advance<SOFT, DELAYED, LEVELS>;
        case WHOLE: return advance<WHOLE, DELAYED, LEVELS>;
        default: return advance<NONE, DELAYED, LEVELS>;
    }
}

static Advance advance_of(const Steps &x, bool levels) {
    if (x.delayed) return levels ? advance_of<true, true>(x.reset) : advance_of<true, false>(x.reset);
    return levels ? advance_of<false, true>(x.reset) : advance_of<false, false>(x.reset);
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

// What is kept of one step of a block whatever its spikes tell: the noise's own scores, summed, and
// spikes as bits.
static void keep(const Steps &x, const float *eps, i64 place, i64 t, int length, const float *s) {
    if (x.sums && x.signs_alone)
        for (int i = 0; i < length; ++i) x.sums[place + i] += eps[i] >= 0.0f ? 1.0f : -1.0f;
    else if (x.sums)
        for (int i = 0; i < length; ++i) x.sums[place + i] += eps[i];
    if (x.sigma_sums)
        for (int i = 0; i < length; ++i) x.sigma_sums[place + i] += eps[i] * eps[i] - 1.0f;
    if (!x.bits) return;
    const int bit = (int)((x.slot + t) % 8);
    uint8_t *plane = x.bits + (x.slot + t) / 8 * x.count + place;
    if (bit == 0)
        for (int i = 0; i < length; ++i) plane[i] = s[i] != 0.0f ? 1 : 0;
    else
        for (int i = 0; i < length; ++i)
            plane[i] = (uint8_t)(plane[i] | (s[i] != 0.0f ? 1 << bit : 0));
}

EXPORT void nit_steps(const Steps *given) {
    const Steps x = *given;
    const bool tells = x.residuals || x.scores;
    const Advance advance = advance_of(x, tells);
    share_out(x.threads, x.count, x.period, [&x, tells, advance](i64 begin, i64 end) {
        in_blocks(begin, end, x.period, BLOCK, [&](i64 place, i64 k, int length) {
            const size_t size = length * sizeof(float);
            float v[BLOCK], own_u[BLOCK], own_s[BLOCK], a[BLOCK], signed_eps[BLOCK], silent[BLOCK];
            std::memcpy(v, x.state + place, size);
            for (i64 t = 0; t < x.steps; ++t) {
                const i64 at = t * x.count + place;
                const float *eps = x.noise[t] + place, sign = x.signs[t];
                float *u = x.membranes ? x.membranes + at : own_u;
                float *s = x.spikes ? x.spikes + at : own_s;
                if (sign != 1.0f) {
                    for (int i = 0; i < length; ++i) signed_eps[i] = sign * eps[i];
                    eps = signed_eps;
                }
                advance(x, x.current + t * x.current_stride + place, eps, k, length, v, u, s, a);
                keep(x, eps, place, t, length, s);
                if (tells) tell(x, eps, k, length, at, s, a, silent);
            }
            if (x.last) std::memcpy(x.last + place, v, size);
            if (x.silent) std::memcpy(x.silent + place, silent, size);
        });
    });
}
