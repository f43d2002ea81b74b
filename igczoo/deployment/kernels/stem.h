// The stem: a convolution, ReLU and max-pool, all in float32; of bfloat16 the convolution is by tiles where there are any.
//
// By vectors it goes by Winograd's way down the columns, STEP rows of its map at a time (Lavin and Gray, CVPR 2016). Four of the kernel's
// rows meet even rows of the image and three meet odd ones, each moving by one. Such a convolution is the transposed product of two
// polynomials, and has as many terms as they have values at enough points. The odd rows' points are among the even ones', so that their
// terms are summed before the map's rows are made of them: 13 multiplications for 28.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "amx.h"
#include "product.h"
#include "threads.h"

namespace {

constexpr int64_t STEM_KERNEL = 7, STEM_STRIDE = 2, STEM_PADDING = 3, POOL_KERNEL = 3, POOL_STRIDE = 2, POOL_PADDING = 1;
constexpr int STEP = 4;
constexpr int64_t COVERED = (STEP - 1) * STEM_STRIDE + STEM_KERNEL; // rows of the image that STEP rows of the map are made of
constexpr int64_t PIXELS = 48;                                      // of a row of the map at a time

// Values -----------------------------------------------------------------------------------------------------------------------------

constexpr float POINTS[] = {0, 1, -1, .5f, -2, -.5f};               // after infinity, which comes first; chosen for small rounding errors

// What to multiply rows by for their values.
template <int taps>
struct Values {
    static constexpr int COUNT = STEP + taps - 1;
    float of_image[COUNT][COUNT] = {}, of_kernel[COUNT][taps] = {};

    constexpr Values() {
        for (int value = 0; value < COUNT; ++value) {
            // Lagrange's polynomial: the product of (t - point) over all points but this one, divided by what it is here.
            float here = 1, power = 1;
            of_image[value][0] = 1;
            for (int point = 0; point < COUNT - 1; ++point) {
                if (point == value - 1) continue;
                for (int row = COUNT - 1; row >= 0; --row)
                    of_image[value][row] = (row > 0 ? of_image[value][row - 1] : 0) - POINTS[point] * of_image[value][row];
                if (value > 0) here *= POINTS[value - 1] - POINTS[point];
            }
            for (int tap = 0; tap < taps; ++tap, power *= value > 0 ? POINTS[value - 1] : 1)
                of_kernel[value][tap] = value > 0 ? power / here : tap == taps - 1;
        }
    }
};
constexpr Values<4> EVEN;
constexpr Values<3> ODD;

// to[value] = the sum over rows of by[value][row] * from[row], of `length` numbers, whole vectors.
template <int values, int rows>
void evaluate(const float (&by)[values][rows], const float* from, float* to, int64_t step, int64_t length) {
    for (int64_t x = 0; x < length; x += LANES) {
        Vector<LANES> numbers[rows];
        for (int row = 0; row < rows; ++row) numbers[row] = load<LANES>(from + row * step + x);
        for (int value = 0; value < values; ++value) {
            Vector<LANES> sum = {};
            for (int row = 0; row < rows; ++row) sum += by[value][row] * numbers[row];
            store<LANES>(to + value * step + x, sum);
        }
    }
}

// (rows, length) -> (EVEN.COUNT, 2, length): the values of even rows, and of odd ones, which have none for the last point.
void evaluate_image(const float* from, float* to, int64_t length) {
    evaluate(EVEN.of_image, from, to, 2 * length, length);
    evaluate(ODD.of_image, from + length, to + length, 2 * length, length);
}

void evaluate_kernel(const float* from, float* to, int64_t length) {
    evaluate(EVEN.of_kernel, from, to, 2 * length, length);
    evaluate(ODD.of_kernel, from + length, to + length, 2 * length, length);
}

// Whether all numbers are so small that the rounding of none shows in outputs that do not see it: a tile's are made of all its values.
bool are_moderate(const float* from, int64_t count) {
    constexpr uint32_t MOST = 0x44800000;                           // 2^10
    Bits<LANES> largest = {};
    for (int64_t x = 0; x < count; x += LANES) {
        const Bits<LANES> bits = (Bits<LANES>)load<LANES>(from + x) & 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    for (int lane = 0; lane < LANES; ++lane)
        if (largest[lane] > MOST) return false;
    return true;
}

// Convolution ------------------------------------------------------------------------------------------------------------------------

struct Stem {
    int64_t in_channels, channels, padded;                          // padded: to whole vectors
    std::vector<float> bias;                                        // (padded)
    std::vector<float> weight;                                      // (7, 7, in_channels, padded)
    std::vector<float> values;                                      // (EVEN.COUNT, 2, 7, in_channels, padded)
    const bfloat16* tiles;                                          // the weight, its pieces a row of the image, or null

    int64_t piece() const { return STEM_KERNEL * in_channels; }     // numbers of an image's row under the kernel

    Stem(const Number* numbers, const Number* biases, int64_t in_channels, int64_t channels, int64_t threads)
        : in_channels(in_channels), channels(channels), padded(ceil_div(channels, LANES) * LANES), bias(padded),
          weight(STEM_KERNEL * piece() * padded), values(EVEN.COUNT * 2 * piece() * padded),
          tiles(in_tiles(numbers, 1, STEM_KERNEL, piece(), channels, threads)) {
        for (int64_t c = 0; c < channels; ++c) {
            bias[c] = load<1>(biases + c)[0];
            for (int64_t k = 0; k < STEM_KERNEL * piece(); ++k) weight[k * padded + c] = load<1>(numbers + k * channels + c)[0];
        }
        evaluate_kernel(weight.data(), values.data(), piece() * padded);
    }
};

// STEP rows of the map from the sums of their terms (EVEN.COUNT, PIXELS, padded), with bias and ReLU.
void rows_from_terms(const Stem& stem, const float* terms, int64_t pixels, float* out, int64_t out_row) {
    for (int64_t x = 0; x < pixels * stem.padded; x += stem.padded)
        for (int64_t c = 0; c < stem.padded; c += LANES) {
            Vector<LANES> sum[STEP];
#pragma GCC unroll 4
            for (int y = 0; y < STEP; ++y) sum[y] = load<LANES>(stem.bias.data() + c);
            sum[STEP - 1] += load<LANES>(terms + x + c);
#pragma GCC unroll 8
            for (int value = 1; value < EVEN.COUNT; ++value) {
                const Vector<LANES> term = load<LANES>(terms + value * PIXELS * stem.padded + x + c);
                float power = 1;
#pragma GCC unroll 4
                for (int y = 0; y < STEP; ++y, power *= POINTS[value - 1]) sum[y] += power * term;
            }
#pragma GCC unroll 4
            for (int y = 0; y < STEP; ++y) store<LANES>(out + y * out_row + x + c, relu(sum[y]));
        }
}

// STEP rows of the map (STEP, width, padded) from COVERED rows of the image; `room` is for their values and terms.
void convolve_rows(const Stem& stem, const float* image, int64_t image_row, int64_t width, float* room, float* out) {
    const int64_t out_row = width * stem.padded, pixel = STEM_STRIDE * stem.in_channels;
    Product<float> product = {image, pixel, image_row, STEM_KERNEL, stem.piece(), stem.weight.data(), stem.padded, stem.bias.data(),
                              nullptr, 0, out, stem.padded, true};
    if (!are_moderate(image, COVERED * image_row)) {                // row by row: infinity and NaN reach no further than the kernel
        for (int y = 0; y < STEP; ++y, product.rows += STEM_STRIDE * image_row, product.out += out_row)
            multiply(product, width, stem.padded);
        return;
    }
    if (stem.tiles) {                                               // row by row, of the image in bfloat16 again
        bfloat16* numbers = reinterpret_cast<bfloat16*>(room);      // for over twice as many rows: no tile reads beyond those
        for (int64_t x = 0; x < COVERED * image_row; x += LANES) store<LANES>(numbers + x, load<LANES>(image + x));
        std::fill_n(numbers + COVERED * image_row, TILE_NUMBERS, bfloat16{});
        for (int y = 0; y < STEP; ++y, numbers += STEM_STRIDE * image_row, product.out += out_row)
            multiply_by_tiles(product, numbers, stem.tiles, width, stem.padded);
        return;
    }
    float* values = room;
    float* terms = room + EVEN.COUNT * 2 * image_row;
    evaluate_image(image, values, image_row);
    product.bias = nullptr;
    product.relu = false;
    for (int64_t x = 0, pixels; x < width; x += pixels) {
        pixels = std::min(PIXELS, width - x);
        for (int value = 0; value < EVEN.COUNT; ++value) {
            product.rows = values + value * 2 * image_row + x * pixel;
            product.pieces = value < ODD.COUNT ? 2 : 1;
            product.weight = stem.values.data() + value * 2 * stem.piece() * stem.padded;
            product.out = terms + value * PIXELS * stem.padded;
            multiply(product, pixels, stem.padded);
        }
        rows_from_terms(stem, terms, pixels, out + x * stem.padded, out_row);
    }
}

// Bands of the output ----------------------------------------------------------------------------------------------------------------

struct Image {
    int64_t height, width, channels;
    const Number* in;
    int64_t row, column, channel;                                   // numbers from one to the next
};

// `rows` rows of an image from `begin` on and columns from -padding on, as (rows, columns, channels) with zeros outside the image.
void copy_padded(const Image& image, int64_t begin, int64_t rows, int64_t row, float* out) {
    std::memset(out, 0, rows * row * sizeof(float));
    for (int64_t y = std::max<int64_t>(begin, 0); y < std::min(begin + rows, image.height); ++y)
        for (int64_t c = 0; c < image.channels; ++c) {
            const Number* from = image.in + y * image.row + c * image.channel;
            float* to = out + (y - begin) * row + STEM_PADDING * image.channels + c;
            const int64_t width = std::min(image.width, row / image.channels - STEM_PADDING);
            for (int64_t x = 0; x < width; ++x) to[x * image.channels] = load<1>(from + x * image.column)[0];
        }
}

// One row of the max-pool, from the map's rows it covers. After the ReLU no number is below +0, so that the bits compare as the numbers
// do, and NaN is the largest.
void pool_row(const Stem& stem, const float* const rows[], int64_t num_rows, int64_t width, Number* out) {
    for (int64_t x = 0; x * POOL_STRIDE < width; ++x, out += stem.channels) {
        const int64_t begin = std::max<int64_t>(x * POOL_STRIDE - POOL_PADDING, 0);
        const int64_t end = std::min(x * POOL_STRIDE - POOL_PADDING + POOL_KERNEL, width);
        int64_t c = 0;
        over_lanes([&](auto lanes) {
            for (; c + lanes <= stem.channels; c += lanes) {
                Bits<lanes> most = {};
                for (int64_t row = 0; row < num_rows; ++row)
                    for (int64_t column = begin; column < end; ++column) {
                        const Bits<lanes> bits = (Bits<lanes>)load<lanes>(rows[row] + column * stem.padded + c);
                        most = bits > most ? bits : most;
                    }
                store<lanes>(out + c, (Vector<lanes>)most);
            }
        });
    }
}

// Rows [begin, end) of the output, over a ring of rows of the map that is pooled.
void stem_rows(const Stem& stem, const Image& image, int64_t begin, int64_t end, Number* out) {
    constexpr int64_t RING = 2 * STEP;
    const int64_t height = ceil_div(image.height, STEM_STRIDE), width = ceil_div(image.width, STEM_STRIDE);     // of the map
    const int64_t map_row = width * stem.padded, out_row = ceil_div(width, POOL_STRIDE) * stem.channels;
    const int64_t copy_row = ceil_div(((width - 1) * STEM_STRIDE + STEM_KERNEL) * image.channels, LANES) * LANES;
    float* ring = scratch<float>(RING * map_row + (COVERED + 2 * EVEN.COUNT) * copy_row + EVEN.COUNT * PIXELS * stem.padded);
    float* copy = ring + RING * map_row;
    float* room = copy + COVERED * copy_row;
    int64_t kept = 0;                                               // rows the copy has already, for they were its last ones before
    for (int64_t y = begin, made = std::max<int64_t>(begin * POOL_STRIDE - POOL_PADDING, 0) / STEP * STEP; y < end; ++y) {
        const int64_t top = std::max<int64_t>(y * POOL_STRIDE - POOL_PADDING, 0);
        const int64_t bottom = std::min(y * POOL_STRIDE - POOL_PADDING + POOL_KERNEL, height);
        for (; made < bottom; made += STEP, kept = COVERED - STEP * STEM_STRIDE) {
            std::memmove(copy, copy + (COVERED - kept) * copy_row, kept * copy_row * sizeof(float));
            copy_padded(image, made * STEM_STRIDE - STEM_PADDING + kept, COVERED - kept, copy_row, copy + kept * copy_row);
            convolve_rows(stem, copy, copy_row, width, room, ring + made % RING * map_row);
        }
        const float* rows[POOL_KERNEL];
        for (int64_t row = top; row < bottom; ++row) rows[row - top] = ring + row % RING * map_row;
        pool_row(stem, rows, bottom - top, width, out + y * out_row);
    }
}

// All rows of all images, each image_step numbers from the last.
void run_stem(const Stem& stem, const Image& first, int64_t images, int64_t image_step, int64_t threads, Number* out) {
    constexpr int64_t STRIDE = STEM_STRIDE * POOL_STRIDE;
    const int64_t out_height = ceil_div(first.height, STRIDE), out_width = ceil_div(first.width, STRIDE);
    // One band for a thread, but of two STEPs at least, for each computes one that its neighbour computes too.
    const int64_t bands = std::min(ceil_div(out_height * POOL_STRIDE, 2 * STEP), ceil_div(threads, images));
    parallel(threads, images * bands, [&](int64_t item) {
        const int64_t number = item / bands, band = item % bands;
        const TileRegisters registers(stem.tiles);
        Image image = first;
        image.in += number * image_step;
        stem_rows(stem, image, band * out_height / bands, (band + 1) * out_height / bands,
                  out + number * out_height * out_width * stem.channels);
    });
}

}  // namespace
