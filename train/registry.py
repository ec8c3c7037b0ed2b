"""Things of one kind by name, one or several a file of a package; a file that is added to the package is found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A mapping in the order of the names; the package's files are imported when somebody first looks into it."""

    def __init__(self, package: str, kind: str) -> None:
        """package: whose files call add(); kind: what messages call one of the things."""
        self.package, self.kind = package, kind
        self.things: dict[str, T] = {}
        self.aliases: dict[str, str] = {}
        self.complete = False

    def add(self, name: str, thing: T, *aliases: str) -> T:
        """Raises ValueError if the name or an alias is taken."""
        for new in (name, *aliases):
            if new in self.things or new in self.aliases:
                raise ValueError(f"{self.kind} {new!r} is there already")
        self.things[name] = thing
        self.aliases.update(dict.fromkeys(aliases, name))
        return thing

    def discover(self) -> None:
        if not self.complete:
            self.complete = True
            for module in iter_modules(import_module(self.package).__path__):
                import_module(f"{self.package}.{module.name}")

    def full_name(self, name: str) -> str:
        """The thing's own name, given that or an alias.

        Raises:
            ValueError: there is none of this name; the message lists what there is.
        """
        self.discover()
        name = self.aliases.get(name, name)
        if name not in self.things:
            raise ValueError(f"{self.kind} must be one of {', '.join([*self, *self.aliases])}; got {name!r}")
        return name

    def __getitem__(self, name: str) -> T:
        return self.things[self.full_name(name)]

    def __iter__(self) -> Iterator[str]:
        self.discover()
        return iter(sorted(self.things))

    def __len__(self) -> int:
        self.discover()
        return len(self.things)
