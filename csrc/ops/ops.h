// The primitives, called through the dispatcher: what composed ops and autograd formulas are made of.
// Semantics and shapes: the docstrings of entmask_ext. A number with a *_tensor beside it may be passed either way.
#pragma once

#include "arguments.h"

namespace entmask::ops {

// scores (N, *G), labels (N, *S); labels of shape (0,) where label_dtype is nullopt.
std::tuple<Tensor, Tensor> score_patches(const Tensor& logits, at::IntArrayRef patch_size, string_view uncertainty,
                                         string_view score, double threshold, const OptionalTensor& threshold_tensor,
                                         optional<at::ScalarType> label_dtype, optional<double> min_confidence,
                                         const OptionalTensor& min_confidence_tensor);
Tensor score_patches_backward(const Tensor& grad, const Tensor& logits, at::IntArrayRef patch_size,
                              string_view uncertainty);

Tensor entropy_map(const Tensor& logits, bool normalize);
Tensor entropy_map_backward(const Tensor& grad, const Tensor& logits, bool normalize);
Tensor uncertainty_map(const Tensor& logits, string_view uncertainty);
Tensor uncertainty_map_backward(const Tensor& grad, const Tensor& logits, string_view uncertainty);

// labels (N, *S), accepted (N,).
std::tuple<Tensor, Tensor> pseudo_labels(const Tensor& logits, optional<double> min_confidence,
                                         const OptionalTensor& min_confidence_tensor, at::ScalarType label_dtype);

// image, mask; a side is a tensor or a number.
std::tuple<Tensor, Tensor> patch_where(const Tensor& patches, const optional<at::Scalar>& inside,
                                       const OptionalTensor& inside_tensor, const optional<at::Scalar>& outside,
                                       const OptionalTensor& outside_tensor, at::IntArrayRef patch_size,
                                       optional<at::ScalarType> mask_dtype);

using LossResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;  // total, ce_masked, ce_visible, dice, sums
LossResult consistency_loss(const Tensor& logits, const Tensor& labels, const OptionalTensor& patches,
                            at::OptionalIntArrayRef patch_size, double mask_weight, double visible_weight,
                            const OptionalTensor& class_weight, double ce_weight, double dice_weight, double smooth,
                            double denominator_offset, string_view dice_region);
Tensor consistency_loss_backward(const OptionalTensor& grad_total, const OptionalTensor& grad_ce_masked,
                                 const OptionalTensor& grad_ce_visible, const OptionalTensor& grad_dice,
                                 const Tensor& logits, const Tensor& labels, const OptionalTensor& patches,
                                 at::OptionalIntArrayRef patch_size, const OptionalTensor& class_weight,
                                 const Tensor& sums, double mask_weight, double visible_weight, double ce_weight,
                                 double dice_weight, double smooth, double denominator_offset, string_view dice_region);

// loss, sums
std::tuple<Tensor, Tensor> soft_consistency_loss(const Tensor& logits, const Tensor& target_logits,
                                                 const OptionalTensor& where, string_view kind);
Tensor soft_consistency_loss_backward(const Tensor& grad, const Tensor& logits, const Tensor& target_logits,
                                      const OptionalTensor& where, string_view kind, const Tensor& sums);

Tensor shuffle_patches(const Tensor& x, at::IntArrayRef patch_size, const Tensor& permutation, bool inverse);

}  // namespace entmask::ops
