"""exp and log of the CPU kernels over their whole range, in every instruction set that this processor runs."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import entmask_ext
from build_backend import extension

CSRC = Path(__file__).resolve().parent.parent / "csrc"
FUNCTIONS = """
#include "kernels/cpu/exp_log.h"
using namespace entmask::cpu::ENTMASK_ISA;

template <class T, class F>
static void each(const T* x, T* y, long n, F f) {
  for (long i = 0; i < n; i += kWidth<T>) store(y + i, f(load(x + i)));
}
template <class T>
static Vec<T> moment(Vec<T> d) {
  Vec<T> z = Vec<T>{}, s = Vec<T>{};
  add_exp<T>(d, z, s);
  return s;
}
"""
EXPORT = """
extern "C" __attribute__((visibility("default"))) void NAME_TYPE(const TYPE* x, TYPE* y, long n) {
  each(x, y, n, FUNCTION<TYPE>);
}
"""
NAMES = {"exp": "exp_nonpositive", "log1p": "log1p_nonnegative", "moment": "moment"}
ISAS = ["baseline", "avx2", "avx512"]
CTYPE = {np.float32: "float", np.float64: "double"}
TINY = {np.float32: -87.3, np.float64: -708.0}  # e^d is a normal number above
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float", "double"])


@pytest.fixture(scope="module", params=ISAS)
def call(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """call(name, x): the function of exp_log.h on an array, compiled as the build compiles the kernels."""
    isa, compiler = request.param, shutil.which("g++") or shutil.which("c++")
    running = entmask_ext._C.build_info()["cpu_isa"]
    if ISAS.index(isa) > ISAS.index(running):
        pytest.skip(f"{isa}: this process runs {running}")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp(isa)
    exports = [
        EXPORT.replace("NAME", name).replace("FUNCTION", function).replace("TYPE", ctype)
        for name, function in NAMES.items()
        for ctype in CTYPE.values()
    ]
    (folder / "math.cpp").write_text(FUNCTIONS + "".join(exports))
    flags = [*extension.KERNEL_FLAGS, *extension.isas()[isa], f"-DENTMASK_ISA={isa}", f"-I{CSRC}", "-shared", "-w"]
    subprocess.run([compiler, *flags, str(folder / "math.cpp"), "-o", str(folder / "math.so")], check=True)
    library = ctypes.CDLL(str(folder / "math.so"))

    def run(name: str, x: np.ndarray) -> np.ndarray:
        padded = np.concatenate([x, np.zeros(-len(x) % 16, x.dtype)])
        y = np.full_like(padded, np.nan)
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (padded, y)]
        getattr(library, f"{name}_{CTYPE[x.dtype.type]}")(*pointers, ctypes.c_long(len(padded)))
        return y[: len(x)]

    return run


def exponents(dtype: type, seed: int = 0) -> np.ndarray:
    """Negative numbers of every magnitude, multiples of ln 2 / 2 and their neighbours, down to where e^d ends being
    normal; and numbers up to 4, by which a class may be above what the sums of many classes are relative to.
    """
    rng = np.random.default_rng(seed)
    lowest = TINY[dtype]
    steps = np.arange(0, -2 * lowest / np.log(2)) * (-np.log(2) / 2)
    edges = np.concatenate([steps, np.nextafter(steps.astype(dtype), 0), np.nextafter(steps.astype(dtype), -np.inf)])
    x = np.concatenate([-np.exp(rng.uniform(np.log(1e-30), np.log(-lowest), 500_000)),
                        rng.uniform(lowest, 0, 500_000), rng.uniform(0, 4, 200_000), edges]).astype(dtype)  # fmt: skip
    return x[x > lowest]


@DTYPES
def test_exp(call, dtype):
    x = exponents(dtype)
    exact = np.exp(x.astype(np.longdouble))
    error = np.abs(call("exp", x) / exact - 1)
    unit = float(np.finfo(dtype).eps)
    assert (error <= unit * (1.3 + (0.5 + np.abs(x)) * (1 if dtype == np.float32 else 0.01))).all(), x[error.argmax()]
    assert (error[np.abs(x) < 1] <= unit * 2).all()


@DTYPES
def test_exp_where_it_is_exact(call, dtype):
    zero = [-89.0 if dtype == np.float32 else -710.0, -1e30, np.finfo(dtype).min, -np.inf]
    y = call("exp", np.array([0.0, -0.0, *zero, np.nan], dtype))
    assert y[:2].tolist() == [1, 1] and y[2:-1].tolist() == [0] * len(zero) and np.isnan(y[-1])


@DTYPES
def test_exp_below_the_normal_numbers(call, dtype):
    x = np.linspace(TINY[dtype] - 20, TINY[dtype], 4096).astype(dtype)
    y = call("exp", x)
    assert ((y >= 0) & (y <= 2 * np.finfo(dtype).tiny)).all()


@DTYPES
def test_moment(call, dtype):
    x = exponents(dtype, 1)
    x = x[np.abs(x) > 1e-30]
    exact = np.exp(x.astype(np.longdouble)) * x
    error = np.abs(call("moment", x) / exact - 1)
    unit = float(np.finfo(dtype).eps)
    assert (error <= unit * (2 + (0.5 + np.abs(x)) * (1 if dtype == np.float32 else 0.01))).all()
    assert call("moment", np.array([-np.inf, np.finfo(dtype).min, 0.0], dtype)).tolist() == [0, 0, 0]
    assert np.isnan(call("moment", np.array([np.nan], dtype))).all()


@DTYPES
def test_log1p(call, dtype):
    """Up to the product over 16 rows of 128 classes, and relatively accurate down to the smallest numbers."""
    rng = np.random.default_rng(2)
    x = np.exp(rng.uniform(np.log(1e-37), np.log(2.0**112), 1_000_000)).astype(dtype)
    x = np.concatenate([x, np.linspace(0, 4, 100_001, dtype=dtype)])
    exact = np.log1p(x.astype(np.longdouble))
    error = np.abs(call("log1p", x) - exact)
    assert (error <= 2 * float(np.finfo(dtype).eps) * exact).all(), x[(error / np.maximum(exact, 1e-300)).argmax()]
    assert np.isnan(call("log1p", np.array([np.nan], dtype))).all()


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="no aarch64 cross compiler")
@pytest.mark.parametrize("source", sorted((CSRC / "kernels" / "cpu").glob("*.cpp")), ids=lambda path: path.stem)
def test_compiles_for_arm(source, tmp_path):
    flags = [*extension.KERNEL_FLAGS, "-O0", "-Werror", "-DENTMASK_ISA=baseline"]
    command = ["aarch64-linux-gnu-g++", *flags, "-c", str(source), "-o", str(tmp_path / "kernel.o")]
    subprocess.run(command, check=True)
