// Patches moved among the images of a group: rows of a patch copied from or to where `source` says; and the gradient,
// which adds up the patches that took one.
#include "grid.h"
#include "table.h"

namespace entmask::cpu::ENTMASK_ISA {
namespace {

// The first element of patch `patch` of image n.
ENTMASK_INLINE int64_t patch_offset(const Grid& g, const Strides& s, int64_t n, int64_t patch) {
  const int64_t gx = patch % g.count[2], gy = patch / g.count[2] % g.count[1], gz = patch / g.count[2] / g.count[1];
  return n * s.n + gz * g.patch[0] * s.d + gy * g.patch[1] * s.h + gx * g.patch[2] * s.w;
}

// One item: one patch of one image, all its channels.
template <class E>
void move(const GatherParams& p, int64_t begin, int64_t end) {
  const Grid& g = p.grid;
  const Strides &xs = p.x_stride, &os = p.out_stride;
  const int64_t per_image = g.count[0] * g.count[1] * g.count[2];
  const int64_t pd = g.patch[0], ph = g.patch[1], pw = g.patch[2];
  const bool interleaved = xs.c == 1 && os.c == 1 && xs.w == p.channels && os.w == p.channels;
  const int64_t planes = interleaved ? 1 : p.channels, run = interleaved ? pw * p.channels : pw;
  const int64_t x_step = interleaved ? 1 : xs.w, o_step = interleaved ? 1 : os.w;

  auto first_pixel = [&](const Strides& s, int64_t group, int64_t patch) {
    return patch_offset(g, s, group * p.group + patch / per_image, patch % per_image);
  };
  for (int64_t item = begin; item < end; ++item) {
    const int64_t in_group = p.group * per_image, group = item / in_group, patch = item % in_group;
    const int64_t other = p.source[patch];
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

int64_t items(const GatherParams& p) { return p.batch * p.grid.count[0] * p.grid.count[1] * p.grid.count[2]; }

void run(const GatherParams& p, const Memory&, int64_t begin, int64_t end) {
  switch (p.bytes) {
    case 1:
      return move<uint8_t>(p, begin, end);
    case 2:
      return move<uint16_t>(p, begin, end);
    case 4:
      return move<uint32_t>(p, begin, end);
    default:
      return move<uint64_t>(p, begin, end);
  }
}

// ---------------------------------------------------------------- gradient
//
// One item: one patch, all its channels. Its rows are added up in double, a piece of a row at a time.

template <class S>
void add_takers(const GatherBackwardParams& p, int64_t begin, int64_t end) {
  const Grid& g = p.grid;
  const Strides &is = p.grad_stride, &os = p.out_stride;
  const int64_t per_image = g.count[0] * g.count[1] * g.count[2];
  const S* const grad = static_cast<const S*>(p.grad);
  double sum[kChunk];
  for (int64_t patch = begin; patch < end; ++patch) {
    S* const to = static_cast<S*>(p.out) + patch_offset(g, os, patch / per_image, patch % per_image);
    for (int64_t c = 0; c < p.channels; ++c)
      for (int64_t z = 0; z < g.patch[0]; ++z)
        for (int64_t y = 0; y < g.patch[1]; ++y)
          for (int64_t x = 0; x < g.patch[2]; x += kChunk) {
            const int64_t n = g.patch[2] - x < kChunk ? g.patch[2] - x : kChunk;
            const auto row = [&](const Strides& s) { return c * s.c + z * s.d + y * s.h + x * s.w; };
            for (int64_t i = 0; i < n; ++i) sum[i] = 0;
            for (int64_t j = p.first[patch]; j < p.first[patch + 1]; ++j) {
              const int64_t taker = p.takers[j];
              const S* const from = grad + patch_offset(g, is, taker / per_image, taker % per_image) + row(is);
              for (int64_t i = 0; i < n; ++i) sum[i] += double(scalar(from[i * is.w]));
            }
            for (int64_t i = 0; i < n; ++i) store(to + row(os) + i * os.w, splat<Compute<S>>(Compute<S>(sum[i])), 1);
          }
  }
}

int64_t backward_items(const GatherBackwardParams& p) {
  return p.batch * p.grid.count[0] * p.grid.count[1] * p.grid.count[2];
}

void run_backward(const GatherBackwardParams& p, const Memory&, int64_t begin, int64_t end) {
  with_dtype(p.dtype, [&](auto s) { add_takers<typename decltype(s)::type>(p, begin, end); });
}

}  // namespace

const Stage<GatherParams> gather = {items, run, nullptr, nullptr, nullptr};
const Stage<GatherBackwardParams> gather_backward = {backward_items, run_backward, nullptr, nullptr, nullptr};

}  // namespace entmask::cpu::ENTMASK_ISA
