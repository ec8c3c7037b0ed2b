// entmask_ext._C: the ops as Python functions without torch.ops' argument parsing, which costs more than a small op.
//
// Arguments are read by the op's schema, so that a wrong one is named in the error and a new op or argument needs
// nothing here. Everything goes through the dispatcher: autograd, fake tensors and vmap see these calls like those of
// torch.ops.entmask. Two neighbours of a schema that are called X and X_tensor are one argument: a number or a tensor.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/Generator.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <string>
#include <vector>

#include "kernels/cpu/cpu.h"

namespace py = pybind11;

namespace entmask {
namespace {

using c10::IValue;
using c10::TypeKind;

[[noreturn]] void wrong_type(const std::string& name, const char* expected, py::handle got) {
  std::string what = Py_TYPE(got.ptr())->tp_name;
  if (THPVariable_Check(got.ptr())) {
    const at::Tensor& t = THPVariable_Unpack(got.ptr());
    if (!t.device().is_cpu())
      what = "a tensor on " + t.device().str() + ": to read it the host would wait; pass " + name + ".item() to do so";
  }
  throw py::type_error(name + " must be " + expected + ", got " + what);
}

// How many axes an array has; 0 for what is no array.
int64_t axes_of(py::handle value) {
  if (PyLong_Check(value.ptr()) || PyFloat_Check(value.ptr())) return 0;
  const py::object ndim = py::getattr(value, "ndim", py::none());
  return PyLong_Check(ndim.ptr()) ? PyLong_AsLong(ndim.ptr()) : 0;
}

// The Python number in a numpy number or a 0-d array; any other value as it is.
py::object plain(py::handle value) {
  PyObject* const p = value.ptr();
  if (!PyFloat_CheckExact(p) && !PyLong_CheckExact(p) && !PyBool_Check(p) && !THPVariable_Check(p) &&
      py::hasattr(value, "ndim") && axes_of(value) == 0)
    return value.attr("item")();
  return py::reinterpret_borrow<py::object>(value);
}

double real(const std::string& name, const char* expected, py::handle value) {
  const py::object number = plain(value);
  PyObject* const p = number.ptr();
  if (PyFloat_CheckExact(p)) return PyFloat_AS_DOUBLE(p);
  bool readable = PyNumber_Check(p) && !PyComplex_Check(p) && !PyBool_Check(p);
  if (THPVariable_Check(p)) {  // float() of one on a device would wait for it
    const at::Tensor& t = THPVariable_Unpack(p);
    readable = t.device().is_cpu() && t.scalar_type() != at::kBool && !t.is_complex();
    const bool differentiable = (t.requires_grad() && at::GradMode::is_enabled()) || t._fw_grad(/*level=*/0).defined();
    TORCH_CHECK_NOT_IMPLEMENTED(!differentiable, name, " has no derivative; pass ", name, ".detach()");
  }
  if (!readable || axes_of(number) != 0) wrong_type(name, expected, value);
  const double result = PyFloat_AsDouble(p);
  if (result != -1 || !PyErr_Occurred()) return result;
  const bool overflow = PyErr_ExceptionMatches(PyExc_OverflowError);
  PyErr_Clear();
  if (overflow) throw py::value_error(name + " must be a number that a float can hold, got a larger int");
  wrong_type(name, expected, value);
}

int64_t whole(const std::string& name, const char* expected, py::handle value) {
  PyObject* const p = value.ptr();
  if (!PyIndex_Check(p) || PyBool_Check(p) || THPVariable_Check(p) || axes_of(value) != 0)
    wrong_type(name, expected, value);
  const int64_t result = PyNumber_AsSsize_t(p, PyExc_OverflowError);
  if (result != -1 || !PyErr_Occurred()) return result;
  const bool overflow = PyErr_ExceptionMatches(PyExc_OverflowError);
  PyErr_Clear();
  if (overflow) throw py::value_error(name + " must be an int between -2^63 and 2^63, got one that is not");
  wrong_type(name, expected, value);
}

// A bool, an int or a float, whichever it is.
IValue number(const std::string& name, const char* expected, py::handle value) {
  const py::object given = plain(value);
  if (PyBool_Check(given.ptr())) return IValue(given.ptr() == Py_True);
  if (PyLong_Check(given.ptr())) return IValue(whole(name, expected, given));
  return IValue(real(name, expected, given));
}

// One size for all axes, or one per axis: an int, or a sequence or a 1-d array of ints.
std::vector<int64_t> sizes(const std::string& name, py::handle value) {
  constexpr const char* expected = "an int or a sequence of ints";
  PyObject* const p = value.ptr();
  if (PyLong_Check(p)) return {whole(name, expected, value)};
  const int64_t axes = axes_of(value);
  if (PyIndex_Check(p) && axes == 0) return {whole(name, expected, value)};
  const bool text = PyUnicode_Check(p) || PyBytes_Check(p) || PyByteArray_Check(p);
  if (!PySequence_Check(p) || text || axes > 1 || THPVariable_Check(p)) wrong_type(name, expected, value);
  std::vector<int64_t> result;
  for (const py::handle size : py::reinterpret_borrow<py::sequence>(value))
    result.push_back(whole(name, expected, size));
  return result;
}

struct Argument {
  std::string name;
  TypeKind kind;
  bool optional;
  bool pair;  // the schema's next argument is the tensor that may be given instead
  // The str that came last, most often the default: the same object is not converted again.
  mutable py::object text{};
  mutable IValue text_value{};

  const char* expected() const {
    switch (kind) {
      case TypeKind::TensorType:
        return optional ? "a torch.Tensor or None" : "a torch.Tensor";
      case TypeKind::FloatType:
      case TypeKind::NumberType:
        return pair ? "a number or a tensor" : "a number";
      case TypeKind::BoolType:
        return "a bool";
      case TypeKind::StringType:
        return "a str";
      case TypeKind::ScalarTypeType:
        return optional ? "a torch.dtype or None" : "a torch.dtype";
      case TypeKind::GeneratorType:
        return "a torch.Generator or None";
      default:
        return "an int";
    }
  }

  void read(py::handle value, torch::jit::Stack& stack) const {
    if (pair) {
      const bool tensor = THPVariable_Check(value.ptr());
      stack.push_back(tensor ? (kind == TypeKind::FloatType && !optional ? IValue(0.0) : IValue()) : one(value));
      stack.push_back(tensor ? IValue(THPVariable_Unpack(value.ptr())) : IValue());
    } else {
      stack.push_back(one(value));
    }
  }

 private:
  IValue one(py::handle value) const {
    PyObject* const p = value.ptr();
    if (optional && value.is_none()) return IValue();
    switch (kind) {
      case TypeKind::TensorType:
        if (THPVariable_Check(p)) return IValue(THPVariable_Unpack(p));
        break;
      case TypeKind::FloatType:
        return IValue(real(name, expected(), value));
      case TypeKind::NumberType:
        return number(name, expected(), value);
      case TypeKind::IntType:
        return IValue(whole(name, expected(), value));
      case TypeKind::ListType:
        return IValue(sizes(name, value));
      case TypeKind::BoolType:
        if (PyBool_Check(p)) return IValue(p == Py_True);
        break;
      case TypeKind::StringType:
        if (!PyUnicode_Check(p)) break;
        if (!text.is(value)) {
          text = py::reinterpret_borrow<py::object>(value);
          Py_ssize_t size = 0;
          const char* const utf8 = PyUnicode_AsUTF8AndSize(p, &size);
          if (!utf8) throw py::error_already_set();
          text_value = IValue(std::string(utf8, size_t(size)));
        }
        return text_value;
      case TypeKind::ScalarTypeType:
        if (THPDtype_Check(p)) return IValue(reinterpret_cast<THPDtype*>(p)->scalar_type);
        break;
      case TypeKind::GeneratorType:
        if (THPGenerator_Check(p)) return IValue(THPGenerator_Unwrap(p));
        break;
      default:
        break;
    }
    wrong_type(name, expected(), value);
  }
};

class Op {
 public:
  explicit Op(const c10::OperatorHandle& handle) : handle_(handle) {
    const auto& arguments = handle.schema().arguments();
    for (size_t i = 0; i < arguments.size(); ++i) {
      c10::TypePtr type = arguments[i].real_type();
      const bool optional = type->kind() == TypeKind::OptionalType;
      if (optional) type = type->expectRef<c10::OptionalType>().getElementType();
      const std::string& name = arguments[i].name();
      const bool pair = i + 1 < arguments.size() && arguments[i + 1].name() == name + "_tensor";
      arguments_.push_back({name, type->kind(), optional, pair});
      i += pair;
    }
  }

  py::object operator()(const py::args& values) const {
    if (values.size() != arguments_.size())
      throw py::type_error(handle_.schema().name() + " takes " + std::to_string(arguments_.size()) +
                           " positional arguments, got " + std::to_string(values.size()));
    torch::jit::Stack stack;
    stack.reserve(2 * arguments_.size());
    for (size_t i = 0; i < arguments_.size(); ++i)
      arguments_[i].read(PyTuple_GET_ITEM(values.ptr(), Py_ssize_t(i)), stack);
    {
      py::gil_scoped_release release;
      handle_.callBoxed(stack);
    }
    const auto wrap = [](IValue& value) {
      return py::reinterpret_steal<py::object>(THPVariable_Wrap(std::move(value).toTensor()));
    };
    if (stack.size() == 1) return wrap(stack[0]);
    py::tuple results(stack.size());
    for (size_t i = 0; i < stack.size(); ++i)
      PyTuple_SET_ITEM(results.ptr(), Py_ssize_t(i), wrap(stack[i]).release().ptr());
    return results;
  }

 private:
  c10::OperatorHandle handle_;
  std::vector<Argument> arguments_;
};

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
  m.def("build_info", &build_info);
  const std::string space = "entmask::";
  for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames()) {
    if (name.name.compare(0, space.size(), space) != 0) continue;
    const std::string short_name = name.name.substr(space.size());
    if (short_name.size() > 9 && short_name.compare(short_name.size() - 9, 9, "_backward") == 0) continue;
    const Op op(c10::Dispatcher::singleton().findSchemaOrThrow(name.name.c_str(), name.overload_name.c_str()));
    m.def(short_name.c_str(), [op](const py::args& values) { return op(values); });
  }
}

}  // namespace
}  // namespace entmask
