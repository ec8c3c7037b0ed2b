// Which patches of each row are masked: an exact radix selection, no sort.
//
// Scores become unsigned keys in rank order. The key of the k-th patch is found digit by digit (8 bits, a histogram over the keys
// that still agree), linear in the patches; ties at that key go to the lower index. The hint is a second selection.
#include "simd.h"
#include "tables.h"

namespace entmask::cpu::ENTMASK_ISA {
namespace {

// Larger key = higher rank: NaN above +inf, all NaNs equal, -0 equal to +0.
ENTMASK_INLINE uint32_t key_of(float v) {
  if (v != v) return ~uint32_t(0);
  const uint32_t bits = bits_as<uint32_t>(v + 0.0f);  // -0 + 0 = +0
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
ENTMASK_INLINE uint64_t key_of(double v) {
  if (v != v) return ~uint64_t(0);
  const uint64_t bits = bits_as<uint64_t>(v + 0.0);
  return bits >> 63 ? ~bits : bits | 0x8000000000000000u;
}

template <class T>
struct KeyOf;
template <>
struct KeyOf<float> {
  using type = uint32_t;
};
template <>
struct KeyOf<double> {
  using type = uint64_t;
};

// The patches that come before `key`, and the first `ties` (by index) of those at it.
template <class Key>
struct Cut {
  Key key;
  int64_t ties;
};

// The k patches (1 <= k <= n) with the largest flip ^ key; flip = all ones selects the smallest.
template <class T, class Key>
Cut<Key> top(const T* scores, int64_t n, int64_t k, Key flip) {
  Key prefix = 0;
  int64_t left = k;
  for (int shift = int(sizeof(Key)) * 8 - 8; shift >= 0; shift -= 8) {
    int64_t histogram[256] = {};
    const Key above = shift + 8 < int(sizeof(Key)) * 8 ? Key(~Key(0)) << (shift + 8) : Key(0);
    for (int64_t i = 0; i < n; ++i) {
      const Key key = key_of(scores[i]) ^ flip;
      if ((key & above) == prefix) ++histogram[(key >> shift) & 255];
    }
    int digit = 255;
    while (histogram[digit] < left) left -= histogram[digit--];
    prefix |= Key(digit) << shift;
  }
  return {prefix, left};
}

// floor(fraction * n + 1e-6), at most n.
ENTMASK_INLINE int64_t share(double fraction, int64_t n) {
  const int64_t k = int64_t(fraction * double(n) + 1e-6);
  return k < n ? k : n;
}

template <class T>
int64_t number_selected(const SelectParams& p, const T* scores, typename KeyOf<T>::type flip) {
  const int64_t n = p.length;
  if (p.by_ratio) {
    if (!(p.ratio.value > 0)) return 0;
    const int64_t k = share(p.ratio.value, n);
    return k > 1 ? k : 1;
  }
  const auto limit = key_of(T(p.min_score.value)) ^ flip;
  int64_t k = 0;
  for (int64_t i = 0; i < n; ++i) k += (key_of(scores[i]) ^ flip) >= limit;
  k = k > p.min_patches ? k : p.min_patches;
  return k < n ? k : n;
}

template <class T>
void select_row(const SelectParams& p, const T* scores, bool* patches) {
  using Key = typename KeyOf<T>::type;
  const int64_t n = p.length;
  const Key flip = p.lowest ? Key(~Key(0)) : Key(0);
  const int64_t k = number_selected(p, scores, flip);
  if (k == 0) {
    __builtin_memset(patches, 0, size_t(n));
    return;
  }
  Cut<Key> cut = top<T, Key>(scores, n, k, flip);
  for (int64_t i = 0; i < n; ++i) {
    const Key key = key_of(scores[i]) ^ flip;
    patches[i] = key > cut.key || (key == cut.key && cut.ties-- > 0);
  }
  int64_t visible = share(p.hint, n);
  visible = visible < k - 1 ? visible : k - 1;
  if (visible == 0) return;
  // The `visible` highest of the selected. In the order "highest" they are the highest of all; in the order "lowest" all patches
  // below the k-th from below are selected, so the highest selected are those that (k - visible) lowest leave over.
  if (!p.lowest) {
    Cut<Key> hint = top<T, Key>(scores, n, visible, 0);
    for (int64_t i = 0; i < n; ++i) {
      const Key key = key_of(scores[i]);
      if (key > hint.key || (key == hint.key && hint.ties-- > 0)) patches[i] = false;
    }
  } else {
    // Key of the visible-th highest selected: the (k - visible + 1)-th lowest of all. Of the selected at that key, the first by index
    // are left visible, as many as are still wanted after those above it.
    const Key key_at = top<T, Key>(scores, n, k - visible + 1, flip).key;
    int64_t above = 0;
    for (int64_t i = 0; i < n; ++i) above += patches[i] && (key_of(scores[i]) ^ flip) < key_at;
    int64_t ties = visible - above;
    for (int64_t i = 0; i < n; ++i) {
      const Key key = key_of(scores[i]) ^ flip;
      if (patches[i] && (key < key_at || (key == key_at && ties-- > 0))) patches[i] = false;
    }
  }
}

}  // namespace

void select(const SelectParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * p.length;
    if (p.length == 0) continue;
    if (p.is_double)
      select_row(p, static_cast<const double*>(p.scores) + at, p.patches + at);
    else
      select_row(p, static_cast<const float*>(p.scores) + at, p.patches + at);
  }
}

}  // namespace entmask::cpu::ENTMASK_ISA
