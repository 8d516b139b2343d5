// What all loops here share: numbers, parameters of the neurons, and several threads.
//
// Tensors are float32, contiguous, of shape (T, N, F): steps, rows, neurons of a row. The steps of
// a neuron depend on each other and on nothing else, so a loop goes through all steps of a block of
// neurons while these lie in the cache.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <thread>
#include <vector>

typedef int64_t i64;

// How many neurons are in a block.
static const int BLOCK = 1024;

#define EXPORT extern "C" __attribute__((visibility("default")))

// Calls `work(begin, end)` for parts of [0, count); parts begin at multiples of `unit`. A part that
// gets no thread of its own is done by the caller's.
template <class Work>
static void share_out(int threads, i64 count, i64 unit, const Work &work) {
    const i64 units = (count + unit - 1) / unit;
    if (threads > units) threads = units > 1 ? (int)units : 1;
    const auto begin = [=](int k) { return k < threads ? units * k / threads * unit : count; };
    std::vector<std::thread> others;
    int own = 1;  // parts [1, own) have a thread
    try {
        others.reserve(threads);
        for (; own < threads; ++own) others.emplace_back(work, begin(own), begin(own + 1));
    } catch (const std::exception &) {
    }
    work(0, begin(1));
    for (int k = own; k < threads; ++k) work(begin(k), begin(k + 1));
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
