// The standard normal's density, tail and hazard in float32, as arithmetic that a compiler
// turns into vector instructions.
#pragma once
#include "shared.h"

// 2^x for x <= 0, to 1e-7; zero below 2^-64, so that what it is multiplied with later does not
// leave the normal numbers, where processors take many times as long.
static inline float power_of_2(float x) {
    bool tiny = x < -64.0f;
    x = tiny ? -64.0f : x;
    float shifted = x + 12582912.0f;  // the nearest integer is in its last bits
    float r = x - (shifted - 12582912.0f);
    int32_t bits;
    std::memcpy(&bits, &shifted, 4);
    bits = (int32_t)((uint32_t)(bits - 0x4B400000 + 127) << 23);
    float scale;
    std::memcpy(&scale, &bits, 4);
    // Interpolation of 2^r at Chebyshev's points of [-1/2, 1/2].
    float p = 0.000154614447f;
    p = p * r + 0.00134004282f;
    p = p * r + 0.00961805668f;
    p = p * r + 0.0555032723f;
    p = p * r + 0.240226509f;
    p = p * r + 0.693147207f;
    return tiny ? 0.0f : (p * r + 1.0f) * scale;
}

// A number whose square is finite: farther from the threshold than that is all alike.
static inline float bounded(float a) {
    a = a > 1e18f ? 1e18f : a;
    return a < -1e18f ? -1e18f : a;
}

// phi(a) = exp(-a^2 / 2) / sqrt(2 pi).
static inline float normal_density(float a) {
    return 0.398942280f * power_of_2(-0.721347520f * a * a);
}

// (1 + x) (1 - Phi(x)) / phi(x) for x >= 0, to 2e-7 however large x is. It is smooth in
// t = (x - 3) / (x + 3), and interpolated there at Chebyshev's points.
static inline float scaled_mills_ratio(float x) {
    float t = (x - 3.0f) / (x + 3.0f);
    float p = 0.000156963681f;
    p = p * t + 9.00673225e-05f;
    p = p * t - 0.0012064095f;
    p = p * t - 0.000916795842f;
    p = p * t + 0.00750259444f;
    p = p * t + 0.00291853079f;
    p = p * t - 0.0569675268f;
    p = p * t + 0.11320777f;
    p = p * t - 0.0411897208f;
    p = p * t - 0.24195664f;
    return p * t + 1.21836119f;
}

// phi(z) / (1 - Phi(z)) from phi(z) and the ratio of |z|: no tail is divided by that may be zero.
static inline float hazard(float z, float density, float ratio) {
    float x = std::fabs(z), upper = 1.0f + x;
    float top = z >= 0.0f ? upper : density * upper;
    float bottom = z >= 0.0f ? ratio : upper - density * ratio;
    return top / bottom;
}
