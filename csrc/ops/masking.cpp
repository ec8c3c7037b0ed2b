// Which patches are selected, what the image becomes there, and the calls that are made of both.
#include <ATen/Functions.h>

#include <cmath>

#include "ops.h"
#include "register.h"
#include "run.h"

namespace entmask::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// ---------------------------------------------------------------- select_patches

// The arguments that say which patches are selected.
struct Selection {
  optional<double> ratio;
  const OptionalTensor& ratio_tensor;
  optional<double> min_score;
  const OptionalTensor& min_score_tensor;
  int64_t min_patches;
  string_view order;
  double hint;
  string_view scope;

  NumberArgument ratio_argument() const { return {"ratio", ratio, ratio_tensor, true, true}; }
  NumberArgument min_score_argument() const { return {"min_score", min_score, min_score_tensor, false, false}; }
  bool by_ratio() const { return !min_score_argument().given(); }
};

void check_selection(const Selection& s, const c10::SymInt& images, const at::Device& device) {
  const NumberArgument ratio = s.ratio_argument(), min_score = s.min_score_argument();
  TORCH_CHECK_VALUE(!(ratio.given() && min_score.given()), "ratio and min_score exclude each other: got both");
  TORCH_CHECK_VALUE(s.min_patches >= 0, "min_patches must be >= 0, got ", s.min_patches);
  TORCH_CHECK_VALUE(s.min_patches == 0 || min_score.given(),
                    "min_patches needs min_score: with ratio the number is exact. Got ", s.min_patches);
  TORCH_CHECK_VALUE(s.order == "highest" || s.order == "lowest", "order must be 'highest' or 'lowest', got '", s.order,
                    "'");
  TORCH_CHECK_VALUE(s.scope == "image" || s.scope == "batch", "scope must be 'image' or 'batch', got '", s.scope, "'");
  check_fraction(s.hint, "hint");
  for (const NumberArgument& n : {ratio, min_score}) {
    check_number(n, images, device);
    TORCH_CHECK_VALUE(
        s.scope == "image" || !n.per_image(), n.name,
        " must be a number or a 0-d tensor with scope='batch', where all images are one row, got a tensor "
        "of shape ",
        n.is_tensor() ? n.tensor->sym_sizes() : c10::SymIntArrayRef());
  }
}

// k = max(1, floor(ratio P + 1e-6)) patches of P, 0 for a ratio of 0 or NaN.
int64_t count_of(double ratio, int64_t length) {
  return ratio > 0 ? std::min(length, std::max<int64_t>(1, share(ratio, length))) : 0;
}

// p.k, or p.ratio with the tensor that the kernel reads.
Tensor set_count(const NumberArgument& ratio, SelectParams& p, const at::Device& device) {
  if (!ratio.given()) {
    p.k = count_of(0.75, p.length);
    return {};
  }
  if (const auto value = known_value(ratio)) {
    p.k = count_of(*value, p.length);
    return {};
  }
  const Tensor& t = *ratio.tensor;
  if (t.dim() == 0 && t.device().is_cpu()) {  // an integer: the number of patches itself
    p.k = std::clamp<int64_t>(t.item<int64_t>(), 0, p.length);
    return {};
  }
  if (device.is_cpu() && !c10::isIntegralType(t.scalar_type(), false)) {
    const Tensor fractions = t.detach().to(at::kDouble).contiguous();
    const Tensor counts = at::empty({t.size(0)}, t.options().dtype(at::kLong).requires_grad(false));
    for (int64_t i = 0; i < t.size(0); ++i) {
      const double value = fractions.const_data_ptr<double>()[i];
      if (!std::isnan(value)) check_fraction(value, "ratio");
      counts.mutable_data_ptr<int64_t>()[i] = count_of(value, p.length);
    }
    p.ratio = {0, counts.const_data_ptr(), 1, Dtype::int64};
    return counts;
  }
  const HeldNumber held = make_number(ratio, at::kLong, device);
  p.ratio = held.number;
  return held.memory;
}

void check_scores(const Tensor& scores) {
  float_dtype(scores, "scores");
  TORCH_CHECK_VALUE(scores.layout() == at::kStrided, "scores must be a dense tensor, got layout ", scores.layout());
  TORCH_CHECK_VALUE(scores.dim() >= 2, "scores must have shape (N, *G), one value per patch, got ", scores.sym_sizes());
  check_axes(scores, "scores");
}

Tensor select_patches_kernel(const Tensor& scores, optional<double> ratio, const OptionalTensor& ratio_tensor,
                             optional<double> min_score, const OptionalTensor& min_score_tensor, int64_t min_patches,
                             string_view order, double hint, string_view scope) {
  check_scores(scores);
  const Selection s{ratio, ratio_tensor, min_score, min_score_tensor, min_patches, order, hint, scope};
  check_selection(s, scores.sym_size(0), scores.device());
  const Tensor ranked = scores.to(compute_dtype(scores)).contiguous();
  const Tensor patches = at::empty(scores.sizes(), scores.options().dtype(at::kBool));
  SelectParams p{};
  p.rows = scope == "batch" ? 1 : scores.size(0);
  p.length = p.rows > 0 ? scores.numel() / p.rows : 0;
  const HeldNumber limit = make_number(s.min_score_argument(), ranked.scalar_type(), scores.device());
  const Tensor counts = s.by_ratio() ? set_count(s.ratio_argument(), p, scores.device()) : Tensor();
  p.hinted = share(hint, p.length);
  if (patches.numel() == 0) return patches;
  p.scores = ranked.const_data_ptr();
  p.patches = patches.mutable_data_ptr<bool>();
  p.is_double = ranked.scalar_type() == at::kDouble;
  p.by_ratio = s.by_ratio();
  p.lowest = order == "lowest";
  p.min_score = limit.number;
  p.min_patches = min_patches;
  run(p, scores.device());
  return patches;
}

Tensor select_patches(const Tensor& scores, const Selection& s) {
  static const auto op = dispatched<decltype(select_patches_kernel)>("entmask::select_patches");
  return op.call(scores, s.ratio, s.ratio_tensor, s.min_score, s.min_score_tensor, s.min_patches, s.order, s.hint,
                 s.scope);
}

// A choice has no derivative.
Tensor select_patches_autograd(const Tensor& scores, optional<double> ratio, const OptionalTensor& ratio_tensor,
                               optional<double> min_score, const OptionalTensor& min_score_tensor, int64_t min_patches,
                               string_view order, double hint, string_view scope) {
  at::AutoDispatchBelowADInplaceOrView below;
  return select_patches(scores, {ratio, ratio_tensor, min_score, min_score_tensor, min_patches, order, hint, scope});
}

// ---------------------------------------------------------------- patch_where

// One side of patch_where: a tensor, or a number that its dtype can represent.
struct Side {
  const char* name;
  const optional<at::Scalar>& number;
  const OptionalTensor& tensor;
  bool is_tensor() const { return tensor.has_value() && tensor->defined(); }
};

// The number in a dtype: uint64 of its bits. ValueError for one that the dtype cannot represent; a fraction that a
// floating dtype rounds is representable, infinities and NaN are as well.
template <class T>
uint64_t bits_of(const at::Scalar& number, const char* name, at::ScalarType dtype) {
  uint64_t bits = 0;
  T stored;
  if constexpr (std::is_floating_point_v<T> || std::is_same_v<T, at::Half> || std::is_same_v<T, at::BFloat16>) {
    const double value = number.toDouble();
    stored = static_cast<T>(value);
    TORCH_CHECK_VALUE(!std::isfinite(value) || std::isfinite(static_cast<double>(stored)), name, " must fit ", dtype,
                      ", got ", value);
  } else {
    const bool whole = !number.isFloatingPoint() ||
                       (std::trunc(number.toDouble()) == number.toDouble() && std::abs(number.toDouble()) < 0x1p63);
    const int64_t value = whole ? number.to<int64_t>() : 0;
    stored = static_cast<T>(value);
    TORCH_CHECK_VALUE(whole && static_cast<int64_t>(stored) == value, name, " must be a number that ", dtype,
                      " represents, got ", number);
  }
  std::memcpy(&bits, &stored, sizeof stored);
  return bits;
}

uint64_t bits_of(const at::Scalar& number, const char* name, at::ScalarType dtype) {
  TORCH_CHECK_TYPE(!number.isComplex(), name, " must be a real number, got ", number);
  TORCH_CHECK_TYPE(!number.isBoolean() || dtype == at::kBool, name, " must be a number for ", dtype, ", got a bool");
  switch (dtype) {
    case at::kDouble:
      return bits_of<double>(number, name, dtype);
    case at::kFloat:
      return bits_of<float>(number, name, dtype);
    case at::kHalf:
      return bits_of<at::Half>(number, name, dtype);
    case at::kBFloat16:
      return bits_of<at::BFloat16>(number, name, dtype);
    case at::kBool:
      return bits_of<bool>(number, name, dtype);
    case at::kByte:
      return bits_of<uint8_t>(number, name, dtype);
    case at::kChar:
      return bits_of<int8_t>(number, name, dtype);
    case at::kShort:
      return bits_of<int16_t>(number, name, dtype);
    case at::kInt:
      return bits_of<int32_t>(number, name, dtype);
    case at::kLong:
      return bits_of<int64_t>(number, name, dtype);
    default:
      TORCH_CHECK_TYPE(false, name, " is a number for floating, bool, uint8 and int8 to int64 tensors, got ", dtype);
  }
}

void check_mask_dtype(const Tensor& image, optional<at::ScalarType> dtype) {
  TORCH_CHECK_VALUE(!dtype || *dtype == at::kBool || *dtype == image.scalar_type(),
                    "mask_dtype must be None, torch.bool or the image's dtype ", image.scalar_type(), ", got ", *dtype);
}

std::tuple<Tensor, Tensor> patch_where_kernel(const Tensor& patches, const optional<at::Scalar>& inside_number,
                                              const OptionalTensor& inside_tensor,
                                              const optional<at::Scalar>& outside_number,
                                              const OptionalTensor& outside_tensor, at::IntArrayRef patch_size,
                                              optional<at::ScalarType> mask_dtype) {
  const Side inside{"inside", inside_number, inside_tensor}, outside{"outside", outside_number, outside_tensor};
  for (const Side& side : {inside, outside})
    TORCH_CHECK_VALUE(side.number.has_value() != side.is_tensor(), side.name, " must be a tensor or a number");
  TORCH_CHECK_VALUE(inside.is_tensor() || outside.is_tensor(),
                    "inside or outside must be a tensor: two numbers have no shape");
  const Side& shaped = outside.is_tensor() ? outside : inside;
  const Tensor& x = *shaped.tensor;
  for (const Side& side : {inside, outside}) {
    if (!side.is_tensor()) continue;
    const Tensor& t = *side.tensor;
    check_movable(t, side.name);
    TORCH_CHECK_VALUE(t.device() == patches.device(), side.name, " and patches must be on the same device, got ",
                      t.device(), " and ", patches.device());
    TORCH_CHECK_TYPE(t.scalar_type() == x.scalar_type(), "inside and outside must have the same dtype, got ",
                     t.scalar_type(), " and ", x.scalar_type());
    TORCH_CHECK_VALUE(t.sizes().equals(x.sizes()), "inside and outside must have the same shape, got ", t.sizes(),
                      " and ", x.sizes());
  }
  TORCH_CHECK_TYPE(patches.scalar_type() == at::kBool, "patches must be bool, got ", patches.scalar_type());
  const int64_t axes = patches.dim() - 1, channels = x.dim() - 1 - axes;
  TORCH_CHECK_VALUE((axes == 2 || axes == 3) && (channels == 0 || channels == 1),
                    "patches must have shape (N or 1, *G) for ", shaped.name, " of shape (N, *S) or (N, C, *S), got ",
                    patches.sizes(), " and ", x.sizes());
  const auto sizes = x.sizes().slice(1 + channels);
  const auto shape = grid_shape(x.sym_size(0), spatial_sizes(x, 1 + channels), patch_size);
  const bool shared = patches.size(0) == 1;
  TORCH_CHECK_VALUE(patches.sym_sizes().slice(1).equals(c10::SymIntArrayRef(shape).slice(1)) &&
                        (shared || patches.size(0) == x.size(0)),
                    "patches must have shape ", c10::SymIntArrayRef(shape), " (or 1 in place of N) for ", shaped.name,
                    " of shape ", x.sizes(), " and patch_size ", patch_size, ", got ", patches.sizes());
  check_mask_dtype(x, mask_dtype);
  const at::Scalar zero(0);
  const uint64_t number = inside.is_tensor() && outside.is_tensor()
                              ? bits_of(zero, "inside", x.scalar_type())
                              : bits_of(inside.is_tensor() ? *outside.number : *inside.number,
                                        inside.is_tensor() ? outside.name : inside.name, x.scalar_type());

  const Tensor grid = patches.contiguous();
  const Tensor out = empty_like_format(x);
  at::DimVector mask_shape(x.sizes());
  if (channels) mask_shape[1] = 1;
  if (!channels) mask_shape.insert(mask_shape.begin() + 1, 1);
  const Tensor mask =
      mask_dtype ? at::empty(mask_shape, x.options().dtype(*mask_dtype)) : at::empty({0}, x.options().dtype(at::kBool));
  const auto strides = [&](const Tensor& t) { return channels ? strides_of(t) : pixel_strides_of(t); };
  WhereParams p{};
  if (inside.is_tensor()) p.inside = inside.tensor->const_data_ptr(), p.inside_stride = strides(*inside.tensor);
  if (outside.is_tensor()) p.outside = outside.tensor->const_data_ptr(), p.outside_stride = strides(*outside.tensor);
  p.out = out.mutable_data_ptr();
  p.out_stride = strides(out);
  p.mask = mask_dtype ? mask.mutable_data_ptr() : nullptr;
  p.patches = grid.const_data_ptr<bool>();
  p.grid = make_grid(sizes, patch_size);
  p.patches_stride = shared ? 0 : patches_of(p.grid);
  p.bytes = int64_t(x.element_size());
  p.mask_bytes = mask_dtype ? int64_t(mask.element_size()) : 1;
  p.number = number;
  p.one = mask_dtype && *mask_dtype != at::kBool ? bits_of(at::Scalar(1), "mask", *mask_dtype) : 1;
  p.batch = x.size(0);
  p.channels = channels ? x.size(1) : 1;
  run(p, x.device());
  return {out, mask};
}

std::tuple<Tensor, Tensor> patch_where(const Tensor& patches, const optional<at::Scalar>& inside,
                                       const OptionalTensor& inside_tensor, const optional<at::Scalar>& outside,
                                       const OptionalTensor& outside_tensor, at::IntArrayRef patch_size,
                                       optional<at::ScalarType> mask_dtype) {
  static const auto op = dispatched<decltype(patch_where_kernel)>("entmask::patch_where");
  return op.call(patches, inside, inside_tensor, outside, outside_tensor, patch_size, mask_dtype);
}

// Linear: the gradient to each side is itself a patch_where with 0 on the other.
struct PatchWhere : torch::autograd::Function<PatchWhere> {
  template <class F>
  static Tensor forward(AutogradContext* ctx, const OptionalTensor& inside, const OptionalTensor& outside,
                        const Tensor& patches, at::IntArrayRef patch_size, const F& compute) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->saved_data["patch_size"] = patch_size.vec();
    ctx->saved_data["inside"] = inside.has_value();
    ctx->saved_data["outside"] = outside.has_value();
    ctx->save_for_backward({patches});
    return compute();
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Tensor patches = ctx->get_saved_variables()[0];
    const auto patch_size = ctx->saved_data["patch_size"].toIntVector();
    const bool inside = ctx->saved_data["inside"].toBool(), outside = ctx->saved_data["outside"].toBool();
    const at::Scalar zero(0);
    variable_list out(5);
    if (inside && ctx->needs_input_grad(0))  // counted over the tensors
      out[0] = std::get<0>(patch_where(patches, std::nullopt, grads[0], zero, std::nullopt, patch_size, std::nullopt));
    if (outside && ctx->needs_input_grad(inside))
      out[1] = std::get<0>(patch_where(patches, zero, std::nullopt, std::nullopt, grads[0], patch_size, std::nullopt));
    return out;
  }
};

std::tuple<Tensor, Tensor> patch_where_autograd(const Tensor& patches, const optional<at::Scalar>& inside,
                                                const OptionalTensor& inside_tensor,
                                                const optional<at::Scalar>& outside,
                                                const OptionalTensor& outside_tensor, at::IntArrayRef patch_size,
                                                optional<at::ScalarType> mask_dtype) {
  check_no_tangent("patch_where", inside_tensor, outside_tensor);
  Tensor mask;
  const auto compute = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    auto result = patch_where(patches, inside, inside_tensor, outside, outside_tensor, patch_size, mask_dtype);
    mask = std::get<1>(result);
    return std::get<0>(result);
  };
  const bool wanted = wants_grad(inside_tensor) || wants_grad(outside_tensor);
  const Tensor out =
      wanted ? PatchWhere::apply(inside_tensor, outside_tensor, patches, patch_size, compute) : compute();
  return {out, mask};
}

// ---------------------------------------------------------------- box_mask

Tensor box_mask_kernel(const Tensor& boxes, at::IntArrayRef size) {
  TORCH_CHECK_TYPE(boxes.scalar_type() == at::kLong, "boxes must be int64, got ", boxes.scalar_type());
  TORCH_CHECK_VALUE(boxes.layout() == at::kStrided, "boxes must be a dense tensor, got layout ", boxes.layout());
  const int64_t axes = int64_t(size.size());
  TORCH_CHECK_VALUE(axes == 2 || axes == 3, "size must be (H, W) or (D, H, W), got ", size);
  for (const int64_t n : size)
    TORCH_CHECK_VALUE(n >= 0 && n < kAxisLimit, "size must be >= 0 and below 2^31 along each axis, got ", size);
  TORCH_CHECK_VALUE(boxes.dim() == 2 && boxes.size(1) == 2 * axes, "boxes must have shape (N, ", 2 * axes,
                    "), first and past-the-end index per axis, for size ", size, ", got ", boxes.sizes());
  check_axes(boxes, "boxes");
  at::DimVector shape(size);
  shape.insert(shape.begin(), boxes.size(0));
  const Tensor corners = boxes.contiguous(), out = at::empty(shape, boxes.options().dtype(at::kBool));
  BoxMaskParams p{};
  p.boxes = corners.const_data_ptr<int64_t>();
  p.out = out.mutable_data_ptr<bool>();
  p.batch = boxes.size(0);
  p.axes = axes;
  for (int64_t axis = 0; axis < 3; ++axis) p.size[axis] = axis < 3 - axes ? 1 : size[axis - 3 + axes];
  run(p, boxes.device());
  return out;
}

// ---------------------------------------------------------------- composed
//
// A composed op checks all of its arguments before its first part runs.

void check_masking(const Tensor& image, double fill, optional<at::ScalarType> mask_dtype) {
  check_image_like(image, "image", "C");
  check_mask_dtype(image, mask_dtype);
  bits_of(at::Scalar(fill), "fill", image.scalar_type());
}

using Masked = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // image, mask, patches, scores

Masked mask_by_scores(const Tensor& image, const Tensor& scores, at::IntArrayRef patch_size, const Selection& selection,
                      double fill, optional<at::ScalarType> mask_dtype) {
  const Tensor patches = select_patches(scores, selection);
  auto [out, mask] = patch_where(patches, at::Scalar(fill), std::nullopt, std::nullopt, image, patch_size,
                                 mask_dtype.value_or(image.scalar_type()));
  return {out, mask, patches, scores};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> patch_mask(
    const Tensor& image, const Tensor& logits, at::IntArrayRef patch_size, optional<double> ratio,
    const OptionalTensor& ratio_tensor, string_view uncertainty, string_view score, double threshold,
    const OptionalTensor& threshold_tensor, optional<double> min_score, const OptionalTensor& min_score_tensor,
    int64_t min_patches, string_view order, double hint, string_view scope, double fill,
    optional<at::ScalarType> mask_dtype, optional<at::ScalarType> label_dtype, optional<double> min_confidence,
    const OptionalTensor& min_confidence_tensor) {
  check_masking(image, fill, mask_dtype);
  check_logits(logits);
  check_same_device(image, "image", logits, "logits");
  check_same_image_sizes(image, "image", logits, "logits");
  const Selection selection{ratio, ratio_tensor, min_score, min_score_tensor, min_patches, order, hint, scope};
  check_selection(selection, logits.sym_size(0), logits.device());
  TORCH_CHECK_VALUE(
      scope == "image" || !threshold_tensor || threshold_tensor->dim() == 0,
      "threshold must be a number or a 0-d tensor with scope='batch', where all images are one row, got a "
      "tensor of shape ",
      threshold_tensor ? threshold_tensor->sym_sizes() : c10::SymIntArrayRef());
  auto [scores, labels] = score_patches(logits, patch_size, uncertainty, score, threshold, threshold_tensor,
                                        label_dtype, min_confidence, min_confidence_tensor);
  auto [out, mask, patches, ranked] = mask_by_scores(image, scores, patch_size, selection, fill, mask_dtype);
  return {out, mask, patches, ranked, labels};
}

Masked patch_mask_from_scores(const Tensor& image, const Tensor& scores, at::IntArrayRef patch_size,
                              optional<double> ratio, const OptionalTensor& ratio_tensor, optional<double> min_score,
                              const OptionalTensor& min_score_tensor, int64_t min_patches, string_view order,
                              double hint, string_view scope, double fill, optional<at::ScalarType> mask_dtype) {
  check_masking(image, fill, mask_dtype);
  check_scores(scores);
  check_same_device(image, "image", scores, "scores");
  const auto shape = grid_shape(image, patch_size);
  check_shape(scores, "scores", shape, ", one value per patch, for image ", image.sym_sizes(), " and patch_size ",
              patch_size);
  const Selection selection{ratio, ratio_tensor, min_score, min_score_tensor, min_patches, order, hint, scope};
  check_selection(selection, image.sym_size(0), image.device());
  return mask_by_scores(image, scores.to(compute_dtype(scores)), patch_size, selection, fill, mask_dtype);
}

Masked random_patch_mask(const Tensor& image, at::IntArrayRef patch_size, optional<double> ratio,
                         const OptionalTensor& ratio_tensor, bool shared, double fill,
                         optional<at::ScalarType> mask_dtype, optional<at::Generator> generator) {
  check_masking(image, fill, mask_dtype);
  auto shape = grid_shape(image, patch_size);
  const OptionalTensor none;
  const Selection selection{ratio, ratio_tensor, std::nullopt, none, 0, "highest", 0, "image"};
  check_selection(selection, image.sym_size(0), image.device());
  const auto whole = shape;
  if (shared) shape[0] = 1;
  const auto options = image.options().dtype(at::kFloat);
  Tensor scores = generator ? at::rand_symint(shape, generator, options) : at::rand_symint(shape, options);
  if (shared) scores = scores.expand_symint(whole);
  return mask_by_scores(image, scores, patch_size, selection, fill, mask_dtype);
}

void devices(torch::Library& m) {
  m.impl("select_patches", select_patches_kernel);
  m.impl("patch_where", patch_where_kernel);
  m.impl("box_mask", box_mask_kernel);
}
void composed(torch::Library& m) {
  m.impl("patch_mask", patch_mask);
  m.impl("patch_mask_from_scores", patch_mask_from_scores);
  m.impl("random_patch_mask", random_patch_mask);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(entmask, m) {
#define SELECTION                                                                                         \
  "float? ratio, Tensor? ratio_tensor, float? min_score, Tensor? min_score_tensor, int min_patches, str " \
  "order, float hint, str scope"
  define_primitive(m, "select_patches(Tensor scores, " SELECTION ") -> Tensor");
  define_primitive(m,
                   "patch_where(Tensor patches, Scalar? inside, Tensor? inside_tensor, Scalar? outside, "
                   "Tensor? outside_tensor, int[] patch_size, ScalarType? mask_dtype) -> (Tensor, Tensor)");
  define_primitive(m, "box_mask(Tensor boxes, int[] size) -> Tensor");
  define_composed(m,
                  "patch_mask(Tensor image, Tensor logits, int[] patch_size, float? ratio, Tensor? ratio_tensor, "
                  "str uncertainty, str score, float threshold, Tensor? threshold_tensor, float? min_score, "
                  "Tensor? min_score_tensor, int min_patches, str order, float hint, str scope, float fill, "
                  "ScalarType? mask_dtype, ScalarType? label_dtype, float? min_confidence, "
                  "Tensor? min_confidence_tensor) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  define_composed(m, "patch_mask_from_scores(Tensor image, Tensor scores, int[] patch_size, " SELECTION
                     ", float fill, ScalarType? mask_dtype) -> (Tensor, Tensor, Tensor, Tensor)");
  define_composed(m,
                  "random_patch_mask(Tensor image, int[] patch_size, float? ratio, Tensor? ratio_tensor, bool shared, "
                  "float fill, ScalarType? mask_dtype, Generator? generator) -> (Tensor, Tensor, Tensor, Tensor)");
#undef SELECTION
}

ENTMASK_LIBRARY_DEVICES(devices)
ENTMASK_LIBRARY_COMPOSED(composed)

TORCH_LIBRARY_IMPL(entmask, Autograd, m) {
  m.impl("select_patches", select_patches_autograd);
  m.impl("patch_where", patch_where_autograd);
}

}  // namespace entmask::ops
