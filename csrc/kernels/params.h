// The plain structs that the CPU and CUDA kernels share.
//
// Below csrc/kernels no torch header is seen: a kernel gets raw pointers, these structs and (on CUDA) a stream. It
// never allocates, never throws and never knows a tensor; csrc/ops has checked every shape and dtype before it runs.
//
// Shapes are written with N images, K classes, C channels, S = D x H x W pixels (2-D: D = 1), a grid of
// G = Gd x Gh x Gw patches and P = Gd * Gh * Gw patches an image.
#pragma once

#include <cstdint>

namespace entmask {

// The ops take no more classes than this.
constexpr int64_t kMaxClasses = 2048;

enum class Dtype : int32_t { float32, float64, float16, bfloat16 };
enum class LabelDtype : int32_t { none, uint8, int64 };

// Sizes in pixels, patch sizes in pixels, patches an axis: [depth, height, width], count = ceil(size / patch).
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

// A number that the caller passed (device == nullptr: value holds), or a 0-d tensor that the kernel reads itself, so
// that a schedule needs no host sync and does not break a CUDA graph.
struct Scalar {
  double value;
  const void* device;
  Dtype dtype;
};

// Softmax entropy pooled over patches, and the pseudo-label, in one pass over the logits.
//   H = -sum_k p_k ln p_k / ln K clamped to [0, 1], p = softmax(logits)
//   score = mean of H over the patch's pixels, or the fraction of them with H >= threshold (NaN counts)
struct EntropyPoolParams {
  const void* logits;  // [N, K, D, H, W], strides below
  void* scores;        // [N, Gd, Gh, Gw] contiguous, float32 (float64 for float64 logits)
  void* labels;  // [N, D, H, W] contiguous, label_dtype; nullptr when label_dtype is none. First maximum, NaN wins
  Strides logits_stride;
  Dtype dtype;
  LabelDtype label_dtype;
  int64_t batch, classes;
  Grid grid;
  bool count;
  Scalar threshold;  // rounded to the dtype of scores before comparing
};

// Entropy of each pixel.
struct EntropyMapParams {
  const void* logits;  // [N, K, D, H, W]
  void* entropy;       // [N, D, H, W] contiguous, float32 (float64 for float64 logits)
  Strides logits_stride;
  Dtype dtype;
  int64_t batch, classes;
  int64_t size[3];
  bool normalize;  // divide by ln K and clamp to [0, 1]; else nats
};

// Gradient of the entropy map, or of the mean scores, with respect to the logits:
//   dH/dx_j = -p_j (ln p_j + H) [H in nats], times grad, over ln K if normalized; a class at -inf gets 0.
// Pooled: a pixel's grad is grad[patch] / pixels of the patch.
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
  bool pooled;
  bool normalize;
};

// Which patches of each row are masked. Scores rank by value, NaN above +inf, -0 equal to +0; ties go to the lower
// index.
//   k = ratio > 0 ? min(P, max(1, floor(ratio * P + 1e-6))) : 0                                     by_ratio
//   k = min(P, max(min_patches, #{score >= min_score}))      (lowest: <=)                           else
//   selected = the k highest (lowest: lowest) scores; of these, the min(floor(hint * P + 1e-6), k - 1) highest-scored
//   are left unmasked (ties: the lower index is left first).
// ratio is clamped to [0, 1] when it is read from the device; a NaN there selects nothing.
struct SelectParams {
  const void* scores;  // [rows, P] contiguous, float32 or float64
  bool* patches;       // [rows, P] contiguous
  int64_t rows, length;
  bool is_double;
  bool by_ratio;
  bool lowest;
  Scalar ratio;
  Scalar min_score;  // rounded to the dtype of scores before comparing
  int64_t min_patches;
  double hint;
};

// The masked image and the mask of pixels.
struct ApplyParams {
  const void* image;    // [N, C, D, H, W], strides below; the pixels of masked patches are not read
  void* out;            // [N, C, D, H, W], dense, same dtype, strides below
  void* mask;           // [N, 1, D, H, W] contiguous, dtype of image or bool, 1 = masked; nullptr: not asked for
  const bool* patches;  // [N, Gd, Gh, Gw] contiguous
  Strides image_stride;
  Strides out_stride;
  Dtype dtype;
  bool mask_is_bool;
  int64_t batch, channels;
  Grid grid;
  double fill;
};

// Region-weighted cross entropy and soft Dice of the student's logits against the pseudo-labels.
//   l = -log softmax(logits)[label], w = class_weight[label] (1 without class_weight; a pixel of weight 0 adds 0)
//   ce_masked = sum_M w l / (sum_M w + offset), ce_visible the same outside M; 0 where the region's sum of w is 0
//   dice = mean_k [1 - (2 I_k + smooth) / (Q_k + T_k + smooth)], I_k = sum p_k [label = k], Q_k = sum p_k^2, T_k =
//   #{label = k} total = ce_weight * (mask_weight * ce_masked + ce_visible) + dice_weight * dice
// Pixels with a label outside [0, K) are in no sum. Without patches every pixel is visible.
//
// sums: double [4 + 3 K]: sum_M w l, sum_M w, sum_V w l, sum_V w, I_0.., Q_0.., T_0..
struct LossParams {
  const void* logits;        // [N, K, D, H, W]
  const void* labels;        // [N, D, H, W], strides below (c unused), label_dtype (never none)
  const bool* patches;       // [N, Gd, Gh, Gw] contiguous, or nullptr
  const void* class_weight;  // [K] contiguous float32 (float64 for float64 logits), or nullptr
  Strides logits_stride;
  Strides labels_stride;
  Dtype dtype;
  LabelDtype label_dtype;
  int64_t batch, classes;
  Grid grid;  // without patches: patch = size, count = 1
  double mask_weight, ce_weight, dice_weight, smooth, denominator_offset;
};

struct LossForwardParams {
  LossParams loss;
  double* sums;  // [4 + 3 K]
  void* total;   // 0-d each: float32, float64 for float64 logits
  void* ce_masked;
  void* ce_visible;
  void* dice;
};

// With A = d(out)/d(ce of the pixel's region) / (sum w + offset) and
//   c_k = d(out)/d(dice) / K,  q_k = c_k (-2 [label = k] / (Z_k + smooth) + 2 p_k (2 I_k + smooth) / (Z_k + smooth)^2),
//   Z = Q + T: d(out)/dx_j = A w (p_j - [label = j]) + p_j (q_j - sum_k p_k q_k)
struct LossBackwardParams {
  LossParams loss;
  const double* sums;      // [4 + 3 K], as the forward left them
  const void* grad_total;  // 0-d each, dtype of the outputs; nullptr: no gradient came
  const void* grad_ce_masked;
  const void* grad_ce_visible;
  const void* grad_dice;
  void* grad_logits;  // [N, K, D, H, W], dense, dtype of logits, strides below
  Strides grad_logits_stride;
};

// Patches moved among the images of a group of `group` consecutive images; patches of a group are numbered image by
// image.
//   out[i] = x[permutation[i]], or with inverse out[permutation[i]] = x[i]
// Entries are in [0, group * P): the op has checked them on CPU; on CUDA an entry outside writes NaN (inverse:
// nothing).
struct ShuffleParams {
  const void* x;               // [N, C, D, H, W], strides below
  void* out;                   // [N, C, D, H, W], dense, same dtype, strides below
  const int64_t* permutation;  // [group * P] contiguous
  Strides x_stride;
  Strides out_stride;
  Dtype dtype;
  int64_t batch, channels, group;
  Grid grid;  // sizes are multiples of the patch
  bool inverse;
};

}  // namespace entmask
