// What all loops here share: numbers, parameters of the neurons, and several threads.
//
// Tensors are float32, contiguous, of shape (T, N, F): steps, rows, neurons of a row. The steps of
// a neuron depend on each other and on nothing else, so a loop goes through all steps of a block of
// neurons while these lie in the cache.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

typedef int64_t i64;

// How many neurons are in a block.
static const int BLOCK = 1024;

#define EXPORT extern "C" __attribute__((visibility("default")))

// Calls `work(begin, end)` for parts of [0, count); parts begin at multiples of `unit`.
template <class Work>
static void share_out(int threads, i64 count, i64 unit, const Work &work) {
    i64 units = (count + unit - 1) / unit;
    if (threads > units) threads = (int)units;
    std::vector<std::thread> others;
    for (int k = 1; k < threads; ++k)
        others.emplace_back(work, units * k / threads * unit,
                            k + 1 == threads ? count : units * (k + 1) / threads * unit);
    work(0, threads > 1 ? units / threads * unit : count);
    for (std::thread &other : others) other.join();
}

// Calls `work(place, neuron, length)` for blocks of [begin, end), `most` neurons at most.
// Parameters repeat after `period` neurons, a multiple of F, which no block goes beyond.
template <class Work>
static void in_blocks(i64 begin, i64 end, i64 period, int most, const Work &work) {
    for (i64 place = begin; place < end;) {
        i64 neuron = place % period, length = end - place;
        if (length > most) length = most;
        if (length > period - neuron) length = period - neuron;
        work(place, neuron, (int)length);
        place += length;
    }
}
