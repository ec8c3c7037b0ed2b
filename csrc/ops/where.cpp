// One of two images by patch, and boxes as the mask of pixels that it takes.
#include <ATen/Functions.h>

#include "ops.h"
#include "register.h"
#include "run.h"

namespace entmask::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// ---------------------------------------------------------------- patch_where

// One side of patch_where: a tensor, or a number that its dtype can represent.
struct Side {
  const char* name;
  const optional<at::Scalar>& number;
  const OptionalTensor& tensor;
  bool is_tensor() const { return tensor.has_value() && tensor->defined(); }
};

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

void devices(torch::Library& m) {
  m.impl("patch_where", patch_where_kernel);
  m.impl("box_mask", box_mask_kernel);
}

}  // namespace

std::tuple<Tensor, Tensor> patch_where(const Tensor& patches, const optional<at::Scalar>& inside,
                                       const OptionalTensor& inside_tensor, const optional<at::Scalar>& outside,
                                       const OptionalTensor& outside_tensor, at::IntArrayRef patch_size,
                                       optional<at::ScalarType> mask_dtype) {
  static const auto op = dispatched<decltype(patch_where)>("entmask::patch_where");
  return op.call(patches, inside, inside_tensor, outside, outside_tensor, patch_size, mask_dtype);
}

TORCH_LIBRARY_FRAGMENT(entmask, m) {
  define_primitive(m,
                   "patch_where(Tensor patches, Scalar? inside, Tensor? inside_tensor, Scalar? outside, "
                   "Tensor? outside_tensor, int[] patch_size, ScalarType? mask_dtype) -> (Tensor, Tensor)");
  define_primitive(m, "box_mask(Tensor boxes, int[] size) -> Tensor");
}

ENTMASK_LIBRARY_DEVICES(devices)

TORCH_LIBRARY_IMPL(entmask, Autograd, m) { m.impl("patch_where", patch_where_autograd); }

}  // namespace entmask::ops
