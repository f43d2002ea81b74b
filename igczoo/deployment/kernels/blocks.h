// Residual blocks one after another: as many images at a time go through blocks of one shape as the cache keeps until they are read again.
#pragma once
#include <algorithm>
#include <vector>

#include "threads.h"
#include "unit.h"

namespace {

// relu(unit2(relu(unit1(x))) + shortcut(x)), as _Block in __init__.py lays it out.
struct Block {
    const Number *primary1, *secondary1, *bias1, *primary2, *secondary2, *bias2;
    const Number *projection, *projection_bias;                     // null where the shortcut is x itself
    int64_t height, width, in_planes, planes, channels;             // height and width of x
    int64_t kernel1, kernel2, stride, dilation1, dilation2;         // unit2 has no stride

    int64_t out_height() const { return ceil_div(height, stride); }
    int64_t out_width() const { return ceil_div(width, stride); }
    int64_t in_image() const { return height * width * in_planes * channels; }
    int64_t out_image() const { return out_height() * out_width() * planes * channels; }
};

// out may be x where the shortcut is x itself.
void run_block(const Block& b, int64_t images, const Number* x, Number* between, Number* out, int64_t threads) {
    const int64_t height = b.out_height(), width = b.out_width(), L = b.channels;
    unit({b.height, b.width, height, width, b.in_planes, L, b.kernel1, b.stride, b.dilation1, x, b.primary1, nullptr}, {},
         b.secondary1, b.bias1, images, b.planes, true, threads, between);
    unit({height, width, height, width, b.planes, L, b.kernel2, 1, b.dilation2, between, b.primary2, nullptr},
         {b.height, b.width, height, width, b.in_planes, L, 1, b.stride, 1, x, b.projection, b.projection_bias},
         b.secondary2, b.bias2, images, b.planes, true, threads, out);
}

// A block and those after it whose shortcut is their input: all their maps are of one shape.
struct Level {
    const Block *begin, *end;
    int64_t images;                                                 // that go through it at a time
    int64_t input, between;                                         // where what the level before gives and the map between two units lie
};

struct Levels {
    std::vector<Level> levels;
    int64_t room = 0;                                               // numbers that all these maps take

    Levels(const Block* blocks, int64_t num_blocks, int64_t images, int64_t chunk_bytes) {
        const auto place = [&](int64_t numbers) {
            const int64_t at = room;
            room += ceil_div(numbers, 64) * 64;
            return at;
        };
        for (const Block* b = blocks; b < blocks + num_blocks; ++b) {
            if (b > blocks && !b->projection) {
                levels.back().end = b + 1;
                continue;
            }
            const int64_t fitting = chunk_bytes / (b->out_image() * int64_t{sizeof(Number)});
            const int64_t count = std::min(images, std::max<int64_t>(1, fitting));
            const int64_t input = b > blocks ? place(count * b->in_image()) : 0;
            levels.push_back({b, b + 1, count, input, place(count * b->out_image())});
        }
    }

    // Levels [0, last]: each takes some images as soon as the one before has made them.
    void run(int64_t last, int64_t images, const Number* x, Number* out, Number* maps, int64_t threads) const {
        const Level& level = levels[last];
        for (int64_t begin = 0; begin < images; begin += level.images) {
            const int64_t count = std::min(level.images, images - begin);
            const Number* source = x + begin * levels[0].begin->in_image();
            Number* target = out + begin * level.begin->out_image();
            if (last > 0) {
                run(last - 1, count, source, maps + level.input, maps, threads);
                source = maps + level.input;
            }
            for (const Block* b = level.begin; b < level.end; ++b, source = target)
                run_block(*b, count, source, maps + level.between, target, threads);
        }
    }
};

}  // namespace
