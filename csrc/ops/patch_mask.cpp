// patch_mask, patch_mask_from_scores and apply_mask: scores, selection, masking.
#include <ATen/Functions.h>

#include "ops.h"
#include "register.h"
#include "scores.h"
#include "stages.h"

namespace entmask::ops {
namespace {

// How many patches of a row are masked, checked.
struct Selection {
  bool by_ratio, lowest, batch_scope;
  Scalar ratio, min_score;
  int64_t min_patches;
  double hint;
};

Selection check_selection(const Number& ratio, const Number& min_score, int64_t min_patches, string_view order,
                          double hint, string_view scope, const at::Device& device) {
  TORCH_CHECK_VALUE(!(ratio.given() && min_score.given()), "ratio and min_score exclude each other: got both");
  TORCH_CHECK_VALUE(min_patches >= 0, "min_patches must be >= 0, got ", min_patches);
  TORCH_CHECK_VALUE(min_patches == 0 || min_score.given(),
                    "min_patches needs min_score: with ratio the number is exact. Got ", min_patches);
  TORCH_CHECK_VALUE(order == "highest" || order == "lowest", "order must be 'highest' or 'lowest', got '", order, "'");
  TORCH_CHECK_VALUE(scope == "image" || scope == "batch", "scope must be 'image' or 'batch', got '", scope, "'");
  check_fraction(hint, "hint");
  Selection s{};
  s.by_ratio = !min_score.given();
  s.lowest = order == "lowest";
  s.batch_scope = scope == "batch";
  if (s.by_ratio)
    s.ratio = make_fraction(ratio, 0.75, device);
  else
    s.min_score = make_scalar(min_score, 0, device);
  s.min_patches = min_patches;
  s.hint = hint;
  return s;
}

SelectParams select_params(const Tensor& scores, const Tensor& patches, const Selection& s) {
  const int64_t batch = scores.size(0);
  SelectParams p{};
  p.scores = scores.const_data_ptr();
  p.patches = patches.mutable_data_ptr<bool>();
  p.rows = s.batch_scope ? (batch > 0 ? 1 : 0) : batch;
  p.length = p.rows > 0 ? scores.numel() / p.rows : 0;
  p.is_double = scores.scalar_type() == at::kDouble;
  p.by_ratio = s.by_ratio;
  p.lowest = s.lowest;
  p.ratio = s.ratio;
  p.min_score = s.min_score;
  p.min_patches = s.min_patches;
  p.hint = s.hint;
  return p;
}

Tensor empty_patches(const Tensor& scores) { return at::empty(scores.sizes(), scores.options().dtype(at::kBool)); }

void check_mask_dtype(const Tensor& image, optional<at::ScalarType> dtype) {
  TORCH_CHECK_VALUE(!dtype || *dtype == at::kBool || *dtype == image.scalar_type(),
                    "mask_dtype must be None, torch.bool or the image's dtype ", image.scalar_type(), ", got ", *dtype);
}

// The masked image, and with a mask tensor the mask of pixels.
Tensor apply(const Tensor& image, const Tensor& patches, const Grid& grid, double fill, const Tensor* mask) {
  Tensor out = empty_like_format(image);
  ApplyParams p{};
  p.image = image.const_data_ptr();
  p.out = out.mutable_data_ptr();
  p.mask = mask ? mask->mutable_data_ptr() : nullptr;
  p.patches = patches.const_data_ptr<bool>();
  p.image_stride = strides_of(image);
  p.out_stride = strides_of(out);
  p.dtype = float_dtype(image, "image");
  p.mask_is_bool = mask && mask->scalar_type() == at::kBool;
  p.batch = image.size(0);
  p.channels = image.size(1);
  p.grid = grid;
  p.fill = fill;
  run(p, image.device());
  return out;
}

ScoredMaskResult mask_with(const Tensor& image, const Tensor& patches, const Grid& grid, double fill,
                           optional<at::ScalarType> mask_dtype) {
  auto shape = image.sizes().vec();
  shape[1] = 1;
  const Tensor mask = at::empty(shape, image.options().dtype(mask_dtype.value_or(image.scalar_type())));
  return {apply(image, patches, grid, fill, &mask), mask, patches};
}

PatchMaskResult patch_mask_kernel(const Tensor& image, const Tensor& logits, at::IntArrayRef patch_size,
                                  optional<double> ratio, const OptionalTensor& ratio_tensor, string_view score,
                                  double threshold, const OptionalTensor& threshold_tensor, optional<double> min_score,
                                  const OptionalTensor& min_score_tensor, int64_t min_patches, string_view order,
                                  double hint, string_view scope, double fill, optional<at::ScalarType> mask_dtype,
                                  optional<at::ScalarType> label_dtype) {
  check_image_like(image, "image", "C");
  check_image_like(logits, "logits", "K");
  check_same_device(image, "image", logits, "logits");
  check_classes(logits);
  check_same_image_sizes(image, "image", logits, "logits");
  const Grid grid = make_grid(logits, patch_size);
  const bool count = is_count(score);
  const Scalar limit = make_threshold(threshold, threshold_tensor, logits.device());
  const Selection selection =
      check_selection({"ratio", ratio, ratio_tensor}, {"min_score", min_score, min_score_tensor}, min_patches, order,
                      hint, scope, logits.device());
  check_mask_dtype(image, mask_dtype);
  TORCH_CHECK_VALUE(!label_dtype || *label_dtype == at::kByte || *label_dtype == at::kLong,
                    "label_dtype must be None, torch.uint8 or torch.int64, got ", *label_dtype);
  TORCH_CHECK_VALUE(!label_dtype || *label_dtype != at::kByte || logits.size(1) <= 255,
                    "label_dtype torch.uint8 holds at most 255 classes, logits have ", logits.size(1),
                    ": use torch.int64");

  const Tensor scores = at::empty(grid_shape(logits, grid), logits.options().dtype(compute_dtype(logits)));
  const Tensor labels = label_dtype ? at::empty(pixel_shape(logits), logits.options().dtype(*label_dtype))
                                    : at::empty({0}, logits.options().dtype(at::kByte));
  EntropyPoolParams p = pool_params(logits, grid, count, limit, scores);
  if (label_dtype) {
    p.labels = labels.mutable_data_ptr();
    p.label_dtype = *label_dtype == at::kByte ? LabelDtype::uint8 : LabelDtype::int64;
  }
  const Tensor selected = empty_patches(scores);
  if (selected.numel() > 0) run(p, select_params(scores, selected, selection), logits.device());
  auto [out, mask, patches] = mask_with(image, selected, grid, fill, mask_dtype);
  return {out, mask, patches, scores, labels};
}

ScoredMaskResult patch_mask_from_scores_kernel(const Tensor& image, const Tensor& scores, at::IntArrayRef patch_size,
                                               optional<double> ratio, const OptionalTensor& ratio_tensor,
                                               optional<double> min_score, const OptionalTensor& min_score_tensor,
                                               int64_t min_patches, string_view order, double hint, string_view scope,
                                               double fill, optional<at::ScalarType> mask_dtype) {
  check_image_like(image, "image", "C");
  float_dtype(scores, "scores");
  check_same_device(image, "image", scores, "scores");
  const Grid grid = make_grid(image, patch_size);
  const auto shape = grid_shape(image, grid);
  TORCH_CHECK_VALUE(scores.sizes().equals(shape), "scores must have one value a patch, shape ", at::IntArrayRef(shape),
                    " for image ", image.sizes(), " and patch_size ", patch_size, ", got ", scores.sizes());
  const Selection selection =
      check_selection({"ratio", ratio, ratio_tensor}, {"min_score", min_score, min_score_tensor}, min_patches, order,
                      hint, scope, image.device());
  check_mask_dtype(image, mask_dtype);
  const Tensor ranked = scores.to(compute_dtype(scores)).contiguous();
  const Tensor patches = empty_patches(ranked);
  if (patches.numel() > 0) run(select_params(ranked, patches, selection), image.device());
  return mask_with(image, patches, grid, fill, mask_dtype);
}

Tensor apply_mask_kernel(const Tensor& image, const Tensor& patches, at::IntArrayRef patch_size, double fill) {
  check_image_like(image, "image", "C");
  check_same_device(image, "image", patches, "patches");
  const Grid grid = make_grid(image, patch_size);
  const auto shape = grid_shape(image, grid);
  TORCH_CHECK_TYPE(patches.scalar_type() == at::kBool, "patches must be bool, got ", patches.scalar_type());
  TORCH_CHECK_VALUE(patches.sizes().equals(shape), "patches must have shape ", at::IntArrayRef(shape), " for image ",
                    image.sizes(), " and patch_size ", patch_size, ", got ", patches.sizes());
  return apply(image, patches.contiguous(), grid, fill, nullptr);
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// grad of the masked image -> image: zero in masked patches. grad of the mean scores -> logits.
variable_list mask_gradients(AutogradContext* ctx, const variable_list& grads) {
  const auto saved = ctx->get_saved_variables();
  const auto patch_size = ctx->saved_data["patch_size"].toIntVector();
  variable_list out(5);
  if (grads[0].defined() && ctx->needs_input_grad(0)) out[0] = apply_mask(grads[0], saved[0], patch_size, 0);
  if (grads.size() > 3 && grads[3].defined() && saved[1].defined())
    out[1] = patch_scores_backward(grads[3], saved[1], patch_size);
  return out;
}

struct PatchMask : torch::autograd::Function<PatchMask> {
  template <class F>
  static variable_list forward(AutogradContext* ctx, const Tensor& image, const Tensor& logits,
                               at::IntArrayRef patch_size, bool mean, const F& compute) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [out, mask, patches, scores, labels] = compute();
    ctx->set_materialize_grads(false);
    ctx->saved_data["patch_size"] = patch_size.vec();
    ctx->save_for_backward({patches, mean && logits.requires_grad() ? logits : Tensor()});
    ctx->mark_non_differentiable(mean ? variable_list{mask, patches, labels}
                                      : variable_list{mask, patches, scores, labels});
    return {out, mask, patches, scores, labels};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) { return mask_gradients(ctx, grads); }
};

PatchMaskResult patch_mask_autograd(const Tensor& image, const Tensor& logits, at::IntArrayRef patch_size,
                                    optional<double> ratio, const OptionalTensor& ratio_tensor, string_view score,
                                    double threshold, const OptionalTensor& threshold_tensor,
                                    optional<double> min_score, const OptionalTensor& min_score_tensor,
                                    int64_t min_patches, string_view order, double hint, string_view scope, double fill,
                                    optional<at::ScalarType> mask_dtype, optional<at::ScalarType> label_dtype) {
  check_no_tangent(image, "patch_mask");
  check_no_tangent(logits, "patch_mask");
  const auto compute = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return patch_mask(image, logits, patch_size, ratio, ratio_tensor, score, threshold, threshold_tensor, min_score,
                      min_score_tensor, min_patches, order, hint, scope, fill, mask_dtype, label_dtype);
  };
  const bool mean = score == "mean";
  if (!wants_grad(image) && !(mean && wants_grad(logits))) return compute();
  const variable_list out = PatchMask::apply(image, logits, patch_size, mean, compute);
  return {out[0], out[1], out[2], out[3], out[4]};
}

struct ScoredMask : torch::autograd::Function<ScoredMask> {
  template <class F>
  static variable_list forward(AutogradContext* ctx, const Tensor&, at::IntArrayRef patch_size, const F& compute) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [out, mask, patches] = compute();
    ctx->set_materialize_grads(false);
    ctx->saved_data["patch_size"] = patch_size.vec();
    ctx->save_for_backward({patches});
    ctx->mark_non_differentiable({mask, patches});
    return {out, mask, patches};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list out = mask_gradients(ctx, grads);
    out.resize(3);
    return out;
  }
};

ScoredMaskResult patch_mask_from_scores_autograd(const Tensor& image, const Tensor& scores, at::IntArrayRef patch_size,
                                                 optional<double> ratio, const OptionalTensor& ratio_tensor,
                                                 optional<double> min_score, const OptionalTensor& min_score_tensor,
                                                 int64_t min_patches, string_view order, double hint, string_view scope,
                                                 double fill, optional<at::ScalarType> mask_dtype) {
  check_no_tangent(image, "patch_mask_from_scores");
  const auto compute = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return patch_mask_from_scores(image, scores, patch_size, ratio, ratio_tensor, min_score, min_score_tensor,
                                  min_patches, order, hint, scope, fill, mask_dtype);
  };
  if (!wants_grad(image)) return compute();
  const variable_list out = ScoredMask::apply(image, patch_size, compute);
  return {out[0], out[1], out[2]};
}

struct ApplyMask : torch::autograd::Function<ApplyMask> {
  static Tensor forward(AutogradContext* ctx, const Tensor& image, const Tensor& patches, at::IntArrayRef patch_size,
                        double fill) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->saved_data["patch_size"] = patch_size.vec();
    ctx->save_for_backward({patches});
    return apply_mask(image, patches, patch_size, fill);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto patch_size = ctx->saved_data["patch_size"].toIntVector();
    return {apply_mask(grads[0], ctx->get_saved_variables()[0], patch_size, 0), Tensor(), Tensor(), Tensor()};
  }
};

Tensor apply_mask_autograd(const Tensor& image, const Tensor& patches, at::IntArrayRef patch_size, double fill) {
  check_no_tangent(image, "apply_mask");
  if (wants_grad(image)) return ApplyMask::apply(image, patches, patch_size, fill);
  at::AutoDispatchBelowADInplaceOrView below;
  return apply_mask(image, patches, patch_size, fill);
}

void devices(torch::Library& m) {
  m.impl("patch_mask", patch_mask_kernel);
  m.impl("patch_mask_from_scores", patch_mask_from_scores_kernel);
  m.impl("apply_mask", apply_mask_kernel);
}

}  // namespace

PatchMaskResult patch_mask(const Tensor& image, const Tensor& logits, at::IntArrayRef patch_size,
                           optional<double> ratio, const OptionalTensor& ratio_tensor, string_view score,
                           double threshold, const OptionalTensor& threshold_tensor, optional<double> min_score,
                           const OptionalTensor& min_score_tensor, int64_t min_patches, string_view order, double hint,
                           string_view scope, double fill, optional<at::ScalarType> mask_dtype,
                           optional<at::ScalarType> label_dtype) {
  static const auto op = dispatched<decltype(patch_mask)>("entmask::patch_mask");
  return op.call(image, logits, patch_size, ratio, ratio_tensor, score, threshold, threshold_tensor, min_score,
                 min_score_tensor, min_patches, order, hint, scope, fill, mask_dtype, label_dtype);
}

ScoredMaskResult patch_mask_from_scores(const Tensor& image, const Tensor& scores, at::IntArrayRef patch_size,
                                        optional<double> ratio, const OptionalTensor& ratio_tensor,
                                        optional<double> min_score, const OptionalTensor& min_score_tensor,
                                        int64_t min_patches, string_view order, double hint, string_view scope,
                                        double fill, optional<at::ScalarType> mask_dtype) {
  static const auto op = dispatched<decltype(patch_mask_from_scores)>("entmask::patch_mask_from_scores");
  return op.call(image, scores, patch_size, ratio, ratio_tensor, min_score, min_score_tensor, min_patches, order, hint,
                 scope, fill, mask_dtype);
}

Tensor apply_mask(const Tensor& image, const Tensor& patches, at::IntArrayRef patch_size, double fill) {
  static const auto op = dispatched<decltype(apply_mask)>("entmask::apply_mask");
  return op.call(image, patches, patch_size, fill);
}

ENTMASK_LIBRARY_DEVICES(devices)

TORCH_LIBRARY_IMPL(entmask, Autograd, m) {
  m.impl("patch_mask", patch_mask_autograd);
  m.impl("patch_mask_from_scores", patch_mask_from_scores_autograd);
  m.impl("apply_mask", apply_mask_autograd);
}

}  // namespace entmask::ops
