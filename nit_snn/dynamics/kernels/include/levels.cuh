// Parameters of neurons, as the kernels get them.
#pragma once
#include "platform.cuh"

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
