// Units one after another: as many images at a time go through units of one shape as the cache keeps until they are read again.
#pragma once
#include <algorithm>
#include <vector>

#include "threads.h"

namespace {

// A unit and those after it whose maps are all of one shape.
template <class Unit>
struct Link {
    const Unit *begin, *end;
    int64_t images;                                                 // that go through it at a time
    int64_t input;                                                  // where what the link before gives lies
};

// Units of one shape: between them the maps lie in two places by turns.
template <class Unit>
void run_units(const Unit* begin, const Unit* end, int64_t images, const Number* x, Number* const* maps, int64_t threads, Number* out) {
    for (const Unit* u = begin; u < end; ++u) {
        Number* target = u + 1 == end ? out : maps[(u - begin) % 2];
        u->run(images, x, threads, target);
        x = target;
    }
}

// Of units that say in_image and out_image, the numbers of a map, and keeps_shape, whether they go on with that of the unit before.
template <class Unit>
struct Chain {
    std::vector<Link<Unit>> links;
    int64_t between[2];                                             // where the maps inside any link lie
    int64_t room = 0;                                               // numbers that all these maps take

    Chain(const Unit* units, int64_t num_units, int64_t images, int64_t chunk_bytes) {
        const auto place = [&](int64_t numbers) {
            const int64_t at = room;
            room += ceil_div(numbers, 64) * 64;
            return at;
        };
        int64_t most = 0;
        for (const Unit* u = units; u < units + num_units; ++u) {
            if (u > units && u->keeps_shape()) {
                links.back().end = u + 1;
                continue;
            }
            const int64_t fitting = chunk_bytes / std::max<int64_t>(1, u->out_image() * int64_t{sizeof(Number)});
            const int64_t count = std::min(images, std::max<int64_t>(1, fitting));
            const int64_t input = u > units ? place(count * u->in_image()) : 0;
            links.push_back({u, u + 1, count, input});
            most = std::max(most, count * u->out_image());
        }
        for (int64_t& at : between) at = place(most);
    }

    // Links [0, last]: each takes some images as soon as the one before has made them.
    void run(int64_t last, int64_t images, const Number* x, Number* out, Number* maps, int64_t threads) const {
        const Link<Unit>& link = links[last];
        Number* const inside[] = {maps + between[0], maps + between[1]};
        for (int64_t begin = 0; begin < images; begin += link.images) {
            const int64_t count = std::min(link.images, images - begin);
            const Number* source = x + begin * links[0].begin->in_image();
            if (last > 0) {
                run(last - 1, count, source, maps + link.input, maps, threads);
                source = maps + link.input;
            }
            run_units(link.begin, link.end, count, source, inside, threads, out + begin * link.begin->out_image());
        }
    }

    void run(int64_t images, const Number* x, Number* out, Number* maps, int64_t threads) const {
        run(links.size() - 1, images, x, out, maps, threads);
    }
};

}  // namespace
