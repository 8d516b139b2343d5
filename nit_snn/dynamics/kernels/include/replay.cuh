// A layer's steps once more, for scores that depend on its spikes. Membranes are in float32.
#pragma once
#include "dynamics.cuh"
#include "real.cuh"

struct Replay {
    const float *current;  // (T, N, F), or (N, F) for all steps where `stride` is 0
    const float *state;    // (N, F), or null for a membrane at zero
    Levels decay, gain, threshold, sigma;  // without values where there is no replay
    Dynamics dynamics;
    i64 stride;
};

#define REPLAY_PARAMETERS                                                                      \
    const float *current, const float *state, LEVELS_PARAMETERS(decay),                        \
        LEVELS_PARAMETERS(gain), LEVELS_PARAMETERS(threshold), LEVELS_PARAMETERS(sigma),       \
        DYNAMICS_PARAMETERS, i64 current_stride
#define REPLAY                                                                                 \
    {current,          state,         LEVELS(decay), LEVELS(gain),                             \
     LEVELS(threshold), LEVELS(sigma), DYNAMICS,      current_stride}

// Four neighbouring neurons of a row, of which `count` are there.
struct Four {
    Neuron neurons[4];
    float membrane[4];
    float level[4];  // a, from the drift to the threshold in units of sigma
    bool spike[4];
};

NIT_FN void find_neurons(Four *four, Replay replay, int neuron, int count) {
    for (int j = 0; j < 4; ++j) {
        int k = j < count ? neuron + j : neuron;
        four->neurons[j].decay = level_of(replay.decay, k);
        four->neurons[j].gain = level_of(replay.gain, k);
        four->neurons[j].threshold = level_of(replay.threshold, k);
        four->neurons[j].sigma = level_of(replay.sigma, k);
    }
}

NIT_FN void start(Four *four, Replay replay, i64 place, int count, bool aligned) {
    for (int j = 0; j < 4; ++j) four->membrane[j] = 0.0f;
    if (replay.state) load_quad(replay.state + place, count, aligned, four->membrane);
}

NIT_FN void advance(
    Four *four, Replay replay, i64 step, i64 place, int count, bool aligned, const float *eps) {
    float in[4];
    load_quad(replay.current + step * replay.stride + place, count, aligned, in);
    for (int j = 0; j < 4; ++j) {
        Neuron n = four->neurons[j];
        float m = drift(four->membrane[j], in[j], n, replay.dynamics);
        float u = fmaf(n.sigma, eps[j], m);
        four->spike[j] = fires(u, n, replay.dynamics);
        four->level[j] = (n.threshold - m) / n.sigma;
        four->membrane[j] = left_behind(u, four->spike[j], n, replay.dynamics);
    }
}

// phi(a) / (1 - Phi(a)), the mean of eps where it is above a; for a up to 9, farther than noise goes.
NIT_FN float hazard(float a) {
    return 0.7978845608f * expf(-0.5f * a * a) / erfcf(0.7071067812f * a);
}
