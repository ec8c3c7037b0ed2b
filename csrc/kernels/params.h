// The plain structs that the CPU and CUDA kernels share.
//
// Below csrc/kernels no torch header is seen: a kernel gets raw pointers, these structs and (on CUDA) a stream. It
// never allocates, never throws and never knows a tensor; csrc/ops has checked every shape and dtype before it runs.
//
// Shapes are written with N images, K classes, C channels, S = D x H x W pixels (2-D: D = 1), a grid of
// G = Gd x Gh x Gw patches and P = Gd * Gh * Gw patches per image.
#pragma once

#include <cstdint>

namespace entmask {

// The ops take no more classes than this.
constexpr int64_t kMaxClasses = 2048;

enum class Dtype : int32_t { float32, float64, float16, bfloat16, int64 };  // int64: of a Number only
enum class LabelDtype : int32_t { none, uint8, int64 };
// What is called a pixel's uncertainty, with p = softmax(logits) and p1 >= p2 its two largest, of the first maximum and
// of the first maximum of the other classes:
//   entropy            -sum_k p_k ln p_k / ln K
//   least_confidence   (1 - p1) K / (K - 1)
//   margin             1 - (p1 - p2)
// each clamped to [0, 1]; NaN where a class is NaN or +inf, or all are -inf. A class at -inf adds 0.
enum class Uncertainty : int32_t { entropy, least_confidence, margin };

// What a pixel gets in place of a label that is not sure enough.
constexpr int32_t kIgnoredUint8 = 255, kIgnoredInt64 = -100;

// Sizes in pixels, patch sizes in pixels, patches per axis: [depth, height, width], count = ceil(size / patch).
// A patch cut by the image's edge has fewer pixels. 2-D: size[0] = patch[0] = count[0] = 1.
struct Grid {
  int64_t size[3];
  int64_t patch[3];
  int64_t count[3];
};

// Strides in elements of an [N, C, D, H, W] tensor ([N, D, H, W]: c unused). Any value is allowed, 0 (expanded) too.
struct Strides {
  int64_t n, c, d, h, w;
};

// A number that the host knows (data == nullptr: value holds), or one that the kernel reads itself, so that a schedule
// needs no host sync and does not break a CUDA graph. There may be one per row (stride 1) or one for all (stride 0).
struct Number {
  double value;
  const void* data;
  int64_t stride;
  Dtype dtype;  // of data
};

// Uncertainty pooled over patches, and the pseudo-label, in one pass over the logits.
//   score = mean of the uncertainty over the patch's pixels, or the fraction of them with >= threshold (NaN counts)
//   label = the first maximum, NaN wins; gated: the ignored label unless p1 = 1 / (1 + z) >= min_confidence, and for a
//   pixel of NaN, z = sum of exp(x - max) over the classes other than the first maximum
struct EntropyPoolParams {
  const void* logits;  // [N, K, D, H, W], strides below
  void* scores;        // [N, Gd, Gh, Gw] contiguous, float32 (float64 for float64 logits)
  void* labels;        // [N, D, H, W] contiguous, label_dtype; nullptr when label_dtype is none
  Strides logits_stride;
  Dtype dtype;
  LabelDtype label_dtype;
  int64_t batch, classes;
  Grid grid;
  Uncertainty uncertainty;
  bool count;
  bool gated;
  Number threshold;       // a row is an image. Rounded to the dtype of scores before comparing; none reaches a NaN
  Number min_confidence;  // one for all, rounded likewise; nothing reaches a NaN
};

// Uncertainty of each pixel.
struct EntropyMapParams {
  const void* logits;  // [N, K, D, H, W]
  void* entropy;       // [N, D, H, W] contiguous, float32 (float64 for float64 logits)
  Strides logits_stride;
  Dtype dtype;
  int64_t batch, classes;
  int64_t size[3];
  Uncertainty uncertainty;
  bool normalize;  // entropy: divide by ln K and clamp to [0, 1]; else nats
};

// The labels alone, as EntropyPoolParams says, and how many of them are kept.
struct PseudoLabelsParams {
  const void* logits;  // [N, K, D, H, W]
  void* labels;        // [N, D, H, W] contiguous, label_dtype (never none)
  float* accepted;     // [N]: each image's share of labels that are not the ignored one; 0 for an image without pixels
  Strides logits_stride;
  Dtype dtype;
  LabelDtype label_dtype;
  int64_t batch, classes;
  int64_t size[3];
  bool gated;
  Number min_confidence;  // one for all, rounded to the compute dtype
};

// Gradient of the uncertainty map, or of the mean scores, with respect to the logits, of the formula before clamping:
//   entropy            -p_j (ln p_j + H) [H in nats], over ln K if normalized
//   least_confidence   K / (K - 1) p1 (p_j - [j = 1])
//   margin             p1 (p_j - [j = 1]) - p2 (p_j - [j = 2]), [j = 1] the class of p1, [j = 2] that of p2
// times grad; a class at -inf gets 0. Pooled: a pixel's grad is grad[patch] / pixels of the patch.
struct EntropyBackwardParams {
  const void* logits;  // [N, K, D, H, W]
  const void*
      grad;  // pooled: [N, Gd, Gh, Gw], else [N, D, H, W]; strides below (c unused); float32, float64 for float64
  void* grad_logits;  // [N, K, D, H, W], dense, dtype of logits, strides below
  Strides logits_stride;
  Strides grad_stride;
  Strides grad_logits_stride;
  Dtype dtype;
  int64_t batch, classes;
  Grid grid;  // not pooled: patch = size, count = 1
  Uncertainty uncertainty;
  bool pooled;
  bool normalize;  // of entropy
};

// Which patches of each row are selected. Scores rank by value, NaN above +inf, -0 equal to +0; ties go to the lower
// index.
//   k selected                                                                                      by_ratio
//   min(P, max(min_patches, #{score >= min_score})) selected (lowest: <=)                           else
//   selected = the highest (lowest: lowest) scores; of these, the min(hinted, selected - 1) highest-scored are taken
//   out again (ties: the lower index first).
// The op computes k and hinted in exact arithmetic; a kernel does so only for a ratio that it reads itself:
//   k = ratio > 0 ? min(P, max(1, floor(min(ratio, 1) P + 1e-6))) : 0, with the product rounded before the sum
struct SelectParams {
  const void* scores;  // [rows, P] contiguous, float32 or float64
  bool* patches;       // [rows, P] contiguous
  int64_t rows, length;
  bool is_double;
  bool by_ratio;
  bool lowest;
  int64_t k;         // by_ratio, where ratio.data is nullptr: in [0, P]
  Number ratio;      // data only: a fraction (NaN selects nothing), or int64: k itself, clamped to [0, P]. CPU: int64
  Number min_score;  // rounded to the dtype of scores before comparing; NaN selects nothing. CPU: data in that dtype
  int64_t min_patches;
  int64_t hinted;  // floor(hint P + 1e-6)
};

// out = inside where the pixel's patch is True, outside elsewhere; and the mask of these pixels. Elements are moved as
// bits of their size: no dtype is known here. The pixels of the side that is not taken do not reach the result; the CPU
// may read them.
struct WhereParams {
  const void* inside;   // [N, C, D, H, W], strides below; nullptr: number
  const void* outside;  // the same; nullptr: number
  void* out;            // [N, C, D, H, W], dense, strides below
  void* mask;           // [N, D, H, W] contiguous, mask_bytes per element; nullptr: not asked for
  const bool* patches;  // [N, Gd, Gh, Gw] contiguous, or with patches_stride 0 [1, Gd, Gh, Gw]
  Strides inside_stride;
  Strides outside_stride;
  Strides out_stride;
  int64_t patches_stride;  // from an image's patches to the next's: P, or 0: the same for all images
  int64_t bytes;           // per element of inside, outside and out: 1, 2, 4 or 8
  int64_t mask_bytes;      // bytes, or 1
  uint64_t number;         // the bits of the number, lowest bytes first
  uint64_t one;            // the bits of a 1 of the mask
  int64_t batch, channels;
  Grid grid;
};

// True inside a box of each image.
//   out[n, d, h, w] = boxes[n, 0] <= d < boxes[n, 1] and boxes[n, 2] <= h < boxes[n, 3] and boxes[n, 4] <= w < boxes[n,
//   5]
struct BoxMaskParams {
  const int64_t* boxes;  // [N, 2 * axes] contiguous; 2-D: without the depth's two
  bool* out;             // [N, D, H, W] contiguous
  int64_t batch, axes;
  int64_t size[3];
};

// Region-weighted cross entropy and soft Dice of the student's logits against the pseudo-labels.
//   l = -log softmax(logits)[label], w = class_weight[label] (1 without class_weight; a pixel of weight 0 adds 0)
//   ce_masked = sum_M w l / (sum_M w + offset), ce_visible the same outside M; 0 where the region's sum of w is 0
//   D = mean_k [1 - (2 I_k + smooth) / (Q_k + T_k + smooth)], I_k = sum p_k [label = k], Q_k = sum p_k^2,
//   T_k = #{label = k}
//   dice = D over all pixels; with dice_each mask_weight * D over M + visible_weight * D outside M, where a region
//   without pixels adds 0
//   total = ce_weight * (mask_weight * ce_masked + visible_weight * ce_visible) + dice_weight * dice
// Pixels with a label outside [0, K) are in no sum. Without patches every pixel is visible.
//
// sums: double [4 + 3 K]: sum_M w l, sum_M w, sum_V w l, sum_V w, I_0.., Q_0.., T_0..; with dice_each [4 + 6 K], I, Q
// and T of M, then those of the visible pixels.
struct LossParams {
  const void* logits;        // [N, K, D, H, W]
  const void* labels;        // [N, D, H, W], strides below (c unused), label_dtype (never none)
  const bool* patches;       // [N, Gd, Gh, Gw] contiguous, with patches_stride 0 [1, Gd, Gh, Gw], or nullptr
  const void* class_weight;  // [K] contiguous float32 (float64 for float64 logits), or nullptr
  Strides logits_stride;
  Strides labels_stride;
  int64_t patches_stride;  // from an image's patches to the next's: P, or 0: the same for all images
  Dtype dtype;
  LabelDtype label_dtype;
  int64_t batch, classes;
  Grid grid;       // without patches: patch = size, count = 1
  bool dice_each;  // Dice of each region, not of all pixels
  double mask_weight, visible_weight, ce_weight, dice_weight, smooth, denominator_offset;
};

struct LossForwardParams {
  LossParams loss;
  double* sums;  // [4 + 3 K], with dice_each [4 + 6 K]
  void* total;   // 0-d each: float32, float64 for float64 logits
  void* ce_masked;
  void* ce_visible;
  void* dice;
};

// With A = d(out)/d(ce of the pixel's region) / (sum w + offset) and
//   c_k = d(out)/d(D) / K,  q_k = c_k (-2 [label = k] / (Z_k + smooth) + 2 p_k (2 I_k + smooth) / (Z_k + smooth)^2),
//   Z = Q + T, with dice_each those of the pixel's region: d(out)/dx_j = A w (p_j - [label = j]) + p_j (q_j - sum_k p_k
//   q_k)
struct LossBackwardParams {
  LossParams loss;
  const double* sums;      // as the forward left them
  const void* grad_total;  // 0-d each, dtype of the outputs; nullptr: no gradient came
  const void* grad_ce_masked;
  const void* grad_ce_visible;
  const void* grad_dice;
  void* grad_logits;  // [N, K, D, H, W], dense, dtype of logits, strides below
  Strides grad_logits_stride;
};

// The distance between the softmax p of logits and the softmax q of a target's, the mean over the pixels of where.
//   of a pixel: sum_k (p_k - q_k)^2, or with kl sum_k q_k (ln q_k - ln p_k), where a class with q_k = 0 adds 0
// 0 where there are no pixels. What stands in the pixels outside does not matter.
//
// sums: double [2]: the sum over the pixels, and their number.
struct SoftLossParams {
  const void* logits;  // [N, K, D, H, W], strides below
  const void* target;  // the same
  const bool* where;   // [N, D, H, W], strides below (c unused), or nullptr: all pixels
  Strides logits_stride;
  Strides target_stride;
  Strides where_stride;
  Dtype dtype;
  Dtype target_dtype;
  int64_t batch, classes;
  int64_t size[3];
  bool kl;
};

struct SoftLossForwardParams {
  SoftLossParams loss;
  double* sums;  // [2]
  void* mean;    // 0-d: float64 where either dtype is, else float32
};

// With g = d(out)/d(mean) / number of pixels:
//   d(out)/dx_j = 2 g p_j ((p_j - q_j) - sum_k p_k (p_k - q_k)), or with kl g (p_j - q_j); 0 in pixels outside.
struct SoftLossBackwardParams {
  SoftLossParams loss;
  const double* sums;  // [2], as the forward left them
  const void* grad;    // 0-d, dtype of the mean
  void* grad_logits;   // [N, K, D, H, W], dense, dtype of logits, strides below
  Strides grad_logits_stride;
};

// Patches moved among the images of a group of `group` consecutive images; patches of a group are numbered image by
// image. Elements are moved as bits of their size.
//   out[i] = x[source[i]], or with inverse out[source[i]] = x[i]
// On the CPU the op has checked that entries are in [0, group * P), and inverse is false: it inverts the source itself.
// On CUDA an entry outside writes 0 (inverse: nothing).
struct GatherParams {
  const void* x;          // [N, C, D, H, W], strides below
  void* out;              // [N, C, D, H, W], dense, strides below
  const int64_t* source;  // [group * P] contiguous
  Strides x_stride;
  Strides out_stride;
  int64_t bytes;  // per element: 1, 2, 4 or 8
  int64_t batch, channels, group;
  Grid grid;  // sizes are multiples of the patch
  bool inverse;
};

// The gradient of out[i] = x[source[i]] over the whole batch: of each patch the sum over those that took it, in the
// order of takers.
//   out[q] = sum_j grad[takers[j]], first[q] <= j < first[q + 1]
struct GatherBackwardParams {
  const void* grad;       // [N, C, D, H, W], strides below
  void* out;              // [N, C, D, H, W], dense, same dtype, strides below
  const int64_t* takers;  // [N P] contiguous, numbers of patches
  const int64_t* first;   // [N P + 1] contiguous
  Strides grad_stride;
  Strides out_stride;
  Dtype dtype;
  int64_t batch, channels;
  Grid grid;  // sizes are multiples of the patch
};

// Of each class 1 .. classes - 1 of each image only the component with the most pixels stays, the first in the order of
// pixels among equals; the pixels of the others become 0. A label outside [0, classes) stays.
// Two pixels of a class are neighbours where they differ by at most 1 along each axis, along at most `connectivity`
// axes.
struct ComponentsParams {
  const void* labels;  // [N, D, H, W] contiguous, label_dtype (never none)
  void* out;           // the same
  LabelDtype label_dtype;
  int64_t batch;
  int64_t size[3];  // fewer than 2^31 pixels per image
  int64_t classes;
  int64_t connectivity;  // 1 to the number of spatial axes
};

}  // namespace entmask
