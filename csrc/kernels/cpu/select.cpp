// Which patches of each row are selected: an exact radix selection, no sort.
//
// Scores become unsigned keys in rank order. The key of the k-th patch is found digit by digit (8 bits, a histogram
// over the keys that still agree), linear in the patches; ties at that key go to the lower index. The hint is a second
// selection.
#include "grid.h"
#include "table.h"

namespace entmask::cpu::ENTMASK_ISA {
namespace {

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
template <class T>
using Key = typename KeyOf<T>::type;

// Larger key = higher rank: NaN above +inf, all NaNs equal, -0 equal to +0. flip = all ones turns the ranking round.
template <class T>
ENTMASK_INLINE Key<T> key_of(T v, Key<T> flip) {
  constexpr int top_bit = int(sizeof(T)) * 8 - 1;
  if (v != v) return ~Key<T>(0) ^ flip;
  const Key<T> bits = bits_as<Key<T>>(v + T(0));  // -0 + 0 = +0
  return (bits >> top_bit ? ~bits : bits | Key<T>(1) << top_bit) ^ flip;
}

template <class T>
struct KeyVector {
  typedef Key<T> type __attribute__((vector_size(kVectorBytes)));
};

template <class T>
ENTMASK_INLINE typename KeyVector<T>::type keys_of(const T* p, Key<T> flip) {
  using V = typename KeyVector<T>::type;
  constexpr int top_bit = int(sizeof(T)) * 8 - 1;
  const Vec<T> v = load(p) + T(0);
  const IVec<T> bits = bits_as<IVec<T>>(v);
  const V key = bits_as<V>(bits ^ (bits >> top_bit)) ^ ((bits_as<V>(bits) >> top_bit ^ 1) << top_bit);
  return (v != v ? V{} + ~Key<T>(0) : key) ^ flip;
}

// The number of patches whose key is at least `limit`.
template <class T>
int64_t count_from(const T* scores, int64_t n, Key<T> flip, Key<T> limit) {
  IVec<T> found = IVec<T>{};  // -1 for each; a row has fewer than 2^31 vectors
  int64_t i = 0, count = 0;
  for (; i + kWidth<T> <= n; i += kWidth<T>) found += keys_of<T>(scores + i, flip) >= limit;
  for (int j = 0; j < kWidth<T>; ++j) count -= found[j];
  for (; i < n; ++i) count += key_of(scores[i], flip) >= limit;
  return count;
}

// The patches that come before `key`, and the first `ties` (by index) of those at it.
template <class T>
struct Cut {
  Key<T> key;
  int64_t ties;
};

// The k patches (1 <= k <= n) with the largest keys.
template <class T>
Cut<T> top(const T* scores, int64_t n, int64_t k, Key<T> flip) {
  Key<T> prefix = 0, above = 0;
  int64_t left = k;
  for (int shift = int(sizeof(T)) * 8 - 8; shift >= 0; shift -= 8) {
    // Four histograms in turn: scores of one magnitude hit one bin, and an increment waits for the one before it. Keys
    // without the prefix go to a bin of their own, for a branch on them could not be foretold; whole vectors are
    // skipped.
    int64_t histogram[4][257] = {};
    auto add = [&](int64_t i, Key<T> key) {
      ++histogram[i & 3][(key & above) == prefix ? int((key >> shift) & 255) : 256];
    };
    int64_t i = 0;
    for (; i + kWidth<T> <= n; i += kWidth<T>) {
      const auto keys = keys_of<T>(scores + i, flip);
      if (above && !any<T>((keys & above) == prefix)) continue;
      for (int j = 0; j < kWidth<T>; ++j) add(j, keys[j]);
    }
    for (; i < n; ++i) add(i, key_of(scores[i], flip));
    int digit = 255;
    for (;; --digit) {
      const int64_t count = histogram[0][digit] + histogram[1][digit] + histogram[2][digit] + histogram[3][digit];
      if (count >= left) break;
      left -= count;
    }
    prefix |= Key<T>(digit) << shift;
    above |= Key<T>(255) << shift;
  }
  return {prefix, left};
}

// Sets patches[i] to `value` for the patches that the cut takes; `all` writes !value to the others.
template <class T, bool all>
ENTMASK_INLINE void take(const T* scores, int64_t n, Key<T> flip, Cut<T> cut, bool value, bool* patches) {
  int64_t i = 0;
  for (; i + kWidth<T> <= n; i += kWidth<T>) {
    const auto keys = keys_of<T>(scores + i, flip);
    if (any<T>(keys == cut.key)) {
      for (int j = 0; j < kWidth<T>; ++j) {
        const bool taken = keys[j] > cut.key || (keys[j] == cut.key && cut.ties-- > 0);
        if (taken || all) patches[i + j] = taken == value;
      }
    } else {
      const auto taken = keys > cut.key;
      for (int j = 0; j < kWidth<T>; ++j)
        if (all || taken[j]) patches[i + j] = (taken[j] != 0) == value;
    }
  }
  for (; i < n; ++i) {
    const Key<T> key = key_of(scores[i], flip);
    const bool taken = key > cut.key || (key == cut.key && cut.ties-- > 0);
    if (taken || all) patches[i] = taken == value;
  }
}

// How many patches are selected, and the cut that takes them. k = 0: none.
template <class T>
struct Selected {
  int64_t k;
  Cut<T> cut;
};

template <class T>
Selected<T> selected(const SelectParams& p, const T* scores, int64_t row, Key<T> flip) {
  const int64_t n = p.length;
  int64_t k = p.k;
  if (p.by_ratio && p.ratio.data) k = static_cast<const int64_t*>(p.ratio.data)[row * p.ratio.stride];
  if (!p.by_ratio) {
    const T min_score = number_of<T>(p.min_score, row);
    if (min_score != min_score) return {0, {}};
    const Key<T> limit = key_of(min_score, flip);
    k = count_from(scores, n, flip, limit);
    if (k > 0 && k >= p.min_patches) return {k, {limit, n}};
    k = p.min_patches;
  }
  k = k < 0 ? 0 : k < n ? k : n;
  return {k, k > 0 ? top(scores, n, k, flip) : Cut<T>{}};
}

template <class T>
void select_row(const SelectParams& p, int64_t row) {
  const int64_t n = p.length;
  const T* const scores = static_cast<const T*>(p.scores) + row * n;
  bool* const patches = p.patches + row * n;
  const Key<T> flip = p.lowest ? ~Key<T>(0) : Key<T>(0);
  const auto [k, cut] = selected(p, scores, row, flip);
  if (k == 0) {
    __builtin_memset(patches, 0, size_t(n));
    return;
  }
  take<T, true>(scores, n, flip, cut, true, patches);
  const int64_t visible = p.hinted < k - 1 ? p.hinted : k - 1;
  if (visible == 0) return;
  if (!p.lowest) {
    // The highest of the selected are the highest of all.
    take<T, false>(scores, n, flip, top(scores, n, visible, flip), false, patches);
    return;
  }
  // The visible-th highest of the k lowest is the (k - visible + 1)-th lowest of all. Of the selected at its key, the
  // first by index are left visible, as many as are still wanted after those above it.
  const Key<T> key_at = top(scores, n, k - visible + 1, flip).key;
  int64_t ties = visible;
  for (int64_t i = 0; i < n; ++i) ties -= patches[i] && key_of(scores[i], flip) < key_at;
  for (int64_t i = 0; i < n; ++i) {
    const Key<T> key = key_of(scores[i], flip);
    if (patches[i] && (key < key_at || (key == key_at && ties-- > 0))) patches[i] = false;
  }
}

int64_t items(const SelectParams& p) { return p.length > 0 ? p.rows : 0; }

void run(const SelectParams& p, const Memory&, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) p.is_double ? select_row<double>(p, row) : select_row<float>(p, row);
}

}  // namespace

const Stage<SelectParams> select = {items, run, nullptr, nullptr, nullptr};

}  // namespace entmask::cpu::ENTMASK_ISA
