// The ops, called through the dispatcher: what the pybind11 module exposes and what autograd formulas are made of.
// Semantics and shapes: the docstrings of entmask_ext. Each number with a *_tensor beside it may be passed either way.
#pragma once

#include "common.h"

namespace entmask::ops {

using std::optional;
using std::string_view;

using PatchMaskResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;  // image, mask, patches, scores, labels
PatchMaskResult patch_mask(const Tensor& image, const Tensor& logits, at::IntArrayRef patch_size,
                           optional<double> ratio, const OptionalTensor& ratio_tensor, string_view score,
                           double threshold, const OptionalTensor& threshold_tensor, optional<double> min_score,
                           const OptionalTensor& min_score_tensor, int64_t min_patches, string_view order, double hint,
                           string_view scope, double fill, optional<at::ScalarType> mask_dtype,
                           optional<at::ScalarType> label_dtype);

using ScoredMaskResult = std::tuple<Tensor, Tensor, Tensor>;  // image, mask, patches
ScoredMaskResult patch_mask_from_scores(const Tensor& image, const Tensor& scores, at::IntArrayRef patch_size,
                                        optional<double> ratio, const OptionalTensor& ratio_tensor,
                                        optional<double> min_score, const OptionalTensor& min_score_tensor,
                                        int64_t min_patches, string_view order, double hint, string_view scope,
                                        double fill, optional<at::ScalarType> mask_dtype);

// image with the pixels of masked patches set to fill; its gradient is itself with fill 0.
Tensor apply_mask(const Tensor& image, const Tensor& patches, at::IntArrayRef patch_size, double fill);

Tensor patch_scores(const Tensor& logits, at::IntArrayRef patch_size, string_view score, double threshold,
                    const OptionalTensor& threshold_tensor);
Tensor patch_scores_backward(const Tensor& grad, const Tensor& logits, at::IntArrayRef patch_size);
Tensor entropy_map(const Tensor& logits, bool normalize);
Tensor entropy_map_backward(const Tensor& grad, const Tensor& logits, bool normalize);

using LossResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;  // total, ce_masked, ce_visible, dice, sums
LossResult consistency_loss(const Tensor& logits, const Tensor& labels, const OptionalTensor& patches,
                            at::OptionalIntArrayRef patch_size, double mask_weight, const OptionalTensor& class_weight,
                            double ce_weight, double dice_weight, double smooth, double denominator_offset);
Tensor consistency_loss_backward(const OptionalTensor& grad_total, const OptionalTensor& grad_ce_masked,
                                 const OptionalTensor& grad_ce_visible, const OptionalTensor& grad_dice,
                                 const Tensor& logits, const Tensor& labels, const OptionalTensor& patches,
                                 at::OptionalIntArrayRef patch_size, const OptionalTensor& class_weight,
                                 const Tensor& sums, double mask_weight, double ce_weight, double dice_weight,
                                 double smooth, double denominator_offset);

Tensor shuffle_patches(const Tensor& x, at::IntArrayRef patch_size, const Tensor& permutation, bool inverse);

}  // namespace entmask::ops
