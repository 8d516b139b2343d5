// The sign of the noise alone, +1 from zero on, without Box and Muller's logarithm, root and sine.
#pragma once
#include "philox.cuh"

// Two numbers with the signs of the two that `two_normals` makes of these words, zeros included.
NIT_FN void two_sides(u32 a, u32 b, float *out) {
    float x = (float)b * 4.6566128730773926e-10f;  // 2^-31: the angle over pi, from 0 to 2
    float nothing = a < 0xFFFFFF80u ? 1.0f : 0.0f;  // these round to 2^32: u = 1 and the radius 0
    out[0] = nothing * (fabsf(x - 1.0f) - 0.5f);
    out[1] = nothing * (x * (1.0f - x) * (2.0f - x));
}

// Whether eps of neurons 4 * quad to 4 * quad + 3 at one step is at least zero, as 0 or 1.
NIT_FN void noise_signs(Row row, u32 quad, u32 step, u32 *positive) {
    Quad counter = {{quad, row.sample, step, row.layer << 16 | row.replica}};
    Quad words = philox(counter, row.k0, row.k1);
    float side[4];
    two_sides(words.x[0], words.x[1], side);
    two_sides(words.x[2], words.x[3], side + 2);
    for (int j = 0; j < 4; ++j) positive[j] = row.sign * side[j] >= 0.0f;
}
