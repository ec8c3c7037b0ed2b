// Patches moved among the images of a group, and the gradient, which adds up the patches that took one.
//
// A strip's rows are written from left to right, so that writes, which cost more than reads, are one stream; each patch
// of a row is read from a place of its own.
#include "grid.h"
#include "table.h"

namespace entmask::cpu::ENTMASK_ISA {
namespace {

constexpr int64_t kPatches = 64;  // patches of a strip that are handled at a time
constexpr int64_t kTakers = 256;  // takers of these patches whose addresses are kept; others are looked up in each row

// The first element of patch `patch` of image n.
ENTMASK_INLINE int64_t patch_offset(const Grid& g, const Strides& s, int64_t n, int64_t patch) {
  const int64_t gx = patch % g.count[2], gy = patch / g.count[2] % g.count[1], gz = patch / g.count[2] / g.count[1];
  return n * s.n + gz * g.patch[0] * s.d + gy * g.patch[1] * s.h + gx * g.patch[2] * s.w;
}

// The rows of a patch in two tensors and the steps between a row's elements: one row per channel, or, where both have a
// pixel's channels side by side, one that holds them all.
struct PatchRows {
  int64_t planes, length, from_step, to_step;

  ENTMASK_INLINE PatchRows(const Grid& g, int64_t channels, const Strides& from, const Strides& to) {
    const bool interleaved = from.c == 1 && to.c == 1 && from.w == channels && to.w == channels;
    planes = interleaved ? 1 : channels;
    length = interleaved ? g.patch[2] * channels : g.patch[2];
    from_step = interleaved ? 1 : from.w;
    to_step = interleaved ? 1 : to.w;
  }

  template <class E>
  ENTMASK_INLINE void copy(const E* from, E* to) const {
    if (from_step == 1 && to_step == 1) return copy_elements(from, to, length);
    for (int64_t i = 0; i < length; ++i) to[i * to_step] = from[i * from_step];
  }
  // Calls f(copy): copy(from, to) copies a row, in a loop without branches where its length is a usual one.
  template <class E, class F>
  ENTMASK_INLINE void with_copy(F&& f) const {
    const auto with_bytes = [&](auto bytes) {
      f([](const E* from, E* to) { __builtin_memcpy(to, from, decltype(bytes)::value); });
    };
    switch (from_step == 1 && to_step == 1 ? length * int64_t(sizeof(E)) : 0) {
      case 8:
        return with_bytes(Constant<8>{});
      case 16:
        return with_bytes(Constant<16>{});
      case 32:
        return with_bytes(Constant<32>{});
      case 64:
        return with_bytes(Constant<64>{});
      case 128:
        return with_bytes(Constant<128>{});
    }
    f([&](const E* from, E* to) { copy(from, to); });
  }
  // kWidth elements of a row from the i-th on; those beyond its end read as 0 and are not written.
  template <class S>
  ENTMASK_INLINE Vec<Compute<S>> load_from(const S* from, int64_t i) const {
    constexpr int64_t width = kWidth<Compute<S>>;
    if (from_step == 1 && length - i >= width) return load(from + i);
    S lanes[width] = {};
    for (int64_t k = 0; k < width && i + k < length; ++k) lanes[k] = from[(i + k) * from_step];
    return load(lanes);
  }
  template <class S>
  ENTMASK_INLINE void store_to(S* to, int64_t i, Vec<Compute<S>> v) const {
    constexpr int64_t width = kWidth<Compute<S>>;
    if (to_step == 1 && length - i >= width) return store(to + i, v);
    S lanes[width];
    store(lanes, v);
    for (int64_t k = 0; k < width && i + k < length; ++k) to[(i + k) * to_step] = lanes[k];
  }
};

// Calls f(offset in a plane of `from`, in one of `to`) for every plane and row of an item.
template <class F>
ENTMASK_INLINE void for_each_row(const Item& item, int64_t planes, const Strides& from, const Strides& to, F&& f) {
  for (int64_t c = 0; c < planes; ++c)
    for (int64_t r = item.first; r < item.last; ++r) {
      const int64_t z = item.z(r) - item.z0, y = item.y(r) - item.y0;
      f(c * from.c + z * from.d + y * from.h, c * to.c + z * to.d + y * to.h);
    }
}

template <class E>
void move(const GatherParams& p, int64_t begin, int64_t end) {
  const Grid& g = p.grid;
  const Strides &xs = p.x_stride, &os = p.out_stride;
  const int64_t splits = strip_splits(g), per_image = g.count[0] * g.count[1] * g.count[2];
  const PatchRows rows(g, p.channels, xs, os);
  const int64_t width = g.patch[2] * os.w;  // of a patch, in `out`
  Item item(g, splits, begin);
  for (int64_t index = begin; index < end; ++index, item.next()) {
    const int64_t in_group = item.n % p.group, of_image = item.strip * g.count[2] - item.n * per_image;
    const int64_t* const source = p.source + in_group * per_image + of_image;
    for (int64_t j = 0; j < g.count[2]; j += kPatches) {
      const int64_t count = g.count[2] - j < kPatches ? g.count[2] - j : kPatches;
      const E* from[kPatches];
      for (int64_t i = 0; i < count; ++i) {
        const int64_t image = item.n - in_group + source[j + i] / per_image;
        from[i] = static_cast<const E*>(p.x) + patch_offset(g, xs, image, source[j + i] % per_image);
      }
      E* const to = static_cast<E*>(p.out) + patch_offset(g, os, item.n, of_image + j);
      rows.with_copy<E>([&](auto copy) {
        for_each_row(item, rows.planes, xs, os, [&](int64_t x, int64_t out) {
          for (int64_t i = 0; i < count; ++i) copy(from[i] + x, to + out + i * width);
        });
      });
    }
  }
}

int64_t items(const GatherParams& p) { return strip_items(p.grid, p.batch); }

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
// A patch that one patch took is copied from it; the takers of another are added up in double.

template <class S>
void add_takers(const GatherBackwardParams& p, int64_t begin, int64_t end) {
  using T = Compute<S>;
  typedef double Sum __attribute__((vector_size(kWidth<T> * sizeof(double))));
  const Grid& g = p.grid;
  const Strides &is = p.grad_stride, &os = p.out_stride;
  const int64_t splits = strip_splits(g), per_image = g.count[0] * g.count[1] * g.count[2];
  const PatchRows rows(g, p.channels, is, os);
  const int64_t width = g.patch[2] * os.w;
  Item item(g, splits, begin);
  for (int64_t index = begin; index < end; ++index, item.next()) {
    for (int64_t j = 0; j < g.count[2]; j += kPatches) {
      const int64_t patch = item.strip * g.count[2] + j;
      const int64_t count = g.count[2] - j < kPatches ? g.count[2] - j : kPatches;
      const int64_t* const first = p.first + patch;
      const auto find = [&](int64_t t) {
        const int64_t taker = p.takers[t];
        return static_cast<const S*>(p.grad) + patch_offset(g, is, taker / per_image, taker % per_image);
      };
      const S* found[kTakers];
      const int64_t known = first[count] - first[0] < kTakers ? first[count] : first[0] + kTakers;
      for (int64_t t = first[0]; t < known; ++t) found[t - first[0]] = find(t);
      const auto taker_at = [&](int64_t t) { return t < known ? found[t - first[0]] : find(t); };

      S* const to = static_cast<S*>(p.out) + patch_offset(g, os, item.n, patch - item.n * per_image);
      for_each_row(item, rows.planes, is, os, [&](int64_t from, int64_t out) {
        for (int64_t i = 0; i < count; ++i) {
          S* const row = to + out + i * width;
          if (first[i + 1] - first[i] == 1) {
            rows.copy(taker_at(first[i]) + from, row);
            continue;
          }
          for (int64_t k = 0; k < rows.length; k += kWidth<T>) {
            Sum sum{};
            for (int64_t t = first[i]; t < first[i + 1]; ++t)
              sum += __builtin_convertvector(rows.load_from(taker_at(t) + from, k), Sum);
            rows.store_to(row, k, __builtin_convertvector(sum, Vec<T>));
          }
        }
      });
    }
  }
}

int64_t backward_items(const GatherBackwardParams& p) { return strip_items(p.grid, p.batch); }

void run_backward(const GatherBackwardParams& p, const Memory&, int64_t begin, int64_t end) {
  with_dtype(p.dtype, [&](auto s) { add_takers<typename decltype(s)::type>(p, begin, end); });
}

}  // namespace

const Stage<GatherParams> gather = {items, run, nullptr, nullptr, nullptr};
const Stage<GatherBackwardParams> gather_backward = {backward_items, run_backward, nullptr, nullptr, nullptr};

}  // namespace entmask::cpu::ENTMASK_ISA
