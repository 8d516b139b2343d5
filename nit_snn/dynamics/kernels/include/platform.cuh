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
NIT_FN void sine_and_cosine_of_pi(float x, float *s, float *c) { sincospif(x, s, c); }
NIT_FN u32 bits_of(float x) { return __float_as_uint(x); }
NIT_FN float float_of(u32 x) { return __uint_as_float(x); }
#endif

// The number of this thread in the grid.
NIT_FN i64 thread_number() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
