"""Mutants of components.cuh."""

from .mutant import RACES, Mutant

TESTS = "test_components.py"
FILE = "components.cuh"
MUTANTS = [
    Mutant(
        "start: a run goes on from the row before",
        FILE,
        "inside && at.w > 0 && static_cast<int64_t>(a.labels[index - 1]) == label",
        "inside && index > 0 && static_cast<int64_t>(a.labels[index - 1]) == label",
        TESTS,
    ),
    Mutant(
        "start: sums of pixels begin with what differs",
        FILE,
        "    a.pixels[pixel.index] = 0;\n",
        "    a.pixels[pixel.index] = static_cast<unsigned>(pixel.place);\n",
        TESTS,
    ),
    Mutant(
        "start: only the first threads' places are cleared",
        FILE,
        "for (int64_t i = pixel.index; i < a.slots; i += threads) a.best[i] = 0;",
        "if (pixel.index < a.slots && threads > 0) a.best[pixel.index] = 0;",
        TESTS,
    ),
    Mutant("unite: runs of two warps stay apart", FILE, "if (left && pixel.lane() == 0)", "if (false)", TESTS),
    Mutant(
        "unite: the rows below in the plane before are left out",
        FILE,
        "(back == 0 ? -1 : 1)",
        "(back == 0 ? -1 : 0)",
        TESTS,
    ),
    Mutant(
        "unite: no diagonal step to the right",
        FILE,
        "if (right_inside && same(other + 1)) unite(parent, place, other + 1);",
        "",
        TESTS,
    ),
    Mutant(
        "unite: no diagonal step to the left",
        FILE,
        "if (pixel.at.w > 0 && !left && same(other - 1)) unite(parent, place, other - 1);",
        "",
        TESTS,
    ),
    Mutant(
        "unite: one axis too many", FILE, "if (steps > a.connectivity ||", "if (steps > a.connectivity + 1 ||", TESTS
    ),
    Mutant(
        "unite: diagonal steps at any connectivity", FILE, "} else if (steps < a.connectivity) {", "} else {", TESTS
    ),
    Mutant(
        "unite: united through the left though that pixel is another class",
        FILE,
        "if (!left || !same(other - 1)) unite(",
        "if (!left) unite(",
        TESTS,
    ),
    Mutant(
        "unite: a root that another thread has just lowered is forgotten",
        FILE,
        "    a = before;  // another thread",
        "    return;  // another thread",
        TESTS,
    ),
    Mutant(
        "unite: a plain store for an atomic",
        FILE,
        "const int32_t before = atomicMin(parent + a, b);",
        "const int32_t before = parent[a]; parent[a] = b;",
        f"{TESTS} {RACES}",
    ),
    Mutant(
        "count: the way is halved while roots are stored",
        FILE,
        "const int32_t root = find_root(a.parent + pixel.base, pixel.place);",
        "const int32_t root = find_root_halving(a.parent + pixel.base, pixel.place);",
        TESTS,
    ),
    Mutant("count: the roots are not stored", FILE, "  relaxed_store(a.parent + pixel.index, root);\n", "", TESTS),
    Mutant(
        "count: a run's pixels up to the end of the warp",
        FILE,
        "return (later != 0 ? __ffs(static_cast<int>(later)) - 1 : 32) - lane();",
        "return 32 - lane() + static_cast<int>(later & 0);",
        TESTS,
    ),
    Mutant(
        "choose: the last of equals",
        FILE,
        "<< 32 | (~0u - static_cast<unsigned>(root))",
        "<< 32 | static_cast<unsigned>(root)",
        TESTS,
    ),
    Mutant(
        "choose: all classes are one",
        FILE,
        "atomicMax(a.best + pixel.at.n * a.classes + pixel.label, claim(",
        "atomicMax(a.best + pixel.at.n * a.classes, claim(",
        TESTS,
    ),
    Mutant(
        "write: labels outside the classes go",
        FILE,
        "  bool stays = true;\n",
        "  bool stays = pixel.label < a.classes;\n",
        TESTS,
    ),
]
