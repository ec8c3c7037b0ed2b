"""The C++/CUDA extension; everything else is in pyproject.toml."""

from setuptools import Extension, setup

from build_backend.extension import NinjaBuild

setup(ext_modules=[Extension("entmask_ext._C", sources=[])], cmdclass={"build_ext": NinjaBuild})
