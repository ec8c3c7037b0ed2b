// Patches moved among the images of a group: rows of a patch copied from or to where the permutation says.
#include "grid.h"
#include "table.h"

namespace entmask::cpu::ENTMASK_ISA {
namespace {

// One item: one patch of one image, all its channels.
template <class E>
void move(const ShuffleParams& p, int64_t begin, int64_t end) {
  const Grid& g = p.grid;
  const Strides &xs = p.x_stride, &os = p.out_stride;
  const int64_t per_image = g.count[0] * g.count[1] * g.count[2];
  const int64_t pd = g.patch[0], ph = g.patch[1], pw = g.patch[2];
  const bool interleaved = xs.c == 1 && os.c == 1 && xs.w == p.channels && os.w == p.channels;
  const int64_t planes = interleaved ? 1 : p.channels, run = interleaved ? pw * p.channels : pw;
  const int64_t x_step = interleaved ? 1 : xs.w, o_step = interleaved ? 1 : os.w;

  auto first_pixel = [&](const Strides& s, int64_t group, int64_t patch) {
    const int64_t n = group * p.group + patch / per_image, at = patch % per_image;
    const int64_t gx = at % g.count[2], gy = at / g.count[2] % g.count[1], gz = at / g.count[2] / g.count[1];
    return n * s.n + gz * pd * s.d + gy * ph * s.h + gx * pw * s.w;
  };
  for (int64_t item = begin; item < end; ++item) {
    const int64_t in_group = p.group * per_image, group = item / in_group, patch = item % in_group;
    const int64_t other = p.permutation[patch];
    const E* const from = static_cast<const E*>(p.x) + first_pixel(xs, group, p.inverse ? patch : other);
    E* const to = static_cast<E*>(p.out) + first_pixel(os, group, p.inverse ? other : patch);
    for (int64_t c = 0; c < planes; ++c)
      for (int64_t z = 0; z < pd; ++z)
        for (int64_t y = 0; y < ph; ++y) {
          const E* const in = from + c * xs.c + z * xs.d + y * xs.h;
          E* const out = to + c * os.c + z * os.d + y * os.h;
          if (x_step == 1 && o_step == 1) {
            __builtin_memcpy(out, in, size_t(run) * sizeof(E));
          } else {
            for (int64_t i = 0; i < run; ++i) out[i * o_step] = in[i * x_step];
          }
        }
  }
}

int64_t items(const ShuffleParams& p) { return p.batch * p.grid.count[0] * p.grid.count[1] * p.grid.count[2]; }

void run(const ShuffleParams& p, const Memory&, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case Dtype::float64:
      return move<uint64_t>(p, begin, end);
    case Dtype::float32:
      return move<uint32_t>(p, begin, end);
    default:
      return move<uint16_t>(p, begin, end);
  }
}

}  // namespace

const Stage<ShuffleParams> shuffle = {items, run, nullptr, nullptr, nullptr};

}  // namespace entmask::cpu::ENTMASK_ISA
