// The instructions of AMX as Intel's manual (Software Developer's Manual, volume 2, and chapter 18 of volume 1) has them, as functions by
// the names of their intrinsics. What a processor would refuse ends the process. $AMX_MODEL_IS makes it one that is `refused` or `wrong`.
#pragma once
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <immintrin.h>

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig amx_model::load_config
#define _tile_release amx_model::release
#define _tile_loadd amx_model::load_tile
#define _tile_stored amx_model::store_tile
#define _tile_zero amx_model::zero
#define _tile_dpbf16ps amx_model::multiply

namespace amx_model {

constexpr int TILES = 8, MOST_ROWS = 16, MOST_BYTES = 64;           // of palette 1

struct Tile {
    int rows, bytes;                                                // both 0 where it is not configured
    uint8_t data[MOST_ROWS][MOST_BYTES];
};

struct State {
    bool configured = false;
    Tile tiles[TILES] = {};
};
inline thread_local State state;
inline std::atomic<int64_t> products{0}, configured_threads{0};
inline std::atomic<bool> granted{false};

inline bool is(const char* kind) {
    const char* given = std::getenv("AMX_MODEL_IS");
    return given && !std::strcmp(given, kind);
}

inline void require(bool fits, const char* what) {
    if (fits) return;
    std::fprintf(stderr, "a processor would refuse: %s\n", what);
    std::abort();
}

inline Tile& tile_of(int tile) {
    require(granted, "tiles without the system's permission");
    require(state.configured, "tiles that are not configured");
    require(0 <= tile && tile < TILES && state.tiles[tile].rows > 0, "a tile that is not configured");
    return state.tiles[tile];
}

inline void release() {
    if (state.configured) --configured_threads;
    state = {};
}

inline void load_config(const void* memory) {
    uint8_t config[64];
    std::memcpy(config, memory, sizeof config);
    require(granted, "a configuration without the system's permission");
    require(config[0] <= 1, "a palette that there is not");
    if (config[0] == 0) return release();
    require(config[1] < MOST_ROWS, "a start row beyond the last");
    for (int byte = 2; byte < 16; ++byte) require(config[byte] == 0, "a reserved byte that is not 0");
    if (!state.configured) ++configured_threads;
    state = {};
    for (int tile = 0; tile < 16; ++tile) {
        const int bytes = config[16 + 2 * tile] | config[17 + 2 * tile] << 8, rows = config[48 + tile];
        require(tile < TILES || (bytes == 0 && rows == 0), "a tile that there is not");
        if (tile >= TILES) continue;
        require(bytes <= MOST_BYTES && rows <= MOST_ROWS, "a tile that is too large");
        require((bytes == 0) == (rows == 0), "rows without columns, or columns without rows");
        state.tiles[tile].bytes = bytes, state.tiles[tile].rows = rows;
    }
    state.configured = true;
}

inline void zero(int tile) {
    Tile& t = tile_of(tile);
    std::memset(t.data, 0, sizeof t.data);
}

inline void load_tile(int tile, const void* base, int64_t stride) {
    Tile& t = tile_of(tile);
    std::memset(t.data, 0, sizeof t.data);
    for (int row = 0; row < t.rows; ++row) std::memcpy(t.data[row], static_cast<const uint8_t*>(base) + row * stride, t.bytes);
}

inline void store_tile(int tile, void* base, int64_t stride) {
    const Tile& t = tile_of(tile);
    for (int row = 0; row < t.rows; ++row) std::memcpy(static_cast<uint8_t*>(base) + row * stride, t.data[row], t.bytes);
}

inline float flush(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

inline float multiply_add(float a, float b, float c) { return flush(std::fma(flush(a), flush(b), flush(c))); }

inline float add(float a, float b) { return flush(flush(a) + flush(b)); }

inline float number(const uint8_t* row, int index) {
    uint16_t half;
    std::memcpy(&half, row + 2 * index, sizeof half);
    const uint32_t bits = uint32_t{half} << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// TDPBF16PS: the sums of a row's even numbers and of its odd ones, each from 0 on, then the sum of both, and that added.
inline void multiply(int to, int left, int right) {
    Tile &c = tile_of(to), &a = tile_of(left), &b = tile_of(right);
    require(to != left && to != right && left != right, "a product of a tile with itself");
    require(a.bytes % 4 == 0 && b.bytes % 4 == 0 && c.bytes % 4 == 0, "part of a number");
    require(c.rows == a.rows && c.bytes == b.bytes && b.rows == a.bytes / 4, "a product of shapes that do not fit");
    for (int m = 0; m < c.rows; ++m) {
        float sums[MOST_BYTES / 2] = {};
        for (int k = 0; k < a.bytes / 4; ++k)
            for (int n = 0; n < c.bytes / 2; ++n) sums[n] = multiply_add(number(a.data[m], 2 * k + n % 2), number(b.data[k], n), sums[n]);
        for (int n = 0; n < c.bytes / 4; ++n) {
            float y;
            std::memcpy(&y, c.data[m] + 4 * n, sizeof y);
            y = add(y, add(sums[2 * n], sums[2 * n + 1]));
            std::memcpy(c.data[m] + 4 * n, &y, sizeof y);
        }
    }
    if (is("wrong")) c.data[0][3] ^= 1;
    ++products;
}

}  // namespace amx_model

inline bool tiles_granted() { return amx_model::granted = !amx_model::is("refused"); }
