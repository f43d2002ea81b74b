// Work shared among threads, and memory for it.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>

#include "vectors.h"

// The OpenMP library torch has loaded runs the threads. It is called by its own entry point: a pragma would compile to another library's
// with another compiler, and two libraries would keep two sets of threads.
extern "C" void GOMP_parallel(void (*run)(void*), void* data, unsigned threads, unsigned flags);

namespace {

// A buffer of this thread's, kept from call to call; of two at once, each has its number.
template <class T, int number = 0>
T* scratch(int64_t count) {
    struct Free {
        void operator()(void* memory) const { std::free(memory); }
    };
    static thread_local std::unique_ptr<T, Free> memory;
    static thread_local int64_t size = 0;
    if (size < count) {
        size = ceil_div(count, 64) * 64;
        memory.reset(static_cast<T*>(std::aligned_alloc(64, size * sizeof(T))));
    }
    return memory.get();
}

// Each thread works through its own share of the items, neighbours in memory, and then helps the others.
template <class Work>
void parallel(int64_t threads, int64_t items, const Work& work) {
    constexpr int64_t MOST = 256;
    threads = std::min(threads, MOST);
    std::atomic<int64_t> started{0}, next[MOST];
    for (int64_t share = 0; share < threads; ++share) next[share] = share * items / threads;
    auto run = [&] {
        const int64_t self = started++;
        for (int64_t other = 0; other < threads; ++other) {
            const int64_t share = (self + other) % threads, end = (share + 1) * items / threads;
            for (int64_t item; (item = next[share]++) < end;) work(item);
        }
    };
    if (threads == 1 || items == 1) return run();
    // Always as many threads as torch uses: another number would end some of its threads and start them again.
    GOMP_parallel([](void* data) { (*static_cast<decltype(run)*>(data))(); }, &run, threads, 0);
}

}  // namespace
