// One step of a leaky integrate-and-fire neuron, as snnTorch or SpikingJelly have it.
#pragma once
#include "levels.cuh"

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

struct Neuron {
    float decay, gain, threshold, sigma;
    float bar;        // fires above it: the threshold, or the next number below
    float reset_bar;  // is reset above it: the same, or infinity where there is no reset
};

// What is decided once for all steps.
NIT_FN void prepare(Neuron *n, Dynamics d) {
    u32 bits = bits_of(n->threshold);
    u32 below = bits << 1 == 0 ? 0x80800000u : bits >> 31 ? bits + 1 : bits - 1;
    n->bar = d.or_equal ? float_of(below) : n->threshold;
    n->reset_bar = d.reset == RESET_NONE ? float_of(0x7F800000u) : n->bar;
}

// m, all of the membrane but the fresh noise, from the state that the last step left.
template <bool DELAYED>
NIT_FN float drift(float state, float current, Neuron n, Dynamics d) {
    if (!DELAYED) return fmaf(n.gain, current, fmaf(n.decay, state - d.rest, d.rest));
    bool reset = state > n.reset_bar;
    if (reset && d.reset == RESET_HARD) state = d.v_reset;
    float m = fmaf(n.gain, current, fmaf(n.decay, state - d.rest, d.rest));
    if (reset && d.reset == RESET_SOFT) m -= n.threshold;
    return reset && d.reset == RESET_WHOLE ? 0.0f : m;
}

// What a step leaves behind.
template <bool DELAYED>
NIT_FN float left_behind(float membrane, Neuron n, Dynamics d) {
    if (DELAYED || !(membrane > n.reset_bar)) return membrane;
    return d.reset == RESET_SOFT ? membrane - n.threshold : d.v_reset;
}
