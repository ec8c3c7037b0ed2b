// entmask_ext._C: the ops as Python functions without torch.ops' argument parsing, which costs more than a small op.
//
// Arguments are read by hand, so that a wrong one is named in the error. Everything goes through the dispatcher:
// autograd, fake tensors and vmap see these calls like those of torch.ops.entmask.
#include <torch/csrc/Dtype.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <string>
#include <vector>

#include "kernels/cpu/cpu.h"
#include "ops/ops.h"

namespace py = pybind11;

namespace entmask {
namespace {

using at::Tensor;
using ops::OptionalTensor;

[[noreturn]] void wrong_type(const char* name, const char* expected, py::handle got) {
  throw py::type_error(std::string(name) + " must be " + expected + ", got " + Py_TYPE(got.ptr())->tp_name);
}

Tensor tensor(py::handle value, const char* name) {
  if (!THPVariable_Check(value.ptr())) wrong_type(name, "a torch.Tensor", value);
  return THPVariable_Unpack(value.ptr());
}

OptionalTensor optional_tensor(py::handle value, const char* name) {
  if (value.is_none()) return std::nullopt;
  if (!THPVariable_Check(value.ptr())) wrong_type(name, "a torch.Tensor or None", value);
  return THPVariable_Unpack(value.ptr());
}

double number(py::handle value, const char* name, const char* expected = "a float") {
  const double result = PyNumber_Check(value.ptr()) ? PyFloat_AsDouble(value.ptr()) : 0;
  if (!PyNumber_Check(value.ptr()) || (result == -1 && PyErr_Occurred())) {
    PyErr_Clear();
    wrong_type(name, expected, value);
  }
  return result;
}

// A float, a 0-d tensor or None.
struct Fraction {
  std::optional<double> value;
  OptionalTensor tensor;

  Fraction(py::handle given, const char* name) {
    if (given.is_none()) return;
    if (THPVariable_Check(given.ptr()))
      tensor = THPVariable_Unpack(given.ptr());
    else
      value = number(given, name, "a float or a 0-d tensor");
  }
};

int64_t integer(py::handle value, const char* name, const char* expected = "an int") {
  if (!PyIndex_Check(value.ptr()) || PyBool_Check(value.ptr())) wrong_type(name, expected, value);
  const int64_t result = PyNumber_AsSsize_t(value.ptr(), PyExc_OverflowError);
  if (result == -1 && PyErr_Occurred()) throw py::error_already_set();
  return result;
}

std::vector<int64_t> patch_size_of(py::handle value) {
  constexpr const char* expected = "an int or a sequence of ints";
  if (PyIndex_Check(value.ptr())) return {integer(value, "patch_size", expected)};
  if (!PySequence_Check(value.ptr()) || PyUnicode_Check(value.ptr())) wrong_type("patch_size", expected, value);
  std::vector<int64_t> sizes;
  for (const py::handle size : py::reinterpret_borrow<py::sequence>(value))
    sizes.push_back(integer(size, "patch_size", expected));
  return sizes;
}

std::string_view text(py::handle value, const char* name) {
  Py_ssize_t size = 0;
  const char* const data = PyUnicode_Check(value.ptr()) ? PyUnicode_AsUTF8AndSize(value.ptr(), &size) : nullptr;
  if (!data) wrong_type(name, "a str", value);
  return {data, size_t(size)};
}

std::optional<at::ScalarType> dtype(py::handle value, const char* name) {
  if (value.is_none()) return std::nullopt;
  if (!THPDtype_Check(value.ptr())) wrong_type(name, "a torch.dtype or None", value);
  return reinterpret_cast<THPDtype*>(value.ptr())->scalar_type;
}

bool flag(py::handle value, const char* name) {
  if (!PyBool_Check(value.ptr())) wrong_type(name, "a bool", value);
  return value.ptr() == Py_True;
}

using Object = py::handle;

py::tuple patch_mask(Object image, Object logits, Object patch_size, Object ratio, Object score, Object threshold,
                     Object min_score, Object min_patches, Object order, Object hint, Object scope, Object fill,
                     Object mask_dtype, Object label_dtype) {
  const Tensor x = tensor(image, "image"), l = tensor(logits, "logits");
  const auto patch = patch_size_of(patch_size);
  const Fraction r(ratio, "ratio"), t(threshold, "threshold"), m(min_score, "min_score");
  if (threshold.is_none()) wrong_type("threshold", "a float or a 0-d tensor", threshold);
  const auto s = text(score, "score"), o = text(order, "order"), c = text(scope, "scope");
  const auto n = integer(min_patches, "min_patches");
  const auto h = number(hint, "hint"), f = number(fill, "fill");
  const auto mask_type = dtype(mask_dtype, "mask_dtype"), label_type = dtype(label_dtype, "label_dtype");
  const auto [out, mask, patches, scores, labels] = [&] {
    py::gil_scoped_release release;
    return ops::patch_mask(x, l, patch, r.value, r.tensor, s, t.value.value_or(0), t.tensor, m.value, m.tensor, n, o, h,
                           c, f, mask_type, label_type);
  }();
  return py::make_tuple(out, mask, patches, scores, label_type ? py::cast(labels) : py::none());
}

py::tuple patch_mask_from_scores(Object image, Object scores, Object patch_size, Object ratio, Object min_score,
                                 Object min_patches, Object order, Object hint, Object scope, Object fill,
                                 Object mask_dtype) {
  const Tensor x = tensor(image, "image"), values = tensor(scores, "scores");
  const auto patch = patch_size_of(patch_size);
  const Fraction r(ratio, "ratio"), m(min_score, "min_score");
  const auto o = text(order, "order"), c = text(scope, "scope");
  const auto n = integer(min_patches, "min_patches");
  const auto h = number(hint, "hint"), f = number(fill, "fill");
  const auto mask_type = dtype(mask_dtype, "mask_dtype");
  const auto [out, mask, patches] = [&] {
    py::gil_scoped_release release;
    return ops::patch_mask_from_scores(x, values, patch, r.value, r.tensor, m.value, m.tensor, n, o, h, c, f,
                                       mask_type);
  }();
  return py::make_tuple(out, mask, patches);
}

Tensor patch_scores(Object logits, Object patch_size, Object score, Object threshold) {
  const Tensor l = tensor(logits, "logits");
  const auto patch = patch_size_of(patch_size);
  const Fraction t(threshold, "threshold");
  if (threshold.is_none()) wrong_type("threshold", "a float or a 0-d tensor", threshold);
  const auto s = text(score, "score");
  py::gil_scoped_release release;
  return ops::patch_scores(l, patch, s, t.value.value_or(0), t.tensor);
}

Tensor entropy_map(Object logits, Object normalize) {
  const Tensor l = tensor(logits, "logits");
  const bool n = flag(normalize, "normalize");
  py::gil_scoped_release release;
  return ops::entropy_map(l, n);
}

py::tuple consistency_loss(Object logits, Object labels, Object patches, Object patch_size, Object mask_weight,
                           Object class_weight, Object ce_weight, Object dice_weight, Object smooth,
                           Object denominator_offset) {
  const Tensor l = tensor(logits, "logits"), y = tensor(labels, "labels");
  const OptionalTensor grid = optional_tensor(patches, "patches"), w = optional_tensor(class_weight, "class_weight");
  std::vector<int64_t> patch;
  at::OptionalIntArrayRef size;
  if (!patch_size.is_none()) {
    patch = patch_size_of(patch_size);
    size = patch;
  }
  const double mask = number(mask_weight, "mask_weight"), ce = number(ce_weight, "ce_weight"),
               dice = number(dice_weight, "dice_weight"), smoothing = number(smooth, "smooth"),
               offset = number(denominator_offset, "denominator_offset");
  const auto result = [&] {
    py::gil_scoped_release release;
    return ops::consistency_loss(l, y, grid, size, mask, w, ce, dice, smoothing, offset);
  }();
  return py::make_tuple(std::get<0>(result), std::get<1>(result), std::get<2>(result), std::get<3>(result));
}

Tensor shuffle_patches(Object x, Object patch_size, Object permutation, Object inverse) {
  const Tensor values = tensor(x, "x"), order = tensor(permutation, "permutation");
  const auto patch = patch_size_of(patch_size);
  const bool back = flag(inverse, "inverse");
  py::gil_scoped_release release;
  return ops::shuffle_patches(values, patch, order, back);
}

// What this library was built for, and the CPU instruction set in use.
py::dict build_info() {
  py::dict info;
  info["torch"] = ENTMASK_BUILD_TORCH;
  info["cuda"] = ENTMASK_BUILD_CUDA;
  info["cuda_archs"] = ENTMASK_BUILD_ARCHS;
  info["cpu_isa"] = cpu::kernels().name;
  return info;
}

PYBIND11_MODULE(_C, m) {
  m.def("patch_mask", &patch_mask);
  m.def("patch_mask_from_scores", &patch_mask_from_scores);
  m.def("patch_scores", &patch_scores);
  m.def("entropy_map", &entropy_map);
  m.def("consistency_loss", &consistency_loss);
  m.def("shuffle_patches", &shuffle_patches);
  m.def("build_info", &build_info);
}

}  // namespace
}  // namespace entmask
