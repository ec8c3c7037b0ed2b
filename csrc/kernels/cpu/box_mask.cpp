// A box of each image as a mask of pixels: a row is outside, or one run of ones.
#include "grid.h"
#include "table.h"

namespace entmask::cpu::ENTMASK_ISA {
namespace {

// One item: one row.
int64_t items(const BoxMaskParams& p) { return p.size[2] > 0 ? p.batch * p.size[0] * p.size[1] : 0; }

void run(const BoxMaskParams& p, const Memory&, int64_t begin, int64_t end) {
  const int64_t depth = p.size[0], height = p.size[1], width = p.size[2];
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / (depth * height), place[2] = {row / height % depth, row % height};
    const int64_t* const box = p.boxes + n * 2 * p.axes + 2 * (p.axes - 3);  // the depth's two, where they are there
    bool inside = true;
    for (int64_t axis = 3 - p.axes; axis < 2; ++axis)
      inside = inside && box[2 * axis] <= place[axis] && place[axis] < box[2 * axis + 1];
    const int64_t first = box[4] > 0 ? box[4] : 0, last = box[5] < width ? box[5] : width;
    bool* const out = p.out + row * width;
    __builtin_memset(out, 0, size_t(width));
    if (inside && first < last) __builtin_memset(out + first, 1, size_t(last - first));
  }
}

}  // namespace

const Stage<BoxMaskParams> box_mask = {items, run, nullptr, nullptr, nullptr};

}  // namespace entmask::cpu::ENTMASK_ISA
