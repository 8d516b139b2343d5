// A sequence of noisy leaky integrate-and-fire steps, the membrane in a register throughout.
// One thread has four neighbouring neurons of one row; T = 1 is the single step. Membranes are
// rounded to their type at each step, so that whoever looks at one sees what decided on the spike.
#include "dynamics.cuh"
#include "philox.cuh"
#include "real.cuh"

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
    float membrane[4] = {0.0f, 0.0f, 0.0f, 0.0f}, in[4], out[4], fired[4], eps[4];
    u8 byte[4];
    for (int j = 0; j < 4; ++j) {
        int k = j < count ? neuron + j : neuron;
        neurons[j].decay = level_of(Levels LEVELS(decay), k);
        neurons[j].gain = level_of(Levels LEVELS(gain), k);
        neurons[j].threshold = level_of(Levels LEVELS(threshold), k);
        neurons[j].sigma = level_of(Levels LEVELS(sigma), k);
        byte[j] = bits && slot % 8 && j < count ? bits[slot / 8 * size + place + j] : 0;
    }
    if (state) load_quad(state + place, count, aligned, membrane);
    Row source = noise_of_row(stream, row, rows);

    for (i64 t = 0; t < steps; ++t) {
        load_quad(current + t * current_stride + place, count, aligned, in);
        noise(source, (u32)quad, (u32)(first_step + t), eps);
        for (int j = 0; j < 4; ++j) {
            float m = drift(membrane[j], in[j], neurons[j], dynamics);
            out[j] = rounded(fmaf(neurons[j].sigma, eps[j], m));
            bool spike = fires(out[j], neurons[j], dynamics);
            fired[j] = spike ? 1.0f : 0.0f;
            membrane[j] = rounded(left_behind(out[j], spike, neurons[j], dynamics));
            byte[j] |= (u8)((u32)spike << ((slot + t) % 8));
        }
        if (spikes) store_quad(spikes + t * size + place, count, aligned, fired);
        if (membranes) store_quad(membranes + t * size + place, count, aligned, out);
        if (bits && ((slot + t) % 8 == 7 || t == steps - 1)) {
            u8 *to = bits + (slot + t) / 8 * size + place;
            for (int j = 0; j < 4; ++j) {
                if (j < count) to[j] = byte[j];
                byte[j] = 0;
            }
        }
    }
    store_quad(last + place, count, aligned, membrane);
}
