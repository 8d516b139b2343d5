// The sign of the noise alone, without Box and Muller's logarithm, root and sine.
#pragma once
#include "philox.cuh"

// Whether the two numbers that `two_normals` makes of these words are at least zero, as 0 or 1.
NIT_FN void two_sides(u32 a, u32 b, u32 flip, u32 *positive) {
    u32 zero = a >= 0xFFFFFF80u;  // these round to 2^32: u = 1 and the radius 0
    positive[0] = zero | ~(cosine_sign(b) ^ flip) >> 31;
    positive[1] = zero | ~(sine_sign(b) ^ flip) >> 31;
}

// Whether eps of neurons 4 * quad to 4 * quad + 3 at one step is at least zero, as 0 or 1.
NIT_FN void noise_signs(Row row, u32 quad, u32 step, u32 *positive) {
    Quad counter = {{quad, row.sample, step, row.layer << 16 | row.replica}};
    Quad words = philox(counter, row.k0, row.k1);
    two_sides(words.x[0], words.x[1], row.flip, positive);
    two_sides(words.x[2], words.x[3], row.flip, positive + 2);
}
