// The type of currents, membranes and spikes: NIT_REAL is 0 float32, 1 float16, 2 bfloat16.
// All arithmetic is in float32; these only load and store.
#pragma once
#include "platform.cuh"

NIT_FN float load(float x) { return x; }
NIT_FN void put(float *to, float x) { *to = x; }

#if NIT_REAL == 0

typedef float real;
NIT_FN real store(float x) { return x; }

#elif NIT_REAL == 1

struct real {
    unsigned short bits;
};

#ifdef NIT_HOST
NIT_FN float load(real x) {
    u32 sign = (u32)(x.bits & 0x8000u) << 16, exponent = (x.bits >> 10) & 31u;
    u32 mantissa = x.bits & 0x3ffu;
    if (exponent == 31u) return float_of(sign | 0x7f800000u | mantissa << 13);
    if (exponent) return float_of(sign | (exponent + 112u) << 23 | mantissa << 13);
    float tiny = (float)mantissa * 5.9604644775390625e-8f;  // 2^-24
    return sign ? -tiny : tiny;
}
NIT_FN real store(float x) {
    u32 bits = bits_of(x), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
    real found;
    if (rest > 0x7f800000u) {
        found.bits = (unsigned short)(sign | 0x7e00u);  // not a number
    } else if (rest >= 0x477ff000u) {
        found.bits = (unsigned short)(sign | 0x7c00u);  // rounds to infinity
    } else if (rest < 0x38800000u) {  // too small for a normal float16: 2^-24 counts
        float counted = float_of(rest) * 16777216.0f;
        u32 whole = (u32)counted;
        float part = counted - (float)whole;
        whole += part > 0.5f || (part == 0.5f && whole & 1u);
        found.bits = (unsigned short)(sign | whole);
    } else {
        u32 even = rest + 0xfffu + (rest >> 13 & 1u);
        found.bits = (unsigned short)(sign | ((even - 0x38000000u) >> 13));
    }
    return found;
}
#else
NIT_FN float load(real x) {
    float found;
    asm("cvt.f32.f16 %0, %1;" : "=f"(found) : "h"(x.bits));
    return found;
}
NIT_FN real store(float x) {
    real found;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(found.bits) : "f"(x));
    return found;
}
#endif

#else

struct real {
    unsigned short bits;
};
NIT_FN float load(real x) { return float_of((u32)x.bits << 16); }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
NIT_FN real store(float x) {
    real found;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(found.bits) : "f"(x));
    return found;
}
#else
NIT_FN real store(float x) {
    u32 bits = bits_of(x);
    real found;
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        found.bits = 0x7fc0u;  // not a number
    else
        found.bits = (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    return found;
}
#endif

#endif

#if NIT_REAL != 0
NIT_FN void put(real *to, float x) { *to = store(x); }
#endif

NIT_FN float rounded(float x) { return load(store(x)); }

// Four neighbours at once where the row's length and the address allow it.
template <class T>
struct alignas(4 * sizeof(T)) Together {
    T x[4];
};

template <class T>
NIT_FN void load_quad(const T *from, int count, bool aligned, float *to) {
    if (aligned) {
        Together<T> all = *(const Together<T> *)from;
        for (int j = 0; j < 4; ++j) to[j] = load(all.x[j]);
    } else {
        for (int j = 0; j < 4; ++j) to[j] = j < count ? load(from[j]) : 0.0f;
    }
}

template <class T>
NIT_FN void store_quad(T *to, int count, bool aligned, const float *from) {
    if (aligned) {
        Together<T> all;
        for (int j = 0; j < 4; ++j) put(all.x + j, from[j]);
        *(Together<T> *)to = all;
    } else {
        // Four steps always: an array with an index that is not known lies in memory.
        for (int j = 0; j < 4; ++j)
            if (j < count) put(to + j, from[j]);
    }
}
