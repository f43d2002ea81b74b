// IGCV3's inverted units one after another: a band of rows at a time, the expansion goes into a buffer that stays in the cache, from there
// the channel-wise convolution into another, and from there the projection to the output with bias and shortcut.
//
// Each group of the projection takes an equal part of each group of the expansion. So what lies between input and output falls apart into
// as many independent parts as the projection has groups, and in a part's own order every product reads neighbours in memory.
#pragma once
#include <algorithm>
#include <vector>

#include "primary.h"
#include "product.h"
#include "threads.h"

namespace {

// As _Unit in inverted.py lays it out: g groups of the expansion, p parts of c channels from each group, C input and O output channels.
struct Inverted {
    const Number *expand, *expand_bias;                             // (p, g, C / g, c), (p, g, c)
    const Number *depthwise, *depthwise_bias;                       // (p, k, k, g, c), (p, g, c)
    const Number *project, *project_bias;                           // (p, g, c, O / p), (p, O / p)
    int64_t height, width, in_channels, out_channels, groups, parts, channels, kernel, stride, dilation, residual;

    int64_t out_height() const { return ceil_div(height, stride); }
    int64_t out_width() const { return ceil_div(width, stride); }
    int64_t in_image() const { return height * width * in_channels; }
    int64_t out_image() const { return out_height() * out_width() * out_channels; }
    int64_t part() const { return groups * channels; }

    // Rows of the input that output rows [begin, end) are made of.
    Taps rows(int64_t begin, int64_t end) const {
        const int64_t reach = dilation * (kernel / 2);
        return {std::max<int64_t>(begin * stride - reach, 0), std::min((end - 1) * stride + reach + 1, height)};
    }
};

// Into how many bands of rows the output of each image is split: as few rows are expanded twice as threads and cache allow.
int64_t bands_of(const Inverted& u, int64_t images, int64_t threads) {
    constexpr int64_t CACHE = 1 << 16;                              // floats: half the smallest L2 cache
    int64_t best = 1, least = INT64_MAX;
    for (int64_t bands = 1; bands <= u.out_height(); ++bands) {
        const int64_t out_rows = ceil_div(u.out_height(), bands);
        const int64_t rows = std::min(u.height, (out_rows - 1) * u.stride + u.dilation * (u.kernel - 1) + 1);
        const int64_t expanded = rows * u.width, filtered = out_rows * u.out_width();
        if ((expanded + filtered) * u.part() > CACHE && bands < u.out_height()) continue;
        const int64_t work = expanded * (u.in_channels / u.groups) + filtered * (u.kernel * u.kernel + u.out_channels / u.parts);
        const int64_t cost = ceil_div(bands * u.parts * images, threads) * work;
        if (cost < least) least = cost, best = bands;
    }
    return best;
}

// out = project(relu6(depthwise(expand(x)))) + x?
void run_inverted(const Inverted& u, int64_t images, const Number* x, int64_t threads, Number* out) {
    const int64_t bands = bands_of(u, images, threads), C = u.in_channels, O = u.out_channels / u.parts, inputs = C / u.groups;
    const int64_t part = u.part(), row = ceil_div(part, 16) * 16, out_rows = ceil_div(u.out_height(), bands), out_width = u.out_width();
    const int64_t in_rows = std::min(u.height, (out_rows - 1) * u.stride + u.dilation * (u.kernel - 1) + 1);
    parallel(threads, u.parts * images * bands, [&](int64_t item) {
        const int64_t band = item % bands, image = item / bands % images, p = item / bands / images;
        const int64_t begin = band * u.out_height() / bands, end = (band + 1) * u.out_height() / bands;
        const Taps rows = u.rows(begin, end);
        Number* expanded = scratch<Number>(in_rows * u.width * part + out_rows * out_width * row + packed(std::max(inputs, part)));
        Number* filtered = expanded + in_rows * u.width * part;
        Number* copy = filtered + out_rows * out_width * row;
        const Number* in = x + image * u.in_image();
        for (int64_t g = 0; g < u.groups; ++g) {
            const int64_t at = p * u.groups + g;
            multiply<Number>({in + rows.begin * u.width * C + g * inputs, C, 0, 1, inputs, u.expand + at * inputs * u.channels, u.channels,
                              u.expand_bias + at * u.channels, nullptr, 0, expanded + g * u.channels, part, false},
                             (rows.end - rows.begin) * u.width, u.channels, copy);
        }
        convolve({u.height, u.width, u.out_height(), out_width, 1, part, u.kernel, u.stride, u.dilation, expanded - rows.begin * u.width * part,
                  u.depthwise + p * u.kernel * u.kernel * part, u.depthwise_bias + p * part, true},
                 begin * out_width, end * out_width, 0, 1, {filtered, row, 0});
        const int64_t at = image * u.out_image() + begin * out_width * u.out_channels + p * O;
        multiply<Number>({filtered, row, 0, 1, part, u.project + p * part * O, O, u.project_bias + p * O, u.residual ? x + at : nullptr,
                          u.out_channels, out + at, u.out_channels, false},
                         (end - begin) * out_width, O, copy);
    });
}

// Units whose outputs are of one size: as many images go through them at a time as the cache keeps.
struct InvertedLevel {
    const Inverted *begin, *end;
    int64_t images;
    int64_t input, between[2];                                      // where what the level before gives, and the maps in between, lie
};

struct InvertedLevels {
    std::vector<InvertedLevel> levels;
    int64_t room = 0;                                               // numbers that all these maps take

    InvertedLevels(const Inverted* units, int64_t num_units, int64_t images, int64_t chunk_bytes) {
        const auto place = [&](int64_t numbers) {
            const int64_t at = room;
            room += ceil_div(numbers, 64) * 64;
            return at;
        };
        for (const Inverted* u = units; u < units + num_units; ++u) {
            if (u > units && u->residual) {
                levels.back().end = u + 1;
                continue;
            }
            const int64_t fitting = chunk_bytes / (u->out_image() * int64_t{sizeof(Number)});
            const int64_t count = std::min(images, std::max<int64_t>(1, fitting));
            const int64_t input = u > units ? place(count * u->in_image()) : 0;
            levels.push_back({u, u + 1, count, input, {place(count * u->out_image()), place(count * u->out_image())}});
        }
    }

    // Levels [0, last]: each takes some images as soon as the one before has made them.
    void run(int64_t last, int64_t images, const Number* x, Number* out, Number* maps, int64_t threads) const {
        const InvertedLevel& level = levels[last];
        for (int64_t begin = 0; begin < images; begin += level.images) {
            const int64_t count = std::min(level.images, images - begin);
            const Number* source = x + begin * levels[0].begin->in_image();
            if (last > 0) {
                run(last - 1, count, source, maps + level.input, maps, threads);
                source = maps + level.input;
            }
            for (const Inverted* u = level.begin; u < level.end; ++u) {
                const bool is_last = u + 1 == level.end;
                Number* target = is_last ? out + begin * u->out_image() : maps + level.between[(u - level.begin) % 2];
                run_inverted(*u, count, source, threads, target);
                source = target;
            }
        }
    }
};

}  // namespace
