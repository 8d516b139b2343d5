// How a block makes 64 outputs by 256 inputs of a Linear layer's gradient, 16 rows at a time.
// First 16 threads together prepare a row, its noise and its spikes, in shared memory; then each
// thread adds its products to 8 by 8 sums in registers. The blocks that share a tile, each with
// a part of the rows, leave their sums side by side, and these are added up elsewhere.
#pragma once
#include "philox.cuh"

enum { OUTPUTS = 64, INPUTS = 256, ROWS = 16, SUMS = 8, OWN = INPUTS / 4 / ROWS };

struct alignas(16) Floats {
    float x[4];
};
struct alignas(16) Words {
    u32 x[4];
};

struct Tile {
    int outputs, inputs;  // of the layer
    int output, input;    // the first of the tile
    int lane, quad;       // which of the 16 rows a thread prepares, and which of its quads
    int o, i;             // it adds up quads o and o + 8 of outputs, i and i + 4 of inputs
};

NIT_FN Tile find_tile(int outputs, int inputs) {
    int across = inputs > INPUTS ? (inputs + INPUTS - 1) / INPUTS : 1, thread = (int)threadIdx.x;
    Tile tile;
    tile.outputs = outputs;
    tile.inputs = inputs;
    tile.output = (int)blockIdx.x / across * OUTPUTS;
    tile.input = (int)blockIdx.x % across * INPUTS;
    tile.lane = thread / ROWS;
    tile.quad = thread % ROWS;
    tile.o = thread % 8;
    tile.i = thread / 32 * 8 + thread % 32 / 8;
    return tile;
}

// Whether the inputs of this thread's warp are all beyond the last.
NIT_FN bool is_idle(Tile tile) { return tile.input + (int)threadIdx.x / 32 * 32 >= tile.inputs; }

NIT_FN int output_of(Tile tile, int j) { return tile.output + 4 * (tile.o + j / 4 * 8) + j % 4; }
NIT_FN int input_of(Tile tile, int j) { return tile.input + 4 * (tile.i + j / 4 * 4) + j % 4; }

// The first of the four inputs that a thread prepares for the `own`th time.
NIT_FN int prepared_input(Tile tile, int own) {
    return tile.input + 4 * (tile.quad + own * ROWS);
}

// Up to four neighbouring bytes, whatever their address.
NIT_FN u32 load_bytes(const u8 *from, int count) {
    u32 found = 0;
    for (int j = 0; j < 4; ++j)
        if (j < count) found |= (u32)from[j] << 8 * j;
    return found;
}

NIT_FN void store_sums(Tile tile, float (*sums)[SUMS], float *part) {
    i64 width = (i64)tile.inputs + 1;
    for (int p = 0; p < SUMS; ++p)
        for (int q = 0; q < SUMS; ++q) {
            int output = output_of(tile, p), input = input_of(tile, q);
            if (output < tile.outputs && input < tile.inputs)
                part[output * width + input] = sums[p][q];
        }
}

// The bias, an input that is always 1: the last column. Each thread has found a share of it for
// the quad of outputs that it prepares; `room` is shared memory that nobody reads any more.
NIT_FN void store_bias(Tile tile, Floats share, Floats (*room)[OUTPUTS / 4], float *part) {
    room[tile.lane][tile.quad] = share;
    NIT_SYNC;
    int j = (int)threadIdx.x, output = tile.output + j;
    if (tile.input || j >= OUTPUTS || output >= tile.outputs) return;
    float sum = 0.0f;
    for (int lane = 0; lane < ROWS; ++lane) sum += room[lane][j / 4].x[j % 4];
    part[output * ((i64)tile.inputs + 1) + tile.inputs] = sum;
}
