// What a GPU does with the statements of a kernel, one thread after the other: memory that is
// looked after, barriers, and the arithmetic that C++ has not. `translate.py` makes the statements.
#include <immintrin.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <type_traits>
#include <unordered_map>
#include <vector>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;

// A register's bits as a type: a number's own between numbers, the pattern between float and word.
template <class To, class From>
static To as(From x) {
    if constexpr (std::is_floating_point_v<To> != std::is_floating_point_v<From>) {
        static_assert(sizeof(To) == sizeof(From));
        To found;
        memcpy(&found, &x, sizeof found);
        return found;
    } else {
        return (To)x;
    }
}
template <class To, class From>
static void set(To &to, From x) {
    to = as<To>(x);
}

template <class T>
static T do_min(T a, T b) { return std::min(a, b); }
template <class T>
static T do_max(T a, T b) { return std::max(a, b); }
template <class T>
static T do_shl(T x, u32 n) { return n >= 8 * sizeof x ? 0 : (T)(x << n); }
template <class T>
static T do_shr(T x, u32 n) { return (T)(x >> std::min<u32>(n, 8 * sizeof x - 1) >> (std::is_signed_v<T> ? 0 : n >= 8 * sizeof x)); }
static u32 high_half(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }
static s32 high_half(s32 a, s32 b) { return (s32)((s64)a * b >> 32); }
static u64 high_half(u64 a, u64 b) { return (u64)((unsigned __int128)a * b >> 64); }
static u32 do_popc(u32 x) { return __builtin_popcount(x); }
static u32 do_prmt(u32 a, u32 b, u32 choice) {
    u64 both = (u64)b << 32 | a;
    u32 found = 0;
    for (int i = 0; i < 4; ++i) {
        u32 own = choice >> 4 * i & 15, byte = both >> 8 * (own & 7) & 255;
        found |= (own & 8 ? (byte & 128 ? 255 : 0) : byte) << 8 * i;
    }
    return found;
}
static float do_abs(float x) { return fabsf(x); }
static float do_sqrt(float x) { return sqrtf(x); }
static float do_rsqrt(float x) { return 1.0f / sqrtf(x); }
static float do_rcp(float x) { return 1.0f / x; }
static float do_lg2(float x) { return log2f(x); }
static float do_ex2(float x) { return exp2f(x); }
static float do_sin(float x) { return sinf(x); }
static float do_cos(float x) { return cosf(x); }
static float do_sat(float x) { return x > 0 ? std::min(x, 1.0f) : 0.0f; }
static u16 to_bfloat16(float x) {
    u32 bits = as<u32>(x);
    return std::isnan(x) ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

struct Three {
    u32 x, y, z;
};
static struct {
    Three tid, ntid, ctaid, nctaid;
} grid;

// The first thing that went wrong, with the thread that did it.
static char trouble[256];
static void report(const char *what, u64 place, size_t size) {
    if (!trouble[0])
        snprintf(trouble, sizeof trouble, "%s: %zu bytes at %#lx, block (%u, %u), thread %u", what,
                 size, (unsigned long)place, grid.ctaid.x, grid.ctaid.y, grid.tid.x);
}

// Global memory: only what belongs to an argument, and each byte written by one thread.
struct Range {
    u64 begin, end;
};
static const Range *ranges;
static u64 range_count;
static std::unordered_map<u64, u64> writers;
static bool allowed(u64 place, size_t size) {
    for (u64 i = 0; i < range_count; ++i)
        if (place >= ranges[i].begin && place + size <= ranges[i].end) return true;
    return false;
}
static bool reachable(u64 place, size_t size, const char *what) {
    if (place % size) return report("misaligned", place, size), false;
    if (!allowed(place, size)) return report(what, place, size), false;
    return true;
}
static void read_global(u64 place, void *to, size_t size) {
    memset(to, 0, size);
    if (reachable(place, size, "read out of bounds")) memcpy(to, (const void *)place, size);
}
static void write_global(u64 place, const void *from, size_t size) {
    if (!reachable(place, size, "write out of bounds")) return;
    u64 me = ((u64)grid.ctaid.y * grid.nctaid.x + grid.ctaid.x) * grid.ntid.x + grid.tid.x;
    for (u64 byte = place; byte < place + size; ++byte)
        if (writers.emplace(byte, me).first->second != me) report("two threads write", place, size);
    memcpy((void *)place, from, size);
}

// Shared memory: who has read and written each byte since the last barrier. Two threads may write
// one value; nobody may read what another thread has written, or write what another has read.
enum : u32 { NOBODY = ~0u, MANY = ~0u - 1 };
struct Touched {
    u32 reader = NOBODY, writer = NOBODY;
};
alignas(64) static u8 shared_memory[SHARED_BYTES + 1];
static Touched touched[SHARED_BYTES + 1];
static bool within(u64 place, size_t size, u64 *offset) {
    *offset = place - (u64)shared_memory;
    if (*offset + size <= SHARED_BYTES && *offset % size == 0) return true;
    report("shared memory out of bounds or misaligned", *offset, size);
    return false;
}
static void read_shared(u64 place, void *to, size_t size) {
    u64 at;
    memset(to, 0, size);
    if (!within(place, size, &at)) return;
    for (u64 i = at; i < at + size; ++i) {
        u32 &reader = touched[i].reader, writer = touched[i].writer;
        if (writer != NOBODY && writer != grid.tid.x) report("race: read after write", at, size);
        reader = reader == NOBODY || reader == grid.tid.x ? grid.tid.x : (u32)MANY;
    }
    memcpy(to, shared_memory + at, size);
}
static void write_shared(u64 place, const void *from, size_t size) {
    u64 at;
    if (!within(place, size, &at)) return;
    for (u64 i = at; i < at + size; ++i) {
        Touched &own = touched[i];
        bool same = shared_memory[i] == ((const u8 *)from)[i - at];
        if (own.reader != NOBODY && own.reader != grid.tid.x)
            report("race: write after read", at, size);
        if (own.writer != NOBODY && own.writer != grid.tid.x && !same)
            report("race: two threads write", at, size);
        own.writer = grid.tid.x;
    }
    memcpy(shared_memory + at, from, size);
}

static u64 counts[PIECES];
#define PIECE(i) ++counts[i]

// Threads of a block that meet at barriers, each on a stack of its own.
struct Fibre {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[1 << 16]};
    bool done = false;
};
static ucontext_t scheduler;
static Fibre *running;
static void **parameters;
static void barrier() { swapcontext(&running->context, &scheduler); }
static void thread();
static void begin() {
    thread();
    running->done = true;
    swapcontext(&running->context, &scheduler);
}
static void run_block(std::vector<Fibre> &fibres) {
    for (Fibre &fibre : fibres) {
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack.get();
        fibre.context.uc_stack.ss_size = 1 << 16;
        fibre.context.uc_link = nullptr;
        fibre.done = false;
        makecontext(&fibre.context, begin, 0);
    }
    memset(shared_memory, 0x7f, sizeof shared_memory);  // nobody finds zeros there
    for (size_t done = 0; done < fibres.size();) {
        std::fill(touched, touched + SHARED_BYTES, Touched());
        size_t before = done, waiting = 0;
        for (size_t i = 0; i < fibres.size(); ++i) {
            if (fibres[i].done) continue;
            running = &fibres[i];
            grid.tid.x = (u32)i;
            swapcontext(&scheduler, &running->context);
            fibres[i].done ? ++done : ++waiting;
        }
        if (waiting && done) report("some threads are past the last barrier", 0, done - before);
        if (trouble[0]) return;
    }
}

extern "C" const char *run(u32 blocks_x, u32 blocks_y, u32 threads, void **given, const Range *own,
                           u64 count, bool waits, u64 *instructions) {
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);  // denormal numbers are zero, as -ftz=true has it
    trouble[0] = 0;
    ranges = own, range_count = count, parameters = given;
    writers.clear();
    std::fill(counts, counts + PIECES, 0);
    grid = {{0, 0, 0}, {threads, 1, 1}, {0, 0, 0}, {blocks_x, blocks_y, 1}};
    std::vector<Fibre> fibres(waits ? threads : 0);
    for (u32 y = 0; y < blocks_y && !trouble[0]; ++y)
        for (u32 x = 0; x < blocks_x && !trouble[0]; ++x) {
            grid.ctaid = {x, y, 0};
            if (waits) run_block(fibres);
            for (u32 i = 0; i < threads && !waits; ++i) grid.tid.x = i, thread();
        }
    _mm_setcsr(before);
    *instructions = 0;
    for (int i = 0; i < PIECES; ++i) *instructions += counts[i] * SIZES[i];
    return trouble;
}
