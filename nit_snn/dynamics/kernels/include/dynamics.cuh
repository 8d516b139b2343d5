// One step of a leaky integrate-and-fire neuron, as snnTorch or SpikingJelly have it.
#pragma once
#include "platform.cuh"

enum Reset { RESET_NONE, RESET_HARD, RESET_SOFT, RESET_WHOLE };

struct Dynamics {
    float rest;     // where the leak leads to
    float v_reset;  // where a hard reset leads to
    int reset;
    int delayed;   // snnTorch: the reset is decided at the next step, on the membrane left behind
    int or_equal;  // fires at the threshold, too
};

#define DYNAMICS_PARAMETERS float rest, float v_reset, int reset, int delayed, int or_equal
#define DYNAMICS {rest, v_reset, reset, delayed, or_equal}

// A parameter of the neurons: one number, one for each, or one for every `shared` neighbours.
struct Levels {
    const float *values;
    int shared;  // 0: one number for all
};

#define LEVELS_PARAMETERS(name) const float *name, int name##_shared
#define LEVELS(name) {name, name##_shared}

NIT_FN float level_of(Levels levels, int neuron) {
    return levels.values[levels.shared ? neuron / levels.shared : 0];
}

struct Neuron {
    float decay, gain, threshold, sigma;
};

NIT_FN bool fires(float membrane, Neuron n, Dynamics d) {
    float above = membrane - n.threshold;
    return d.or_equal ? above >= 0.0f : above > 0.0f;
}

// m, all of the membrane but the fresh noise, from the state that the last step left.
NIT_FN float drift(float state, float current, Neuron n, Dynamics d) {
    bool reset = d.delayed && d.reset != RESET_NONE && fires(state, n, d);
    if (reset && d.reset == RESET_WHOLE) return 0.0f;
    if (reset && d.reset == RESET_HARD) state = d.v_reset;
    float m = fmaf(n.gain, current, fmaf(n.decay, state - d.rest, d.rest));
    return reset && d.reset == RESET_SOFT ? m - n.threshold : m;
}

// What a step leaves behind.
NIT_FN float left_behind(float membrane, bool spike, Neuron n, Dynamics d) {
    if (d.delayed || !spike || d.reset == RESET_NONE) return membrane;
    return d.reset == RESET_SOFT ? membrane - n.threshold : d.v_reset;
}
