"""Ways to break the kernels, one place a time: exact text of csrc/kernels/cuda, and what replaces it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """`old` must occur exactly once in `file`. `equivalent`: why no test can see it, or "" where one must."""

    what: str
    file: str
    old: str
    new: str
    tests: str  # of tests/simt, those that can see it
    build: str = "plain"  # the first that should
    equivalent: str = ""


ENTROPY = "test_entropy.py"
SELECT = "test_select.py"
MOVES = "test_apply.py"
LOSS = "test_loss.py"
RACES = "test_races.py"

MUTANTS = [
    # ---- Entropy
    Mutant(
        "pool: no barrier between the warps' sums and their reader",
        "entropy_pool.cuh",
        "    __syncthreads();\n    if (lane == 0) {",
        "    if (lane == 0) {",
        ENTROPY,
    ),
    Mutant(
        "pool: the last warp of a group is left out",
        "entropy_pool.cuh",
        "for (int w = 1; w < group / 32; ++w)",
        "for (int w = 1; w < group / 32 - 1; ++w)",
        ENTROPY,
    ),
    Mutant(
        "pool: a group's last lanes begin a vector too far",
        "entropy_pool.cuh",
        "for (int32_t v = lane; v < vectors; v += group)",
        "for (int32_t v = lane + 1; v < vectors; v += group)",
        ENTROPY,
    ),
    Mutant(
        "pool: a patch cut by the edge is divided by the whole patch's pixels",
        "entropy_pool.cuh",
        "box.extent[axis] = box.last[axis] ? left : f.patch[axis];",
        "box.extent[axis] = f.patch[axis];",
        ENTROPY,
    ),
    Mutant(
        "pool: NaN does not count",
        "entropy_pool.cuh",
        "static_cast<F>(!(entropy < threshold))",
        "static_cast<F>(entropy >= threshold)",
        ENTROPY,
    ),
    Mutant(
        "pool: a value on the threshold does not count",
        "entropy_pool.cuh",
        "static_cast<F>(!(entropy < threshold))",
        "static_cast<F>(!(entropy <= threshold))",
        ENTROPY,
    ),
    Mutant(
        "pool: the parts of a split patch beyond 32 are lost",
        "entropy_pool.cuh",
        "part < f.parts; part += 32) sum",
        "part < f.parts && part < 32; part += 32) sum",
        f"{ENTROPY} {SELECT}",
    ),
    Mutant(
        "pool: every lane writes the score",
        "entropy_pool.cuh",
        "if (lane == 0 && unit < a.units) {",
        "if (unit < a.units) {",
        f"{ENTROPY} {RACES}",
    ),
    Mutant(
        "pool: parts written beyond the workspace",
        "entropy_pool.cuh",
        "      a.partials[unit] = sum;",
        "      a.partials[unit + 1] = sum;",
        ENTROPY,
    ),
    Mutant(
        "labels: the last of several maxima",
        "math.cuh",
        "return !(v <= max) && max == max;",
        "return !(v < max) && max == max;",
        ENTROPY,
    ),
    Mutant(
        "labels: NaN does not lead",
        "math.cuh",
        "return !(v <= max) && max == max;",
        "return v > max;",
        ENTROPY,
    ),
    Mutant(
        "entropy: a class at -inf gives NaN",
        "math.cuh",
        "return e * greater_of(d, static_cast<F>(-1000));",
        "return e * d;",
        ENTROPY,
    ),
    Mutant(
        "entropy: +inf does not give NaN",
        "math.cuh",
        "__device__ __forceinline__ F poison() const { return max - max; }",
        "__device__ __forceinline__ F poison() const { return 0; }",
        ENTROPY,
    ),
    Mutant(
        "entropy: the sums of many classes are not moved when the greatest rises",
        "math.cuh",
        "if (max > reference + slack) move(max);",
        "",
        ENTROPY,
        equivalent="",
    ),
    Mutant(
        "sum_lanes: the last step of the butterfly is lost",
        "math.cuh",
        "for (int distance = width / 2; distance > 0; distance /= 2) v +=",
        "for (int distance = width / 2; distance > 1; distance /= 2) v +=",
        ENTROPY,
    ),
    Mutant(
        "sum_lanes: half of the warp in the mask",
        "math.cuh",
        "v += __shfl_xor_sync(full_warp, v, distance);",
        "v += __shfl_xor_sync(0xffffu, v, distance);",
        ENTROPY,
    ),
    Mutant(
        "sum_lanes_spread: the wrong half is given away",
        "math.cuh",
        "given = upper ? v[i] : v[half + i];",
        "given = upper ? v[half + i] : v[i];",
        LOSS,
    ),
    Mutant(
        "clamp: above 1 stays",
        "math.cuh",
        "return v < 0 ? 0 : v > 1 ? 1 : v;",
        "return v < 0 ? 0 : v;",
        ENTROPY,
        equivalent="only rounding takes a normalized entropy above 1, by less than the tests allow",
    ),
    Mutant(
        "map: a step one pixel too long",
        "entropy_map.cuh",
        "PixelIndex(p.batch, p.size, S::pixels)",
        "PixelIndex(p.batch, p.size, S::pixels + 1)",
        ENTROPY,
    ),
    Mutant(
        "backward: a cut patch's pixels are not counted",
        "entropy_map.cuh",
        "left < a.patch[axis].divisor ? left : a.patch[axis].divisor",
        "a.patch[axis].divisor",
        ENTROPY,
    ),
    # ---- Loads
    Mutant(
        "load: 16 bytes at a time without a look at the address",
        "load.cuh",
        "if (s.w == 1 && address % 16 == 0 &&",
        "if (s.w == 1 &&",
        ENTROPY,
    ),
    Mutant(
        "load: 16 bytes at a time without a look at the row's length",
        "load.cuh",
        "grid.size[2] % vector == 0 &&",
        "true &&",
        ENTROPY,
    ),
    Mutant(
        "load: a chunk's missing classes are read",
        "load.cuh",
        "if (k < count) load(raw[k], p + k * class_stride);",
        "load(raw[k], p + k * class_stride);",
        ENTROPY,
        build="asan",
    ),
    Mutant(
        "store: a chunk's missing classes are written",
        "load.cuh",
        "if (k < count) store(p + k * class_stride, raw);",
        "store(p + k * class_stride, raw);",
        ENTROPY,
    ),
    Mutant(
        "division: the magic number is one too small",
        "index.cuh",
        "(uint64_t{1} << (31 + log)) / d + 1);",
        "(uint64_t{1} << (31 + log)) / d);",
        ENTROPY,
    ),
    # ---- Selection
    Mutant(
        "rank: ties go to the higher index",
        "select_row.cuh",
        "before += key == own && j < i;",
        "before += key == own && j > i;",
        SELECT,
    ),
    Mutant(
        "rank: no barrier after the keys are staged",
        "select_row.cuh",
        "  }\n  __syncthreads();\n  const K limit = rule.limit<F>();\n  for (int32_t i",
        "  }\n  const K limit = rule.limit<F>();\n  for (int32_t i",
        SELECT,
    ),
    Mutant(
        "block: the count is read before all have added to it",
        "select_row.cuh",
        "  __syncthreads();\n  const Chosen c = chosen(rule, passing);",
        "  const Chosen c = chosen(rule, passing);",
        SELECT,
    ),
    Mutant(
        "block: the count is not zeroed",
        "select_row.cuh",
        "  if (threadIdx.x == 0) passing = 0;\n",
        "",
        SELECT,
    ),
    Mutant(
        "tally: a plain add for an atomic",
        "select.cuh",
        "atomicAdd(&histogram[bin], 1u);",
        "histogram[bin] = histogram[bin] + 1;",
        f"{SELECT} {RACES}",
        build="tsan",
    ),
    Mutant(
        "tally: a vote of the lanes that take part only",
        "select.cuh",
        "if (__all_sync(full_warp, !takes_part || bin == common)) {",
        "if (__all_sync(lanes, !takes_part || bin == common)) {",
        SELECT,
    ),
    Mutant(
        "radix: the histogram is zeroed while the last digit's is read",
        "select.cuh",
        "    __syncthreads();  // the last digit's counts have been read\n",
        "",
        f"{SELECT} {RACES}",
        build="tsan",
    ),
    Mutant(
        "radix: no barrier between zeroing and counting",
        "select.cuh",
        "scratch->histogram[bin] = 0;\n    __syncthreads();\n",
        "scratch->histogram[bin] = 0;\n",
        SELECT,
    ),
    Mutant(
        "locate: stale totals of the warps",
        "select.cuh",
        "  if (lane == 31) scratch->warp_total[thread / 32] = upto;\n  __syncthreads();\n",
        "  if (lane == 31) scratch->warp_total[thread / 32] = upto;\n",
        SELECT,
    ),
    Mutant(
        "mark: the tie counts of the warps before are not waited for",
        "select.cuh",
        "    scratch->high[warp] = high;\n  }\n  __syncthreads();\n",
        "    scratch->high[warp] = high;\n  }\n",
        SELECT,
    ),
    Mutant(
        "mark: one tie too many",
        "select.cuh",
        "low_before < low_to)",
        "low_before <= low_to)",
        SELECT,
    ),
    Mutant(
        "mark: the hint's ties are off by one",
        "select.cuh",
        "high_before >= high_from",
        "high_before > high_from",
        SELECT,
    ),
    Mutant(
        "keys: -0 is below +0",
        "select.cuh",
        "score == 0 ? 0 : score",
        "score",
        SELECT,
    ),
    Mutant(
        "rule: the last selected patch may be hinted away",
        "select.cuh",
        "if (c.hinted > c.k - 1) c.hinted = c.k - 1;",
        "if (c.hinted > c.k) c.hinted = c.k;",
        SELECT,
    ),
    Mutant(
        "rule: a score on min_score does not pass",
        "select.cuh",
        "return lowest ? key <= limit : key >= limit;",
        "return lowest ? key < limit : key > limit;",
        SELECT,
    ),
    Mutant(
        "tiles: no fence before a block is counted in",
        "select_tiles.cuh",
        "  __threadfence();\n  __syncthreads();\n  if (threadIdx.x == 0) *last",
        "  __syncthreads();\n  if (threadIdx.x == 0) *last",
        RACES,
        build="tsan",
    ),
    Mutant(
        "tiles: no fence after the last block is known",
        "select_tiles.cuh",
        "  if (*last) __threadfence();\n",
        "",
        RACES,
        build="tsan",
    ),
    Mutant(
        "tiles: the last block but one goes on",
        "select_tiles.cuh",
        "static_cast<unsigned>(blocks) - 1;",
        "static_cast<unsigned>(blocks) - 2;",
        SELECT,
    ),
    Mutant(
        "tiles: a plain add into the row's counts",
        "select_tiles.cuh",
        "if (count != 0) atomicAdd(&total[row * a.tiling.slots * next_bins + i], static_cast<Count>(count));",
        "total[row * a.tiling.slots * next_bins + i] += count;",
        f"{SELECT} {RACES}",
        build="tsan",
    ),
    Mutant(
        "tiles: the ticket is not zeroed",
        "select_tiles.cuh",
        "  if (t.index == 0 && threadIdx.x < 2) a.arrived[t.row * 2 + threadIdx.x] = 0;\n",
        "",
        SELECT,
    ),
    Mutant(
        "tiles: ties ahead of a tile include its own",
        "select_tiles.cuh",
        "count[base + lane] = before + upto - own;",
        "count[base + lane] = before + upto;",
        SELECT,
    ),
    # ---- Masking and shuffling
    Mutant(
        "apply: the last step is lost",
        "apply.cuh",
        "  if (i < a.rows.total) {",
        "  if (i < a.rows.total - 1) {",
        MOVES,
    ),
    Mutant(
        "apply: kept and masked are swapped",
        "apply.cuh",
        "value[k] = masked ? static_cast<M>(a.one) : M{0};",
        "value[k] = masked ? M{0} : static_cast<M>(a.one);",
        MOVES,
    ),
    Mutant(
        "shuffle: an entry one beyond the end is taken",
        "shuffle.cuh",
        "other >= 0 && other < a.entries;",
        "other >= 0 && other <= a.entries;",
        MOVES,
    ),
    Mutant(
        "shuffle: a negative entry is taken",
        "shuffle.cuh",
        "other >= 0 && other < a.entries;",
        "other < a.entries;",
        MOVES,
    ),
    Mutant(
        "shuffle: forward and inverse are swapped",
        "shuffle.cuh",
        "  if (a.inverse) {",
        "  if (!a.inverse) {",
        MOVES,
    ),
    # ---- Loss
    Mutant(
        "loss: no barrier between the warps' sums and the block's",
        "loss_forward.cuh",
        "warp_sum[warp][lane / lanes_a_value] = total;\n  __syncthreads();\n",
        "warp_sum[warp][lane / lanes_a_value] = total;\n",
        LOSS,
    ),
    Mutant(
        "loss: the last warp is left out",
        "loss_forward.cuh",
        "for (int w = 1; w < loss_warps; ++w) sum += warp_sum[w][threadIdx.x];",
        "for (int w = 1; w < loss_warps - 1; ++w) sum += warp_sum[w][threadIdx.x];",
        LOSS,
    ),
    Mutant(
        "loss: masked and visible are swapped",
        "loss_forward.cuh",
        "sums[0] += masked ? loss : 0;",
        "sums[0] += masked ? 0 : loss;",
        LOSS,
    ),
    Mutant(
        "loss: an ignored pixel is in the squares",
        "loss_forward.cuh",
        "const F probability = label[p] < 0 ? 0 : x[k][p] * scale;",
        "const F probability = x[k][p] * scale;",
        LOSS,
    ),
    Mutant(
        "loss of many classes: sums that nobody has zeroed",
        "loss_forward.cuh",
        "  for (int64_t k = lane; k < 3 * a.classes; k += 32) row[k] = 0;\n",
        "",
        LOSS,
    ),
    Mutant(
        "loss of many classes: no __syncwarp after zeroing",
        "loss_forward.cuh",
        "row[k] = 0;\n  __syncwarp();\n",
        "row[k] = 0;\n",
        f"{LOSS} {RACES}",
        build="tsan",
    ),
    Mutant(
        "loss: the blocks beyond 32 are lost",
        "loss_forward.cuh",
        "for (int64_t block = lane; block < a.blocks; block += 32)",
        "for (int64_t block = lane; block < a.blocks && block < 32; block += 32)",
        LOSS,
    ),
    Mutant(
        "loss: the outputs are written before the sums are",
        "loss_forward.cuh",
        "    if (lane == 0) a.sums[value] = sum;\n  }\n  __syncthreads();\n",
        "    if (lane == 0) a.sums[value] = sum;\n  }\n",
        LOSS,
    ),
    Mutant(
        "loss: a label of K is taken",
        "loss.cuh",
        "value >= 0 && value < a.classes ?",
        "value >= 0 && value <= a.classes ?",
        LOSS,
    ),
    Mutant(
        "loss backward: no barrier after the coefficients are staged",
        "loss_backward.cuh",
        "threadIdx.x == 1);\n  __syncthreads();\n",
        "threadIdx.x == 1);\n",
        LOSS,
    ),
    Mutant(
        "loss backward: an empty region divides by zero",
        "loss_backward.cuh",
        "return weight == 0 ? 0 : static_cast<F>(",
        "return static_cast<F>(",
        LOSS,
    ),
    Mutant(
        "loss backward: ignored pixels have a gradient",
        "loss_backward.cuh",
        "x[k][p] = label[p] >= 0 ? grad : 0;",
        "x[k][p] = grad;",
        LOSS,
    ),
]
