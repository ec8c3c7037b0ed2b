"""The structs of csrc/kernels/params.h, read from that file, so that their layout is written down once."""

from __future__ import annotations

import ctypes
import re
from typing import Any

from .build import ROOT

_SCALARS: dict[str, Any] = {
    "bool": ctypes.c_bool,
    "double": ctypes.c_double,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
}


def _parse(text: str) -> tuple[dict[str, type[ctypes.Structure]], dict[str, dict[str, int]]]:
    text = re.sub(r"//.*", "", text)
    enums = {
        name: {item.strip(): value for value, item in enumerate(items.split(","))}
        for name, items in re.findall(r"enum class (\w+) : int32_t \{([^}]*)\};", text)
    }
    types: dict[str, Any] = {**_SCALARS, **{name: ctypes.c_int32 for name in enums}}
    for name, body in re.findall(r"struct (\w+) \{([^}]*)\};", text):
        fields: list[tuple[str, Any]] = []
        for declaration in filter(None, (d.strip() for d in body.split(";"))):
            match = re.fullmatch(r"(?:const\s+)?(\w+)(\*?)\s+(.*)", declaration, re.DOTALL)
            assert match, f"params.h: cannot read {declaration!r}"
            kind, star, names = match.groups()
            for field in names.split(","):
                field_name, _, length = field.strip().rstrip("]").partition("[")
                c_type = ctypes.c_void_p if star else types[kind]
                fields.append((field_name, c_type * int(length) if length else c_type))
        types[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    return {n: t for n, t in types.items() if isinstance(t, type) and issubclass(t, ctypes.Structure)}, enums


STRUCTS, ENUMS = _parse((ROOT / "csrc" / "kernels" / "params.h").read_text())


def pack(struct: str, fields: dict[str, Any]) -> tuple[bytes, list[tuple[int, Any]]]:
    """The struct's bytes, and for each pointer that is not None its byte offset and what it was set to.

    Structs within are dicts, arrays lists. Every field must be given, except pointers (null).
    """
    pointers: list[tuple[int, Any]] = []

    def fill(target: ctypes.Structure, values: dict[str, Any], base: int) -> None:
        types = dict(target._fields_)
        unknown = values.keys() - types.keys()
        assert not unknown, f"{type(target).__name__} has no {unknown}"
        for name, kind in types.items():
            offset = base + getattr(type(target), name).offset
            if kind is ctypes.c_void_p:
                if values.get(name) is not None:
                    pointers.append((offset, values[name]))
            elif issubclass(kind, ctypes.Structure):
                fill(getattr(target, name), values[name], offset)
            elif issubclass(kind, ctypes.Array):
                setattr(target, name, kind(*values[name]))
            else:
                setattr(target, name, values[name])

    instance = STRUCTS[struct]()
    fill(instance, fields, 0)
    return bytes(instance), pointers
