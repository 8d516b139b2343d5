// A sequence of noisy leaky integrate-and-fire steps, the membrane in a register throughout.
// One thread has four neighbouring neurons of one row; T = 1 is the single step. Membranes are
// rounded to their type at each step, so that whoever looks at one sees what decided on the spike.
#include "dynamics.cuh"
#include "philox.cuh"
#include "real.cuh"

// What a thread reads and writes, from its own place on.
struct Places {
    const real *current;
    real *spikes, *membranes;  // or null
    u8 *bits;                  // or null: the plane of the first step
    i64 stride, size;          // from step to step: of the current, and of all else
    int count;                 // neurons of the quad
    bool aligned, words;       // whether four numbers, and four bytes, are read and written at once
};

NIT_FN void store_bytes(u8 *to, u32 four, int count, bool at_once) {
    if (at_once) {
        *(u32 *)to = four;
    } else {
        for (int j = 0; j < 4; ++j)
            if (j < count) to[j] = (u8)(four >> 8 * j);
    }
}

template <bool DELAYED>
NIT_FN void run_steps(
    Places at, const Neuron *neurons, Dynamics dynamics, Row source, u32 quad, u32 step, i64 steps,
    u32 bit, u32 four, float *membrane) {
    float in[4], out[4], fired[4], eps[4];
    for (i64 t = 0; t < steps; ++t, ++step) {
        load_quad(at.current, at.count, at.aligned, in);
        at.current += at.stride;
        noise(source, quad, step, eps);
        for (int j = 0; j < 4; ++j) {
            float m = drift<DELAYED>(membrane[j], in[j], neurons[j], dynamics);
            out[j] = rounded(fmaf(neurons[j].sigma, eps[j], m));
            bool spike = out[j] > neurons[j].bar;
            fired[j] = spike ? 1.0f : 0.0f;
            four |= (spike ? 1u << 8 * j : 0u) << bit;
            membrane[j] = rounded(left_behind<DELAYED>(out[j], neurons[j], dynamics));
        }
        if (at.spikes) {
            store_quad(at.spikes, at.count, at.aligned, fired);
            at.spikes += at.size;
        }
        if (at.membranes) {
            store_quad(at.membranes, at.count, at.aligned, out);
            at.membranes += at.size;
        }
        bit = (bit + 1) % 8;
        if (at.bits && (!bit || t == steps - 1)) {
            store_bytes(at.bits, four, at.count, at.words);
            at.bits += at.size;
            four = 0;
        }
    }
}

NIT_KERNEL void noisy_lif(
    const real *current,    // (T, N, F), or (N, F) for all steps where `current_stride` is 0
    const real *state,      // (N, F), or null for a membrane at zero
    LEVELS_PARAMETERS(decay), LEVELS_PARAMETERS(gain), LEVELS_PARAMETERS(threshold),
    LEVELS_PARAMETERS(sigma),
    real *spikes,           // (T, N, F), or null
    real *membranes,        // (T, N, F) before they fire, or null
    real *last,             // (N, F), what the last step leaves behind
    u8 *bits,               // (planes, N, F), bit `slot % 8` of plane `slot / 8`, or null
    DYNAMICS_PARAMETERS, STREAM_PARAMETERS,
    i64 current_stride, i64 steps, i64 rows, int inner, int first_step, int slot) {
    Dynamics dynamics = DYNAMICS;
    Stream stream = STREAM;
    i64 quads = (inner + 3) / 4, thread = thread_number();
    if (thread >= rows * quads) return;
    i64 row = thread / quads, quad = thread % quads;
    int neuron = (int)quad * 4, count = inner - neuron < 4 ? inner - neuron : 4;
    bool aligned = inner % 4 == 0;
    i64 size = rows * inner, place = row * inner + neuron;

    Neuron neurons[4];
    float membrane[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    u32 four = 0;
    if (bits) bits += slot / 8 * size + place;
    for (int j = 0; j < 4; ++j) {
        int k = j < count ? neuron + j : neuron;
        neurons[j].decay = level_of(Levels LEVELS(decay), k);
        neurons[j].gain = level_of(Levels LEVELS(gain), k);
        neurons[j].threshold = level_of(Levels LEVELS(threshold), k);
        neurons[j].sigma = level_of(Levels LEVELS(sigma), k);
        prepare(neurons + j, dynamics);
        if (bits && slot % 8 && j < count) four |= (u32)bits[j] << 8 * j;
    }
    if (state) load_quad(state + place, count, aligned, membrane);
    Places at = {
        current + place,
        spikes ? spikes + place : spikes,
        membranes ? membranes + place : membranes,
        bits,
        current_stride,
        size,
        count,
        aligned,
        aligned && !((u64)bits & 3u)};
    Row source = noise_of_row(stream, row, rows);
    u32 step = (u32)first_step, bit = (u32)slot % 8;
    if (delayed)
        run_steps<true>(
            at, neurons, dynamics, source, (u32)quad, step, steps, bit, four, membrane);
    else
        run_steps<false>(
            at, neurons, dynamics, source, (u32)quad, step, steps, bit, four, membrane);
    store_quad(last + place, count, aligned, membrane);
}
