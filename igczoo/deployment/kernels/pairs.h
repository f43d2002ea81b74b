// Products by pairs: x0 y0 + x1 y1 = (x0 + y1) (x1 + y0) - x0 x1 - y0 y1, where the last two are of the row alone and of the column alone
// (Winograd, "A New Algorithm for Inner Product", 1968). Of four numbers of a row two are a pair: three multiplications for four. The two
// additions cost nothing where they are done beside the multiplications.
//
// A pair adds numbers of rows and columns, to the larger one's precision. So both are brought near 1 first, divided by powers of two.
#pragma once
#include <algorithm>
#include <cmath>

#include "product.h"

namespace {

// Of float on AMD's processors from Zen 3 on, whose adders are not the multipliers; with half the registers the sums would leave no room.
#if defined(__AVX512F__) && (defined(__znver3__) || defined(__znver4__) || defined(__znver5__))
template <class T>
constexpr bool PAIRS_PAY = std::is_same_v<T, float>;
#else
template <class T>
constexpr bool PAIRS_PAY = false;
#endif

template <int N>
inline Vector<N> magnitude(Vector<N> v) { return (Vector<N>)((Bits<N>)v & 0x7fffffff); }

// The power of two in numbers that are not negative, and its inverse.
template <int N>
inline Vector<N> power(Vector<N> v) { return (Vector<N>)((Bits<N>)v & 0x7f800000); }
template <int N>
inline Vector<N> inverse_power(Vector<N> v) { return (Vector<N>)(0x7f000000 - ((Bits<N>)v & 0x7f800000)); }

// The sums of every fourth lane.
template <int N>
inline Vector<4> fold(Vector<N> v) {
    if constexpr (N > 4) {
        Vector<N / 2> halves[2];
        std::memcpy(halves, &v, sizeof v);
        return fold<N / 2>(halves[0] + halves[1]);
    } else {
        return v;
    }
}

inline float total(Vector<4> v) { return (v[0] + v[1]) + (v[2] + v[3]); }

// Rows -------------------------------------------------------------------------------------------------------------------------------

struct Row {
    float* numbers;
    float pairs;                                                    // the sum of x0 x1
    float unit;                                                     // what its numbers were divided by, 0 where all are 0
    bool whole;                                                     // not divided: it holds infinity, NaN or next to nothing; not by pairs
};

// Two sums of a row of whole vectors, with zeros behind its end.
inline Row sums(float* row, const float* end, float* size) {
    typedef uint64_t Twos __attribute__((vector_size(LANES * 4)));
    Vector<LANES> sizes = {}, pairs = {};
    for (const float* at = row; at < end; at += LANES) {
        const Vector<LANES> x = load<LANES>(at);
        sizes += magnitude<LANES>(x);
        pairs += x * (Vector<LANES>)((Twos)x >> 32);                // in every fourth lane x0 by x1, its neighbour
    }
    *size = total(fold<LANES>(sizes));
    return {row, fold<LANES>(pairs)[0], 1, false};
}

// Divides rows of `length` numbers, `row` from one to the next, of which those behind the end become 0.
inline void divide_rows(float* rows, int64_t row, int64_t pixels, int64_t length, Row* to) {
    Bits<LANES> there = {};
    for (int64_t lane = 0; lane < LANES - (row - length); ++lane) there[lane] = ~0u;
    const float share = 1.0f / length;
    for (; pixels > 0; --pixels, rows += row, ++to) {
        float *end = rows + row, size;
        store<LANES>(end - LANES, (Vector<LANES>)((Bits<LANES>)load<LANES>(end - LANES) & there));
        *to = sums(rows, end, &size);
        const float mean = size * share;
        if (mean > 0.25f && mean < 4) continue;                     // as good as near 1
        to->whole = mean != 0 && !std::isnormal(mean);
        if (to->whole) continue;
        const Vector<4> means = Vector<4>{} + mean, scale = inverse_power<4>(means);
        for (float* x = rows; x < end; x += LANES) store<LANES>(x, load<LANES>(x) * scale[0]);
        *to = sums(rows, end, &size);
        to->unit = power<4>(means)[0];
    }
}

// Columns ----------------------------------------------------------------------------------------------------------------------------

// `vectors` vectors of N columns of a weight, divided and packed; of a single vector perhaps only `count` columns are there.
template <int N, int vectors>
struct Columns {
    const Product<float>& p;
    int count;
    float* packed;                                                  // (length / 4 rounded up, vectors, 4, N), zeros where there are none
    Vector<N> pairs[vectors], unit[vectors];                        // of each column as of a row

    // By the mean of every `step`th number. False where that is not near 1 for all of them: not all were like these, or are finite.
    __attribute__((noinline)) bool divide(int64_t step) {
        const int64_t length = p.length, weight_step = p.step;
        const float share = 1.0f / ceil_div(length, step), *from = p.weight;
        float* to = packed;
        const int there = vectors == 1 ? count : N;
        Vector<N> mean[vectors] = {}, scale[vectors], size[vectors] = {}, sum[vectors] = {};
        for (int64_t k = 0; k < length; k += step)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) mean[v] += magnitude<N>(load_some<N>(from + k * weight_step + v * N, there)) * share;
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) scale[v] = inverse_power<N>(mean[v]);
        const auto pack = [&](int rows) __attribute__((always_inline)) {
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v, to += 4 * N) {
                Vector<N> y[4] = {};
#pragma GCC unroll 4
                for (int i = 0; i < rows; ++i) {
                    y[i] = load_some<N>(from + i * weight_step + v * N, there) * scale[v];
                    size[v] += magnitude<N>(y[i]);
                }
#pragma GCC unroll 4
                for (int i = 0; i < 4; ++i) store<N>(to + i * N, y[i]);
                sum[v] += y[0] * y[1];
            }
        };
        for (const float* end = from + length / 4 * 4 * weight_step; from < end; from += 4 * weight_step) pack(4);
        if (length % 4) pack(length % 4);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) pairs[v] = sum[v], unit[v] = power<N>(mean[v]);
        Bits<N> wrong = {};
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            const float least = length / 8.0f, most = length * 8.0f;
            const auto near_1 = (size[v] > least) & (size[v] < most) & (unit[v] != 0.0f), all_0 = (size[v] == 0.0f) & (unit[v] == 0.0f);
            wrong |= ~(Bits<N>)(near_1 | all_0);
        }
        uint64_t words[N / 2], any = 0;
        std::memcpy(words, &wrong, sizeof wrong);
        for (const uint64_t word : words) any |= word;
        return any == 0;
    }
};

// Products ---------------------------------------------------------------------------------------------------------------------------

// `height` pixels, of the block that comes after so many others.
template <int N, int height, int vectors>
__attribute__((noinline)) void multiply_block(
    const Product<float>& p, const Row* rows, const Columns<N, vectors>& columns, int64_t others) {
    fetch_outputs<N, height, vectors>(p);
    Vector<N> sum[height][vectors] = {};
    const int64_t row = p.row, step = p.step, length = p.length;
    const float *weight = columns.packed, *numbers = p.rows;
    // The next columns: a quarter of their rows, so that four blocks fetch them.
    const float* next = p.weight + vectors * N + others % 4 * (length / 4) * step;
    for (int64_t k = 0; k < length; k += 4, numbers += 4, next += step)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v, weight += 4 * N) {
            __builtin_prefetch(next + v * N, 0, 2);
            Vector<N> y[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) y[i] = load<N>(weight + i * N);
            const float* x = numbers;
#pragma GCC unroll 6
            for (int h = 0; h < height; ++h, x += row) {
                asm volatile("" : "+r"(x) : : "memory");            // read it here, as operands: with the sums no register is left for it
                const Vector<N> first = x[0] + y[1], second = x[1] + y[0];
                sum[h][v] += x[2] * y[2];
                sum[h][v] += x[3] * y[3];
                sum[h][v] += first * second;
            }
        }
#pragma GCC unroll 6
    for (int h = 0; h < height; ++h)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            const Vector<N> y = (sum[h][v] - (columns.pairs[v] + rows[h].pairs)) * columns.unit[v] * rows[h].unit;
            put<N>(p, h, v, y, vectors == 1 ? columns.count : N);
        }
}

// Calls run(first pixel, pixels) for those rows one after another that are whole, or that are not.
template <class Run>
void each_run(const Row* rows, int64_t pixels, bool whole, const Run& run) {
    for (int64_t begin = 0, end; begin < pixels; begin = end) {
        for (end = begin; end < pixels && rows[end].whole == whole;) ++end;
        if (end > begin) run(begin, end - begin);
        else ++end;
    }
}

// Whole rows as they are, with `copy` for their columns, and then the others.
template <int N, int vectors>
void multiply_columns(const Product<float>& p, Row* rows, int64_t pixels, int count, float* copy) {
    const auto multiply_whole = [&](int64_t begin, int64_t pixels) {
        Product<float> run = p;
        run.skip_pixels(begin);
        multiply_columns<N, vectors>(run, pixels, count, copy);
    };
    each_run(rows, pixels, true, multiply_whole);
    Columns<N, vectors> columns = {p, count, copy, {}, {}};
    constexpr int64_t SAMPLES = 8;
    if (columns.divide(ceil_div(p.length, SAMPLES)) || columns.divide(1)) {
        each_run(rows, pixels, false, [&](int64_t begin, int64_t pixels) {
            Product<float> block = p;
            block.skip_pixels(begin);
            const Row* row = rows + begin;
            for (int64_t height, others = 0; pixels > 0; pixels -= height, row += height, ++others, block.skip_pixels(height)) {
                height = ceil_div(pixels, ceil_div(pixels, ROWS));
                with_constant<ROWS>(height, [&](auto height) { multiply_block<N, height, vectors>(block, row, columns, others); });
            }
        });
        return;
    }
    // A weight that is not finite. From here on all rows are whole.
    each_run(rows, pixels, false, [&](int64_t begin, int64_t pixels) {
        for (int64_t pixel = begin; pixel < begin + pixels; ++pixel) {
            for (int64_t k = 0; k < p.length; ++k) rows[pixel].numbers[k] *= rows[pixel].unit;
            rows[pixel].whole = true;
        }
        multiply_whole(begin, pixels);
    });
}

// All columns of all pixels.
inline void multiply(const Product<float>& p, Row* rows, int64_t pixels, int64_t columns, float* copy) {
    over_columns(p, columns, [&](auto lanes, auto vectors, const Product<float>& p, int count) {
        multiply_columns<lanes, vectors>(p, rows, pixels, count, copy);
    });
}

}  // namespace
