// CUDA's words for a C++ compiler: runs a kernel over its grid, block by block, on the CPU.
// The threads of a block are fibres, so that a kernel may wait for the others (NIT_SYNC).
#pragma once
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <utility>
#include <vector>

#define NIT_FN static inline
#define NIT_KERNEL extern "C"
#define NIT_RESIDENT(threads, blocks)
#define NIT_SHARED static  // blocks run one after the other
#define NIT_SYNC host::wait()

struct Index {
    u32 x, y, z;
};
static Index blockIdx, threadIdx, blockDim, gridDim;

NIT_FN u32 high_product(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }
NIT_FN u32 count_ones(u32 x) { return (u32)__builtin_popcount(x); }
NIT_FN float log2_of(float x) { return std::log2(x); }
NIT_FN float root_of(float x) { return std::sqrt(x); }
NIT_FN void sine_and_cosine(float x, float *s, float *c) {
    *s = (float)std::sin((double)x);
    *c = (float)std::cos((double)x);
}
NIT_FN u32 bits_of(float x) {
    u32 found;
    std::memcpy(&found, &x, 4);
    return found;
}
NIT_FN float float_of(u32 x) {
    float found;
    std::memcpy(&found, &x, 4);
    return found;
}

namespace host {

struct Fibre {
    ucontext_t context;
    std::vector<char> stack;
    bool done;
};
static ucontext_t scheduler;
static Fibre *running;
static void (*body)(void *);
static void *body_argument;

static void enter() {
    body(body_argument);
    running->done = true;
    swapcontext(&running->context, &scheduler);
}

static inline void wait() { swapcontext(&running->context, &scheduler); }

static void run_block(std::vector<Fibre> &fibres) {
    for (Fibre &fibre : fibres) {
        fibre.done = false;
        fibre.stack.resize(1 << 16);
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack.data();
        fibre.context.uc_stack.ss_size = fibre.stack.size();
        fibre.context.uc_link = nullptr;
        makecontext(&fibre.context, enter, 0);
    }
    for (bool busy = true; busy;) {
        busy = false;
        for (u32 i = 0; i < fibres.size(); ++i) {
            if (fibres[i].done) continue;
            running = &fibres[i];
            threadIdx = {i, 0, 0};
            swapcontext(&scheduler, &running->context);
            busy = busy || !running->done;
        }
    }
}

// As cuLaunchKernel: `arguments` points to each argument in turn.
template <class... A, std::size_t... I>
void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
    kernel(*(A *)arguments[I]...);
}

template <class... A>
void launch(
    void (*kernel)(A...), u32 first, u32 grid_x, u32 grid_y, u32 block, void **arguments) {
    struct Call {
        void (*kernel)(A...);
        void **arguments;
    } all{kernel, arguments};
    body = [](void *p) {
        Call *c = (Call *)p;
        call(c->kernel, c->arguments, std::index_sequence_for<A...>{});
    };
    body_argument = &all;
    std::vector<Fibre> fibres(block);
    gridDim = {grid_x, grid_y, 1};
    blockDim = {block, 1, 1};
    for (u32 y = 0; y < grid_y; ++y)
        for (u32 x = first; x < grid_x; ++x) {
            blockIdx = {x, y, 0};
            run_block(fibres);
        }
}

}  // namespace host

// What the tests call, through ctypes.
#define NIT_HOST_ENTRY(kernel)                                                                 \
    extern "C" void launch_##kernel(u32 x, u32 y, u32 block, void **arguments) {               \
        host::launch(kernel, 0, x, y, block, arguments);                                       \
    }                                                                                          \
    extern "C" void launch_last_##kernel(u32 x, u32 y, u32 block, void **arguments) {          \
        host::launch(kernel, x - 1, x, y, block, arguments);                                   \
    }
