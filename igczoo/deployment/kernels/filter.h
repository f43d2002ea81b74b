// Channel-wise convolutions of a map, by rows of their output.
#pragma once
#include <algorithm>

#include "vectors.h"

namespace {

struct Rows {
    int64_t begin, end;
};

struct Geometry {
    int64_t height, width, kernel, stride, dilation;

    int64_t out_height() const { return ceil_div(height, stride); }
    int64_t out_width() const { return ceil_div(width, stride); }
    int64_t reach() const { return dilation * (kernel / 2); }       // rows and columns padded on each side

    // Rows of the input that output rows [begin, end) are made of, and how many so many rows need at most.
    Rows rows(int64_t begin, int64_t end) const {
        return {std::max<int64_t>(begin * stride - reach(), 0), std::min((end - 1) * stride + reach() + 1, height)};
    }
    int64_t most_rows(int64_t rows) const { return std::min((rows - 1) * stride + 2 * reach() + 1, height); }
};

template <class V>
inline V relu6(V v) {
    v = relu(v);
    return v > 6.0f ? V{} + 6.0f : v;
}

struct Filter : Geometry {
    int64_t channels;                                               // in whole vectors
    const Number* in;                                               // (height, width, channels), of which unread rows may lack
    const Number *taps, *bias;                                      // (k, k, channels), (channels) or null
    bool relu6;
};

template <int count>
__attribute__((always_inline)) inline void store_filtered(
    const Filter& f, const Vector<LANES> (&sum)[count], Number* out, int64_t pixel) {
#pragma GCC unroll 8
    for (int r = 0; r < count; ++r) store<LANES>(out + r * pixel, f.relu6 ? relu6(sum[r]) : sum[r]);
}

// `run` pixels of a row, by a kernel three columns wide, of which the first pixel's first and the last one's last may lie outside the map.
template <int run, int stride>
__attribute__((noinline)) void filter_run(
    const Filter& f, const Number* in, const Number* taps, int64_t rows, bool first, bool last, Number* out, int64_t pixel) {
    constexpr int COLUMNS = (run - 1) * stride + 3;
    for (int64_t c = 0; c < f.channels; c += LANES) {
        Vector<LANES> sum[run];
#pragma GCC unroll 8
        for (int r = 0; r < run; ++r) sum[r] = f.bias ? load<LANES>(f.bias + c) : Vector<LANES>{};
        const Number *x = in + c, *w = taps + c;
        for (int64_t row = 0; row < rows; ++row, x += f.width * f.channels, w += 3 * f.channels) {
            Vector<LANES> tap[3];
#pragma GCC unroll 3
            for (int t = 0; t < 3; ++t) tap[t] = load<LANES>(w + t * f.channels);
#pragma GCC unroll 17
            for (int column = 0; column < COLUMNS; ++column) {
                if ((column == 0 && !first) || (column == COLUMNS - 1 && !last)) continue;
                const Vector<LANES> value = load<LANES>(x + column * f.channels);
#pragma GCC unroll 3
                for (int t = 0; t < 3; ++t)
                    if (column >= t && (column - t) % stride == 0 && (column - t) / stride < run)
                        sum[(column - t) / stride] += tap[t] * value;
            }
        }
        store_filtered(f, sum, out + c, pixel);
    }
}

// A pixel, by any kernel.
inline void filter_pixel(const Filter& f, int64_t y, int64_t x, Number* out) {
    for (int64_t c = 0; c < f.channels; c += LANES) {
        Vector<LANES> sum[1] = {f.bias ? load<LANES>(f.bias + c) : Vector<LANES>{}};
        for (int64_t tap = 0; tap < f.kernel * f.kernel; ++tap) {
            const int64_t row = y * f.stride - f.reach() + tap / f.kernel * f.dilation;
            const int64_t column = x * f.stride - f.reach() + tap % f.kernel * f.dilation;
            if (row < 0 || row >= f.height || column < 0 || column >= f.width) continue;
            sum[0] += load<LANES>(f.taps + tap * f.channels + c) * load<LANES>(f.in + (row * f.width + column) * f.channels + c);
        }
        store_filtered(f, sum, out + c, 0);
    }
}

// A row of the output, by a kernel three columns wide: runs of `most` pixels and fewer.
template <int most, int stride>
void filter_runs(const Filter& f, int64_t y, Number* out, int64_t pixel) {
    const Rows rows = f.rows(y, y + 1);
    const Number* taps = f.taps + (rows.begin - y * stride + 1) * 3 * f.channels;
    for (int64_t x = 0, width = f.out_width(), run; x < width; x += run) {
        run = ceil_div(width - x, ceil_div(width - x, most));
        const int64_t left = x * stride - 1, right = (x + run - 1) * stride + 1;
        const Number* in = f.in + (rows.begin * f.width + left) * f.channels;
        with_constant<most>(run, [&](auto run) {
            filter_run<run, stride>(f, in, taps, rows.end - rows.begin, left >= 0, right < f.width, out + x * pixel, pixel);
        });
    }
}

// A row of the output, whose pixels lie `pixel` numbers apart.
inline void filter_row(const Filter& f, int64_t y, Number* out, int64_t pixel) {
    if (f.kernel == 3 && f.dilation == 1 && f.stride == 1) return filter_runs<8, 1>(f, y, out, pixel);
    if (f.kernel == 3 && f.dilation == 1 && f.stride == 2) return filter_runs<4, 2>(f, y, out, pixel);
    for (int64_t x = 0; x < f.out_width(); ++x) filter_pixel(f, y, x, out + x * pixel);
}

}  // namespace
