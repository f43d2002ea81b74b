// The kernel in a process of its own, for another processor or a model of one: calls come from the input, each with all the numbers it
// takes, and the output's numbers go back. kernel_driver.py says what a call is.
#include <cstdio>

#include "kernel.cpp"

namespace {

bool get(void* to, size_t size) { return size == 0 || std::fread(to, size, 1, stdin) == 1; }

int64_t get_count() {
    int64_t count = 0;
    return get(&count, sizeof count) ? count : -1;
}

template <class T>
bool get_all(std::vector<T>& to) {
    to.resize(get_count());
    return get(to.data(), to.size() * sizeof(T));
}

}  // namespace

int main() {
    for (int64_t function; (function = get_count()) >= 0;) {
        std::vector<int64_t> n;                                     // the call's numbers that are no tensors
        std::vector<Number> out, tensors[64];
        if (!get_all(n)) return 1;
        out.resize(get_count());
        const int64_t count = get_count();
        Number* p[64] = {};
        for (int64_t i = 0; i < count; ++i) {
            if (!get_all(tensors[i])) return 1;
            if (!tensors[i].empty()) p[i] = tensors[i].data();      // what is not there is null
        }
        if (function == 0) {
            igc_unit(out.data(), p[0], p[1], p[2], p[3], p[4], n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10]);
        } else if (function == 1) {
            igc_stem(out.data(), p[0], p[1], p[2], n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9]);
#ifdef AMX_MODEL
        } else if (function == 3) {                                 // what tiles have done so far, and why they do nothing
            const char* why = igc_why_no_tiles();
            const int64_t counts[] = {amx_model::products, amx_model::configured_threads};
            std::memcpy(out.data(), counts, sizeof counts);
            std::memcpy(out.data() + 8, why, std::strlen(why));
#endif
        } else {
            std::vector<Block> blocks;
            const int64_t* m = n.data() + 3;
            for (Number** b = p + 1; b < p + count; b += 8, m += 10)
                blocks.push_back({b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7], m[8],
                                  m[9]});
            std::vector<Number> room(igc_room(blocks.data(), blocks.size(), n[0], n[1]));
            igc_residual_blocks(out.data(), p[0], room.data(), blocks.data(), blocks.size(), n[0], n[1], n[2]);
        }
        std::fwrite(out.data(), sizeof(Number), out.size(), stdout);
        std::fflush(stdout);
    }
}
