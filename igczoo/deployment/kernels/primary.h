// The primary convolution: channel-wise convolutions from planes to planes.
#pragma once
#include <algorithm>

#include "vectors.h"

namespace {

constexpr int RUN = REGISTERS == 32 ? 8 : 4;                        // pixels of a row that are done at once

struct Primary {
    int64_t height, width, out_height, out_width;
    int64_t in_planes, channels;                                    // m, L
    int64_t kernel, stride, dilation;
    const Number* in;                                               // (N, H, W, m, L)
    const Number* weight;                                           // (M, m, k, k, L)
    const Number* bias;                                             // (M, L), or null

    int64_t pixel() const { return in_planes * channels; }
    int64_t plane_weight() const { return pixel() * kernel * kernel; }
    int64_t padding() const { return dilation * (kernel / 2); }
};

struct Target {
    Number* out;                                                    // the first pixel of the first plane
    int64_t pixel, plane;                                           // numbers from one to the next
};

struct Taps {
    int64_t begin, end;                                             // those of a kernel's rows or columns that lie inside the map
};

inline Taps taps_inside(const Primary& p, int64_t position, int64_t size) {
    const int64_t first = position * p.stride - p.padding();
    return {first < 0 ? ceil_div(-first, p.dilation) : 0, std::min(p.kernel, (size - 1 - first) / p.dilation + 1)};
}

// N channels of `run` pixels in `planes` planes: a weight serves all these pixels, an input all these planes. With a `window`, a kernel
// three columns wide that moves by one, an input serves its neighbours as well. `columns` begin at the first pixel's first tap inside
// the map and end with the last pixel's last.
template <int N, int planes, int run, bool window>
__attribute__((always_inline)) inline void convolve_channels(
    const Primary& p, const Number* in, const Number* weight, const Number* bias, Target target, Taps rows, Taps columns) {
    const int64_t L = p.channels, pixel = p.pixel();
    Vector<N> sum[planes][run];
#pragma GCC unroll 2
    for (int j = 0; j < planes; ++j)
#pragma GCC unroll 8
        for (int r = 0; r < run; ++r) sum[j][r] = bias ? load<N>(bias + j * L) : Vector<N>{};
    int64_t i = 0;
    if constexpr (window && BY_PAIRS<N>)
        for (; i + 1 < p.in_planes; i += 2)
            for (int64_t ky = rows.begin; ky < rows.end; ++ky) {
                const Number* w = weight + (i * 3 + ky) * 3 * L;
                const Number* x = in + ky * p.width * pixel + i * L;
                Bits<N> taps[planes][3];
#pragma GCC unroll 2
                for (int j = 0; j < planes; ++j)
#pragma GCC unroll 3
                    for (int t = 0; t < 3; ++t) {
                        const Number* tap = w + j * p.plane_weight() + t * L;
                        taps[j][t] = pairs<N>(tap, tap + 9 * L);
                    }
#pragma GCC unroll 10
                for (int column = 0; column < run + 2; ++column, x += pixel) {
                    if ((column == 0 && columns.begin) || (column == run + 1 && columns.end < 3)) continue;
                    const Bits<N> values = pairs<N>(x, x + L);
#pragma GCC unroll 3
                    for (int t = 0; t < 3; ++t)
#pragma GCC unroll 2
                        for (int j = 0; j < planes; ++j)
                            if (column >= t && column - t < run) sum[j][column - t] = add_pairs<N>(values, taps[j][t], sum[j][column - t]);
                }
            }
    for (; i < p.in_planes; ++i)
        for (int64_t ky = rows.begin; ky < rows.end; ++ky) {
            const Number* w = weight + (i * p.kernel + ky) * p.kernel * L;
            const Number* x = in + ky * p.dilation * p.width * pixel + i * L;
            if constexpr (window) {
                Vector<N> taps[planes][3];
#pragma GCC unroll 2
                for (int j = 0; j < planes; ++j)
#pragma GCC unroll 3
                    for (int t = 0; t < 3; ++t) taps[j][t] = load<N>(w + j * p.plane_weight() + t * L);
#pragma GCC unroll 10
                for (int column = 0; column < run + 2; ++column, x += pixel) {
                    if ((column == 0 && columns.begin) || (column == run + 1 && columns.end < 3)) continue;
                    const Vector<N> value = load<N>(x);
#pragma GCC unroll 3
                    for (int t = 0; t < 3; ++t)
#pragma GCC unroll 2
                        for (int j = 0; j < planes; ++j)
                            if (column >= t && column - t < run) sum[j][column - t] += taps[j][t] * value;
                }
            } else {
                for (int64_t kx = columns.begin; kx < columns.end; ++kx) {
                    Vector<N> tap[planes];
#pragma GCC unroll 2
                    for (int j = 0; j < planes; ++j) tap[j] = load<N>(w + j * p.plane_weight() + kx * L);
#pragma GCC unroll 8
                    for (int r = 0; r < run; ++r) {
                        const Vector<N> value = load<N>(x + (kx * p.dilation + r * p.stride) * pixel);
#pragma GCC unroll 2
                        for (int j = 0; j < planes; ++j) sum[j][r] += tap[j] * value;
                    }
                }
            }
        }
#pragma GCC unroll 2
    for (int j = 0; j < planes; ++j)
#pragma GCC unroll 8
        for (int r = 0; r < run; ++r) store<N>(target.out + j * target.plane + r * target.pixel, sum[j][r]);
}

// On the way it fetches what the next run reads first of all: that run's lowest rows of the input, from the pixel `next` on.
template <int planes, int run, bool window>
__attribute__((noinline)) void convolve_run(
    const Primary& p, const Number* in, const Number* next, const Number* weight, const Number* bias, Target target, Taps rows,
    Taps columns) {
    int64_t c = 0;
    over_lanes([&](auto lanes) __attribute__((always_inline)) {
        for (; c + lanes <= p.channels; c += lanes) {
            for (int64_t y = 0; y < std::min(p.stride, p.kernel); ++y)
                for (int64_t x = 0; x < run * p.stride; ++x)
                    for (int64_t i = 0; i < p.in_planes; ++i)
                        __builtin_prefetch(next + (x - y * p.width) * p.pixel() + i * p.channels + c);
            convolve_channels<lanes, planes, run, window>(
                p, in + c, weight + c, bias ? bias + c : nullptr, Target{target.out + c, target.pixel, target.plane}, rows, columns);
        }
    });
}

// Output pixels [begin, end), counted through all images, of output planes [plane, plane + planes).
void convolve(const Primary& p, int64_t begin, int64_t end, int64_t plane, int64_t planes, Target target) {
    const int64_t pixel = p.pixel(), padding = p.padding();
    const bool window = p.kernel == 3 && p.stride == 1 && p.dilation == 1;
    // The pixels of a run have the same taps: all of them in columns [inner, outer); with a window, the ends of a row may lack one.
    const int64_t inner = window ? 0 : ceil_div(padding, p.stride);
    const int64_t outer = window ? p.out_width : p.width > padding ? (p.width - 1 - padding) / p.stride + 1 : 0;
    for (int64_t at = begin; at < end;) {
        const int64_t y = at / p.out_width % p.out_height, image = at / p.out_width / p.out_height;
        const Taps rows = taps_inside(p, y, p.height);
        const Number* in_row = p.in + ((image * p.height + y * p.stride - padding) * p.width - padding) * pixel;
        for (int64_t x = at % p.out_width, x_end = std::min(p.out_width, x + end - at), run; x < x_end; x += run, at += run) {
            const int64_t length = inner <= x && x < outer ? std::min(x_end, outer) - x : 1;
            run = ceil_div(length, ceil_div(length, RUN));
            const Taps columns = {taps_inside(p, x, p.width).begin, taps_inside(p, x + run - 1, p.width).end};
            const Number* in = in_row + x * p.stride * pixel;
            const Number* next = in + ((rows.end - 1) * p.dilation * p.width + (run - 1) * p.stride + p.kernel * p.dilation) * pixel;
            for (int64_t j = 0, pair; j < planes; j += pair) {
                pair = std::min<int64_t>(2, planes - j);
                const Number* weight = p.weight + (plane + j) * p.plane_weight();
                const Number* bias = p.bias ? p.bias + (plane + j) * p.channels : nullptr;
                const Target here = {target.out + j * target.plane + (at - begin) * target.pixel, target.pixel, target.plane};
                with_constant<2>(pair, [&](auto pair) {
                    with_constant<RUN>(run, [&](auto run) {
                        const auto convolve_here = window ? convolve_run<pair, run, true> : convolve_run<pair, run, false>;
                        convolve_here(p, in, next, weight, bias, here, rows, columns);
                    });
                });
            }
        }
    }
}

}  // namespace
