// Batch normalisation, residual and activation in training, and their gradients, each in one pass over the maps. A map is rows (pixels) of
// channels; what there is of each channel is Real.
#pragma once
#include <algorithm>

#include "threads.h"

namespace {

constexpr int64_t PARTS = 16;                                       // of the rows of a sum, whatever the number of threads

// An activation that bounds its input: ReLU is {0, infinity}.
struct Bounds {
    Real low, high;

    template <class V>
    V bound(V v) const { return v <= low ? V{} + low : v >= high ? V{} + high : v; }
    template <class V>
    V gradient(V grad, V v) const { return v <= low || v >= high ? V{} : grad; }
};

// Calls run(lanes, c) for all channels, by vectors.
template <class Run>
__attribute__((always_inline)) inline void over_channels(int64_t channels, const Run& run) {
    int64_t c = 0;
    over_lanes([&](auto lanes) __attribute__((always_inline)) {
        for (; c + lanes <= channels; c += lanes) run(lanes, c);
    });
}

// Calls run(lanes, at, c) for all numbers of all rows, at counting through the rows.
template <class Run>
void over_rows(int64_t rows, int64_t channels, int64_t threads, const Run& run) {
    const int64_t tile = std::max<int64_t>(1, 16384 / channels);
    parallel(threads, ceil_div(rows, tile), [&](int64_t item) {
        for (int64_t row = item * tile; row < std::min(rows, (item + 1) * tile); ++row)
            over_channels(channels, [&](auto lanes, int64_t c) __attribute__((always_inline)) { run(lanes, row * channels + c, c); });
    });
}

// Adds to `sums` vectors of each channel, sum (sums, C), what add(lanes, at, c, sum) adds for all numbers of rows [row, end).
template <int sums, class Add>
__attribute__((always_inline)) inline void add_rows(int64_t row, int64_t end, int64_t channels, Real* sum, const Add& add) {
    for (int64_t count; row < end; row += count) {
        count = std::min<int64_t>(4, end - row);
        with_constant<4>(count, [&](auto rows) {
            over_channels(channels, [&](auto lanes, int64_t c) __attribute__((always_inline)) {
                Vector<lanes> here[sums];
                for (int i = 0; i < sums; ++i) here[i] = load<lanes>(sum + i * channels + c);
                for (int r = 0; r < rows; ++r) add(lanes, (row + r) * channels + c, c, here);
                for (int i = 0; i < sums; ++i) store<lanes>(sum + i * channels + c, here[i]);
            });
        });
    }
}

// Adds to totals (sums, C) what add adds for all rows.
template <int sums, class Add>
void sum_rows(int64_t rows, int64_t channels, int64_t threads, double* totals, const Add& add) {
    const int64_t parts = std::min(PARTS, rows), tile = std::max<int64_t>(4, 16384 / channels), size = sums * channels;
    double* room = scratch<double>(parts * 2 * size);
    parallel(threads, parts, [&](int64_t part) {
        double* total = room + part * 2 * size;
        Real* sum = reinterpret_cast<Real*>(total + size);
        std::fill_n(total, size, 0.);
        for (int64_t row = part * rows / parts, end = (part + 1) * rows / parts; row < end; row += tile) {
            std::fill_n(sum, size, Real{});
            add_rows<sums>(row, std::min(end, row + tile), channels, sum, add);
            for (int64_t i = 0; i < size; ++i) total[i] += sum[i];
        }
    });
    for (int64_t part = 0; part < parts; ++part)
        for (int64_t i = 0; i < size; ++i) totals[i] += room[part * 2 * size + i];
}

// Joins to the mean and the sum of squared deviations of `count` numbers those of another `more` numbers (Chan, Golub, LeVeque, 1979).
inline void join(double& mean, double& squares, int64_t count, double other_mean, double other_squares, int64_t more) {
    const double difference = other_mean - mean, share = double(more) / (count + more);
    mean += difference * share;
    squares += other_squares + difference * difference * count * share;
}

// Joins to moments (2, C), of `count` rows, those of the map's rows.
void join_moments(const Number* in, int64_t rows, int64_t channels, int64_t threads, int64_t count, double* moments) {
    const int64_t parts = std::min(PARTS, rows), tile = std::max<int64_t>(4, 16384 / channels);
    double* room = scratch<double>(parts * 4 * channels);
    const auto begin = [&](int64_t part) { return part * rows / parts; };
    parallel(threads, parts, [&](int64_t part) {
        double* own = room + part * 4 * channels;
        Real* mean = reinterpret_cast<Real*>(own + 2 * channels);
        Real* squares = mean + channels;
        std::fill_n(own, 2 * channels, 0.);
        for (int64_t row = begin(part), next; row < begin(part + 1); row = next) {
            next = std::min(begin(part + 1), row + tile);
            std::fill_n(mean, 2 * channels, Real{});
            add_rows<1>(row, next, channels, mean, [&](auto lanes, int64_t at, int64_t, auto sum) __attribute__((always_inline)) {
                sum[0] += load<lanes>(in + at);
            });
            for (int64_t c = 0; c < channels; ++c) mean[c] /= Real(next - row);
            add_rows<1>(row, next, channels, squares, [&](auto lanes, int64_t at, int64_t c, auto sum) __attribute__((always_inline)) {
                const auto deviation = load<lanes>(in + at) - load<lanes>(mean + c);
                sum[0] += deviation * deviation;
            });
            for (int64_t c = 0; c < channels; ++c)
                join(own[c], own[channels + c], row - begin(part), mean[c], squares[c], next - row);
        }
    });
    for (int64_t part = 0; part < parts; ++part)
        for (int64_t c = 0; c < channels; ++c) {
            const double* own = room + part * 4 * channels;
            join(moments[c], moments[channels + c], count + begin(part), own[c], own[channels + c], begin(part + 1) - begin(part));
        }
}

}  // namespace
