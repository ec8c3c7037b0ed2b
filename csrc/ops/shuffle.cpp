// shuffle_patches, whose gradient is itself the other way round, and gather_patches, whose gradient adds up.
#include <ATen/Functions.h>

#include <tuple>

#include "ops.h"
#include "register.h"
#include "run.h"

namespace entmask::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The grid of whole patches over x's last axes.
Grid whole_patches(const Tensor& x, int64_t first_axis, at::IntArrayRef patch_size) {
  grid_shape(x.sym_size(0), spatial_sizes(x, first_axis), patch_size);  // checks patch_size
  for (int64_t axis = first_axis; axis < x.dim(); ++axis)
    TORCH_CHECK_VALUE(x.size(axis) % patch_size[patch_size.size() == 1 ? 0 : axis - first_axis] == 0,
                      "x must have spatial sizes divisible by patch_size ", patch_size, ", got ", x.sizes());
  return make_grid(x.sizes().slice(first_axis), patch_size);
}

// Patches moved from x to a new tensor, within groups of `group` images.
Tensor move(const Tensor& x, const Grid& grid, bool channels, const Tensor& source, int64_t group, bool inverse) {
  const Tensor out = empty_like_format(x);
  if (inverse && x.is_cuda()) out.zero_();  // what a source out of range leaves alone
  GatherParams p{};
  p.x = x.const_data_ptr();
  p.out = out.mutable_data_ptr();
  p.source = source.const_data_ptr<int64_t>();
  p.x_stride = channels ? strides_of(x) : pixel_strides_of(x);
  p.out_stride = channels ? strides_of(out) : pixel_strides_of(out);
  p.bytes = int64_t(x.element_size());
  p.batch = x.size(0);
  p.channels = channels ? x.size(1) : 1;
  p.group = group;
  p.grid = grid;
  p.inverse = inverse;
  run(p, x.device());
  return out;
}

// ---------------------------------------------------------------- shuffle_patches

Tensor shuffle_patches_kernel(const Tensor& x, at::IntArrayRef patch_size, const Tensor& permutation, bool inverse) {
  check_image_like(x, "x", "C");
  check_same_device(x, "x", permutation, "permutation");
  const Grid grid = whole_patches(x, 2, patch_size);
  TORCH_CHECK_TYPE(permutation.scalar_type() == at::kLong, "permutation must be int64, got ",
                   permutation.scalar_type());
  const int64_t per_image = patches_of(grid), entries = permutation.numel();
  TORCH_CHECK_VALUE(permutation.dim() == 1 && per_image > 0 && entries > 0 && entries % per_image == 0 &&
                        x.size(0) % (entries / per_image) == 0,
                    "permutation must be 1-d with B * ", per_image, " entries (", per_image,
                    " patches per image) where B divides the batch of ", x.size(0), ", got shape ",
                    permutation.sizes());
  if (!permutation.device().is_cpu())  // the entries are not looked at: that would wait for the device
    return move(x, grid, true, permutation.contiguous(), entries / per_image, inverse);

  const Tensor places = permutation.contiguous(), inverted = at::full_like(places, -1);
  const int64_t* const entry = places.const_data_ptr<int64_t>();
  int64_t* const place = inverted.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < entries; ++i) {
    TORCH_CHECK_VALUE(entry[i] >= 0 && entry[i] < entries && place[entry[i]] < 0, "permutation must hold each of 0 to ",
                      entries - 1, " once, got ", entry[i], " at position ", i);
    place[entry[i]] = i;
  }
  return move(x, grid, true, inverse ? inverted : places, entries / per_image, false);
}

struct ShufflePatches : torch::autograd::Function<ShufflePatches> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, at::IntArrayRef patch_size, const Tensor& permutation,
                        bool inverse) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->saved_data["patch_size"] = patch_size.vec();
    ctx->saved_data["inverse"] = inverse;
    ctx->save_for_backward({permutation});
    return shuffle_patches(x, patch_size, permutation, inverse);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto patch_size = ctx->saved_data["patch_size"].toIntVector();
    return {shuffle_patches(grads[0], patch_size, ctx->get_saved_variables()[0], !ctx->saved_data["inverse"].toBool()),
            Tensor(), Tensor(), Tensor()};
  }
};

Tensor shuffle_patches_autograd(const Tensor& x, at::IntArrayRef patch_size, const Tensor& permutation, bool inverse) {
  check_no_tangent("shuffle_patches", x);
  if (wants_grad(x)) return ShufflePatches::apply(x, patch_size, permutation, inverse);
  at::AutoDispatchBelowADInplaceOrView below;
  return shuffle_patches(x, patch_size, permutation, inverse);
}

// ---------------------------------------------------------------- gather_patches

// Checks what gather_patches and its gradient have in common; the grid of x.
Grid check_gather(const Tensor& x, const char* name, const Tensor& source, at::IntArrayRef patch_size) {
  check_movable(x, name);
  check_same_device(x, name, source, "source");
  TORCH_CHECK_TYPE(source.scalar_type() == at::kLong, "source must be int64, got ", source.scalar_type());
  const int64_t axes = source.dim() - 1, channels = x.dim() - 1 - axes;
  TORCH_CHECK_VALUE((axes == 2 || axes == 3) && (channels == 0 || channels == 1), "source must have shape (N, *G) for ",
                    name, " of shape (N, *S) or (N, C, *S), got ", source.sizes(), " and ", x.sizes());
  const Grid grid = whole_patches(x, 1 + channels, patch_size);
  check_shape(source, "source", grid_shape(x.sym_size(0), spatial_sizes(x, 1 + channels), patch_size), " for ", name,
              " of shape ", x.sizes(), " and patch_size ", patch_size);
  if (source.device().is_cpu()) {
    const Tensor flat = source.contiguous();
    for (int64_t i = 0; i < flat.numel(); ++i) {
      const int64_t entry = flat.const_data_ptr<int64_t>()[i];
      TORCH_CHECK_VALUE(entry >= 0 && entry < flat.numel(), "source must hold numbers of patches, 0 to ",
                        flat.numel() - 1, ", got ", entry, " at position ", i);
    }
  }
  return grid;
}

bool has_channels(const Tensor& x, const Tensor& source) { return x.dim() > source.dim(); }

Tensor gather_patches_kernel(const Tensor& x, const Tensor& source, at::IntArrayRef patch_size) {
  const Grid grid = check_gather(x, "x", source, patch_size);
  if (x.numel() == 0) return empty_like_format(x);
  return move(x, grid, has_channels(x, source), source.contiguous(), x.size(0), false);
}

// The takers of all patches, in ascending order for each of them, and where each one's begin. On CUDA those with an
// entry out of range are before the first or after the last.
std::tuple<Tensor, Tensor> takers_of(const Tensor& source) {
  const int64_t patches = source.numel();
  if (!source.device().is_cpu()) {
    const auto [sorted, takers] = source.flatten().sort(/*stable=*/true, /*dim=*/0, /*descending=*/false);
    return {takers, at::searchsorted(sorted, at::arange(patches + 1, source.options()))};
  }
  // Counted: at::sort takes longer than the sums.
  const Tensor flat = source.contiguous(), takers = at::empty({patches}, flat.options());
  const Tensor first = at::zeros({patches + 2}, flat.options());
  const int64_t* const entry = flat.const_data_ptr<int64_t>();
  int64_t *const taker = takers.mutable_data_ptr<int64_t>(), *const begin = first.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < patches; ++i) ++begin[entry[i] + 2];
  for (int64_t q = 0; q < patches; ++q) begin[q + 2] += begin[q + 1];
  for (int64_t i = 0; i < patches; ++i) taker[begin[entry[i] + 1]++] = i;
  return {takers, first.narrow(0, 0, patches + 1)};
}

Tensor gather_patches_backward_kernel(const Tensor& grad, const Tensor& source, at::IntArrayRef patch_size) {
  const Grid grid = check_gather(grad, "grad", source, patch_size);
  const Tensor out = empty_like_format(grad);
  if (grad.numel() == 0) return out;
  const auto [takers, first] = takers_of(source);
  GatherBackwardParams p{};
  const bool channels = has_channels(grad, source);
  p.grad = grad.const_data_ptr();
  p.out = out.mutable_data_ptr();
  p.takers = takers.const_data_ptr<int64_t>();
  p.first = first.const_data_ptr<int64_t>();
  p.grad_stride = channels ? strides_of(grad) : pixel_strides_of(grad);
  p.out_stride = channels ? strides_of(out) : pixel_strides_of(out);
  p.dtype = float_dtype(grad, "grad");
  p.batch = grad.size(0);
  p.channels = channels ? grad.size(1) : 1;
  p.grid = grid;
  run(p, grad.device());
  return out;
}

Tensor gather_patches(const Tensor& x, const Tensor& source, at::IntArrayRef patch_size) {
  static const auto op = dispatched<decltype(gather_patches)>("entmask::gather_patches");
  return op.call(x, source, patch_size);
}

Tensor gather_patches_backward(const Tensor& grad, const Tensor& source, at::IntArrayRef patch_size) {
  static const auto op = dispatched<decltype(gather_patches_backward)>("entmask::gather_patches_backward");
  return op.call(grad, source, patch_size);
}

// Linear, and each the gradient of the other.
template <Tensor (*op)(const Tensor&, const Tensor&, at::IntArrayRef),
          Tensor (*gradient)(const Tensor&, const Tensor&, at::IntArrayRef)>
struct Gather : torch::autograd::Function<Gather<op, gradient>> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& source, at::IntArrayRef patch_size) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->saved_data["patch_size"] = patch_size.vec();
    ctx->save_for_backward({source});
    return op(x, source, patch_size);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto patch_size = ctx->saved_data["patch_size"].toIntVector();
    return {gradient(grads[0], ctx->get_saved_variables()[0], patch_size), Tensor(), Tensor()};
  }
};

Tensor gather_patches_autograd(const Tensor& x, const Tensor& source, at::IntArrayRef patch_size) {
  check_no_tangent("gather_patches", x);
  if (wants_grad(x)) return Gather<gather_patches, gather_patches_backward>::apply(x, source, patch_size);
  at::AutoDispatchBelowADInplaceOrView below;
  return gather_patches(x, source, patch_size);
}

Tensor gather_patches_backward_autograd(const Tensor& grad, const Tensor& source, at::IntArrayRef patch_size) {
  check_no_tangent("gather_patches_backward", grad);
  if (wants_grad(grad)) return Gather<gather_patches_backward, gather_patches>::apply(grad, source, patch_size);
  at::AutoDispatchBelowADInplaceOrView below;
  return gather_patches_backward(grad, source, patch_size);
}

void devices(torch::Library& m) {
  m.impl("shuffle_patches", shuffle_patches_kernel);
  m.impl("gather_patches", gather_patches_kernel);
  m.impl("gather_patches_backward", gather_patches_backward_kernel);
}

}  // namespace

Tensor shuffle_patches(const Tensor& x, at::IntArrayRef patch_size, const Tensor& permutation, bool inverse) {
  static const auto op = dispatched<decltype(shuffle_patches)>("entmask::shuffle_patches");
  return op.call(x, patch_size, permutation, inverse);
}

TORCH_LIBRARY_FRAGMENT(entmask, m) {
  define_primitive(m, "shuffle_patches(Tensor x, int[] patch_size, Tensor permutation, bool inverse) -> Tensor");
  define_primitive(m, "gather_patches(Tensor x, Tensor source, int[] patch_size) -> Tensor");
  define_primitive(m, "gather_patches_backward(Tensor grad, Tensor source, int[] patch_size) -> Tensor");
}

ENTMASK_LIBRARY_DEVICES(devices)

TORCH_LIBRARY_IMPL(entmask, Autograd, m) {
  m.impl("shuffle_patches", shuffle_patches_autograd);
  m.impl("gather_patches", gather_patches_autograd);
  m.impl("gather_patches_backward", gather_patches_backward_autograd);
}

}  // namespace entmask::ops
