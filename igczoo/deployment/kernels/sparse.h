// IGCV2's unit: for a band of rows, the channel-wise convolution goes into a buffer that stays in the cache, the products of groups from
// buffer to buffer and the last of them to the output with bias, shortcut and ReLU. A product finds its numbers where the one before has
// left them: the interleaves are a matter of places. A map too large for the cache is not made: the next unit takes it by bands.
#pragma once
#include <algorithm>
#include <vector>

#include "chain.h"
#include "filter.h"
#include "panel.h"
#include "threads.h"

namespace {

// As sparse.py and chain.py have it: g groups of K channels, O output channels, `depth` products before the last.
struct Sparse {
    const Number* depthwise;                                        // (k, k, C)
    const Number* between;                                          // (depth, g, K, K)
    const Number *last, *bias;                                      // (g, K, O / g), (O)
    int64_t out_channels, groups, channels, depth, residual;
    Geometry map;

    int64_t in_channels() const { return groups * channels; }
    int64_t in_image() const { return map.height * map.width * in_channels(); }
    int64_t out_image() const { return map.out_height() * map.out_width() * out_channels; }
};

// Into how many bands of rows the output of each image is split. The buffers take half the smallest L2 cache, or as much as the weights,
// which every band reads anew.
int64_t bands_of(const Sparse& u, int64_t images, int64_t threads) {
    const int64_t C = u.in_channels(), height = u.map.out_height(), row = 2 * u.map.out_width() * C;
    const int64_t cache = std::max<int64_t>(1 << 16, u.channels * (u.depth * C + u.out_channels));
    const int64_t bands = ceil_div(height, std::clamp<int64_t>(cache / std::max<int64_t>(row, 1), 1, height));
    return std::min(height, ceil_div(ceil_div(images * bands, threads) * threads, images));     // as many for each thread
}

// `columns` of each row, from one memory to another, with zeros behind them up to whole vectors.
inline void copy_block(const Number* from, int64_t step, int64_t rows, int64_t columns, int64_t whole, Number* to) {
    for (int64_t row = 0; row < rows; ++row, from += step, to += whole)
        for (int64_t c = 0; c < whole; c += LANES)
            store<LANES>(to + c, load_some<LANES>(from + c, std::min<int64_t>(columns - c, LANES)));
}

// Output rows [begin, end); x and out are an image's.
void run_band(const Sparse& u, const int32_t* places, int64_t begin, int64_t end, const Number* x, Number* out) {
    const int64_t C = u.in_channels(), K = u.channels, O = u.out_channels / u.groups, taps = u.map.kernel * u.map.kernel;
    const int64_t width = u.map.out_width(), pixels = (end - begin) * width, row = ceil_div(C, 16) * 16 + 16;
    const Rows rows = u.map.rows(begin, end);
    const int64_t in_pixels = (rows.end - rows.begin) * u.map.width;
    Number* maps[2] = {scratch<Number>(2 * pixels * row + (in_pixels + taps) * BLOCK + packed_block(K))};
    maps[1] = maps[0] + pixels * row;
    Number* copy = maps[1] + pixels * row;
    Number* filters = copy + packed_block(K);
    Number* before = filters + taps * BLOCK;
    // A block of channels at a time, from neighbouring memory: pixels that lie a power of two apart would drive each other from the cache.
    for (int64_t first = 0; first < C; first += BLOCK) {
        const int64_t block = std::min<int64_t>(C - first, BLOCK), whole = ceil_div(block, LANES) * LANES;
        copy_block(x + rows.begin * u.map.width * C + first, C, in_pixels, block, whole, before);
        copy_block(u.depthwise + first, C, taps, block, whole, filters);
        const Filter filter = {u.map, whole, before - rows.begin * u.map.width * whole, filters, nullptr, false};
        for (int64_t y = begin; y < end; ++y) filter_row(filter, y, maps[0] + (y - begin) * width * row + first, row);
    }
    const int64_t at = begin * width * u.out_channels;
    for (int64_t layer = 0; layer <= u.depth; ++layer)
        for (int64_t g = 0; g < u.groups; ++g) {
            const Number *from = maps[layer % 2], *weight = u.between + (layer * u.groups + g) * K * K;
            const int32_t* here = places + (layer > 0) * C + g * K;
            if (layer < u.depth) {
                Number* to = maps[(layer + 1) % 2];
                multiply_blocks<true, Number>({from, row, 0, 1, K, weight, K, nullptr, nullptr, 0, to + g * K, row, false}, here, pixels, K, copy);
                continue;
            }
            multiply_blocks<true, Number>({from, row, 0, 1, K, u.last + g * K * O, O, u.bias + g * O, u.residual ? x + at + g * O : nullptr,
                                           u.out_channels, out + at + g * O, u.out_channels, true},
                                          here, pixels, O, copy);
        }
}

// Where the groups of the first product, and of the others, find their channels: (2, g, K).
inline std::vector<int32_t> places_of(const Sparse& u) {
    const int64_t K = u.channels, C = u.in_channels();
    std::vector<int32_t> places(2 * C);
    for (int64_t channel = 0; channel < C; ++channel) {
        places[channel] = channel;
        places[C + channel] = channel % u.groups * K + channel / u.groups;      // of an interleaved channel
    }
    return places;
}

// A unit, and perhaps one before it whose map is large: of that, the rows that a band needs are made in a buffer, a few of them twice.
struct Joined {
    const Sparse *before, *unit;                                    // before may be null

    int64_t in_image() const { return (before ? before : unit)->in_image(); }
    int64_t out_image() const { return unit->out_image(); }
    bool keeps_shape() const { return in_image() == out_image(); }

    // Into how many bands of rows the output of each image is split.
    int64_t bands(int64_t images, int64_t threads) const {
        int64_t bands = bands_of(*unit, images, threads);
        const int64_t height = unit->map.out_height(), row = unit->map.width * unit->in_channels();
        constexpr int64_t ROOM = 1 << 17;                           // numbers: half of most L2 caches
        if (before)
            while (bands < height && unit->map.most_rows(ceil_div(height, bands)) * row > ROOM) ++bands;
        return bands;
    }

    // out = relu(last(... between(depthwise(x))) + bias + x?), of one unit after the other.
    void run(int64_t images, const Number* x, int64_t threads, Number* out) const {
        const int64_t bands = this->bands(images, threads), height = unit->map.out_height();
        const std::vector<int32_t> places = places_of(*unit), places_before = before ? places_of(*before) : std::vector<int32_t>{};
        parallel(threads, images * bands, [&](int64_t item) {
            const int64_t band = item % bands, image = item / bands, begin = band * height / bands, end = (band + 1) * height / bands;
            const Number* in = x + image * in_image();
            if (before) {
                const Rows rows = unit->map.rows(begin, end);
                const int64_t row = unit->map.width * unit->in_channels();
                Number* made = scratch<Number, 1>((rows.end - rows.begin) * row) - rows.begin * row;
                run_band(*before, places_before.data(), rows.begin, rows.end, in, made);
                in = made;
            }
            run_band(*unit, places.data(), begin, end, in, out + image * out_image());
        });
    }
};

// Each unit alone, or after one whose map would go to memory and come back.
inline std::vector<Joined> joined(const Sparse* units, int64_t num_units) {
    constexpr int64_t LARGE = 1 << 20;                              // numbers: more than a core's cache holds
    std::vector<Joined> all;
    for (const Sparse *u = units, *end = units + num_units; u < end; ++u) {
        const bool joins = u + 1 < end && u->out_image() >= LARGE;
        all.push_back({joins ? u : nullptr, u + joins});
        u += joins;
    }
    return all;
}

}  // namespace
