// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) and what is
// made of it: the normal noise of four neighbouring neurons at one step of one row.
#pragma once
#include "platform.cuh"

struct Quad {
    u32 x[4];
};

NIT_FN Quad philox(Quad counter, u32 k0, u32 k1) {
    for (int round = 0; round < 10; ++round) {
        u32 high0 = high_product(0xD2511F53u, counter.x[0]), low0 = 0xD2511F53u * counter.x[0];
        u32 high1 = high_product(0xCD9E8D57u, counter.x[2]), low1 = 0xCD9E8D57u * counter.x[2];
        counter.x[0] = high1 ^ counter.x[1] ^ k0;
        counter.x[1] = low1;
        counter.x[2] = high0 ^ counter.x[3] ^ k1;
        counter.x[3] = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return counter;
}

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection on 64 bits.
NIT_FN u64 mix64(u64 x) {
    x += 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

// A number with the sign that the highest bit of a word says.
NIT_FN float with_sign(float x, u32 sign) {
    return float_of((bits_of(x) & 0x7FFFFFFFu) | (sign & 0x80000000u));
}

// Where the angle of the second word of Box and Muller's transform makes its two numbers negative:
// the cosine in the second and third quarter, the sine in the third and fourth.
NIT_FN u32 cosine_sign(u32 b) { return b ^ b << 1; }
NIT_FN u32 sine_sign(u32 b) { return b; }

// Box and Muller's transform of two words. Signs come from the words themselves, so that they are
// the same wherever they are asked for, however sine and cosine are approximated.
NIT_FN void two_normals(u32 a, u32 b, u32 flip, float *out) {
    const float unit = 2.3283064365386963e-10f;  // 2^-32
    float u = fmaf((float)a, unit, 0.5f * unit);  // in (0, 1]
    float square = -1.3862943611198906f * log2_of(u);  // -2 ln u
    float radius = root_of(square > 0.0f ? square : 0.0f);
    float sine, cosine;
    sine_and_cosine((float)b * 1.4629180792671596e-9f, &sine, &cosine);  // 2 pi of 2^32
    out[0] = with_sign(radius * cosine, cosine_sign(b) ^ flip);
    out[1] = with_sign(radius * sine, sine_sign(b) ^ flip);
}

// Whose noise is meant. Every call of every layer in every pass has numbers of its own.
struct Stream {
    u64 seed;
    const i64 *pass;  // in device memory, so that a replayed graph draws anew
    int layer;
    int replicas;  // C; rows are replica-major
    int antithetic;
    int first_replica;  // where this process's replicas begin among those of all
};

// A kernel's own arguments are plain numbers and addresses, the only ones that every launcher knows.
#define STREAM_PARAMETERS                                                                      \
    u64 seed, const i64 *pass, int layer, int replicas, int antithetic, int first_replica
#define STREAM {seed, pass, layer, replicas, antithetic, first_replica}

struct Row {
    u32 k0, k1;
    u32 sample, replica;
    u32 layer;
    u32 flip;  // the highest bit turns signs around, for the second half of antithetic replicas
};

NIT_FN Row noise_of_row(Stream stream, i64 row, i64 rows) {
    u64 key = mix64(mix64(stream.seed) ^ (u64)*stream.pass);
    i64 samples = rows / stream.replicas;
    Row found;
    found.k0 = (u32)key;
    found.k1 = (u32)(key >> 32);
    found.sample = (u32)(row % samples);
    found.replica = (u32)(row / samples);
    found.layer = (u32)stream.layer;
    found.flip = 0;
    if (stream.antithetic && (int)found.replica >= stream.replicas / 2) {
        found.replica -= stream.replicas / 2;
        found.flip = 0x80000000u;
    }
    found.replica += (u32)stream.first_replica;
    return found;
}

// eps of neurons 4 * quad to 4 * quad + 3 at one step.
NIT_FN void noise(Row row, u32 quad, u32 step, float *eps) {
    Quad counter = {{quad, row.sample, step, row.layer << 16 | row.replica}};
    Quad words = philox(counter, row.k0, row.k1);
    two_normals(words.x[0], words.x[1], row.flip, eps);
    two_normals(words.x[2], words.x[3], row.flip, eps + 2);
}
