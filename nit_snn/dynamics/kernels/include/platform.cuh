// What a kernel needs of the machine: CUDA's, or a C++ compiler's where NIT_HOST is defined.
// Compiled without any of CUDA's own headers, so that NVRTC alone is enough.
#pragma once

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#ifdef NIT_HOST
#include "host.h"
#else
#define NIT_FN [[maybe_unused]] static __device__ __forceinline__
#define NIT_KERNEL extern "C" __global__
// So many threads in a block, and so many blocks that registers are shared out to.
#define NIT_RESIDENT(threads, blocks) __launch_bounds__(threads, blocks)
#define NIT_SHARED __shared__
#define NIT_SYNC __syncthreads()
NIT_FN u32 high_product(u32 a, u32 b) { return __umulhi(a, b); }
NIT_FN u32 count_ones(u32 x) { return __popc(x); }
// The GPU's own approximations, of one instruction each: absolute errors of 2^-22 in a logarithm
// of a number near 1, relative ones elsewhere; 2^-20.5 in sine and cosine up to 2 pi.
NIT_FN float log2_of(float x) {
    float found;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(x));
    return found;
}
NIT_FN float root_of(float x) {
    float found;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(x));
    return found;
}
NIT_FN void sine_and_cosine(float x, float *s, float *c) {
    asm("sin.approx.ftz.f32 %0, %1;" : "=f"(*s) : "f"(x));
    asm("cos.approx.ftz.f32 %0, %1;" : "=f"(*c) : "f"(x));
}
NIT_FN u32 bits_of(float x) { return __float_as_uint(x); }
NIT_FN float float_of(u32 x) { return __uint_as_float(x); }
#endif

// The number of this thread in the grid.
NIT_FN i64 thread_number() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
