// Runs one case of one stage of the CPU kernels: reads it from stdin, writes the outputs to stdout.
//
// Built with sanitizers, once per instruction set, without torch. The format of a case is that of tests/simt/driver.py.
// Every buffer, workspace and scratch is a piece of the heap of exactly its size: a step beyond it is a fault.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/cpu.h"

namespace {

using entmask::cpu::Stage;
const entmask::cpu::Kernels& table = entmask::cpu::ENTMASK_ISA::table;

constexpr int kUnwritten = 0xFF;  // NaN in every floating dtype

[[noreturn]] void fail(const std::string& why) {
  fprintf(stderr, "cpu: bad case: %s\n", why.c_str());
  exit(2);
}

class Block {
 public:
  explicit Block(size_t bytes, size_t offset = 0, size_t alignment = 16) : bytes_(bytes), offset_(offset) {
    if (posix_memalign(&memory_, alignment, bytes + offset)) fail("no memory");
    memset(memory_, kUnwritten, bytes + offset);
  }
  Block(const Block&) = delete;
  ~Block() { free(memory_); }
  char* data() const { return static_cast<char*>(memory_) + offset_; }
  size_t bytes() const { return bytes_; }

 private:
  void* memory_ = nullptr;
  size_t bytes_, offset_;
};

// As csrc/ops does, but for memory of its own for each call.
using Memory = std::unique_ptr<Block>;
Memory memory(size_t bytes) { return bytes ? std::make_unique<Block>(bytes, 0, 64) : nullptr; }

struct Run {
  std::string order;  // forward: all items at once; reverse: one by one, from the last; random: in pieces, mixed
  uint64_t seed;
};

std::vector<std::pair<int64_t, int64_t>> pieces(int64_t items, const Run& run) {
  std::vector<std::pair<int64_t, int64_t>> out;
  std::mt19937_64 random(run.seed);
  const bool whole = run.order == "forward", mixed = run.order == "random";
  for (int64_t begin = 0; begin < items;) {
    const int64_t step = whole ? items : mixed ? 1 + int64_t(random() % 5) : 1;
    const int64_t end = std::min(items, begin + step);
    out.emplace_back(begin, end);
    begin = end;
  }
  if (!whole) std::reverse(out.begin(), out.end());
  if (mixed) std::shuffle(out.begin(), out.end(), random);
  return out;
}

template <class P>
void run_stage(const Stage<P>* stage, const void* bytes, const Run& run) {
  if (!stage) fail("this driver was built without that stage");
  P p;
  memcpy(&p, bytes, sizeof p);
  const Memory workspace = memory(stage->workspace ? stage->workspace(p) : 0);
  for (const auto& [begin, end] : pieces(stage->items(p), run)) {
    const Memory scratch = memory(stage->scratch ? stage->scratch(p) : 0);
    stage->run(p, {workspace ? workspace->data() : nullptr, scratch ? scratch->data() : nullptr}, begin, end);
  }
  if (stage->finish) stage->finish(p, workspace ? workspace->data() : nullptr);
}

struct Operation {
  const char* name;
  size_t params_bytes;
  void (*run)(const void* params, const Run& run);
};

#define OPERATION(name, stage, P) \
  {name, sizeof(entmask::P), [](const void* p, const Run& run) { run_stage<entmask::P>(table.stage, p, run); }}
const Operation operations[] = {
    OPERATION("entropy_pool", entropy_pool, EntropyPoolParams),
    OPERATION("entropy_map", entropy_map, EntropyMapParams),
    OPERATION("entropy_backward", entropy_backward, EntropyBackwardParams),
    OPERATION("pseudo_labels", pseudo_labels, PseudoLabelsParams),
    OPERATION("select", select, SelectParams),
    OPERATION("where", where, WhereParams),
    OPERATION("box_mask", box_mask, BoxMaskParams),
    OPERATION("loss_forward", loss_forward, LossForwardParams),
    OPERATION("loss_backward", loss_backward, LossBackwardParams),
    OPERATION("soft_loss_forward", soft_loss_forward, SoftLossForwardParams),
    OPERATION("soft_loss_backward", soft_loss_backward, SoftLossBackwardParams),
    OPERATION("gather", gather, GatherParams),
    OPERATION("gather_backward", gather_backward, GatherBackwardParams),
    OPERATION("components", components, ComponentsParams),
};

struct BufferSpec {
  bool output;
  size_t bytes, offset;
  std::string contents;  // of an input
};

struct Case {
  const Operation* operation = nullptr;
  std::string params;
  std::vector<BufferSpec> buffers;
  std::vector<std::pair<size_t, size_t>> pointers;  // byte offset in the params struct, which buffer
  std::vector<Run> runs;
};

std::string read_bytes(std::istream& in, size_t bytes) {
  std::string data(bytes, '\0');
  in.ignore(1);  // the newline
  if (!in.read(data.data(), std::streamsize(bytes))) fail("it ends early");
  return data;
}

Case read_case(std::istream& in) {
  Case c;
  for (std::string word, name; in >> word;) {
    if (word == "operation") {
      in >> name;
      for (const Operation& o : operations)
        if (name == o.name) c.operation = &o;
    } else if (word == "params") {
      size_t bytes;
      in >> bytes;
      c.params = read_bytes(in, bytes);
    } else if (word == "input" || word == "output") {
      BufferSpec& b = c.buffers.emplace_back();
      b.output = word == "output";
      in >> name >> b.bytes >> b.offset;
      if (!b.output) b.contents = read_bytes(in, b.bytes);
    } else if (word == "pointer") {
      auto& p = c.pointers.emplace_back();
      in >> p.first >> p.second;
    } else if (word == "run") {
      Run& r = c.runs.emplace_back();
      in >> r.order >> r.seed;
    } else {
      fail("what is " + word + "?");
    }
  }
  if (!c.operation || c.params.size() != c.operation->params_bytes) fail("no such operation, or another params struct");
  return c;
}

// The outputs of the case on fresh memory, one after the other.
std::string run_once(const Case& c, const Run& run) {
  std::vector<std::unique_ptr<Block>> buffers;
  for (const BufferSpec& b : c.buffers) {
    buffers.push_back(std::make_unique<Block>(b.bytes, b.offset));
    memcpy(buffers.back()->data(), b.contents.data(), b.contents.size());
  }
  std::string params = c.params;
  for (const auto& [field, buffer] : c.pointers) {
    const void* address = buffers[buffer]->data();
    memcpy(&params[field], &address, sizeof address);
  }
  c.operation->run(params.data(), run);
  std::string outputs;
  for (size_t i = 0; i < buffers.size(); ++i) {
    if (c.buffers[i].output)
      outputs.append(buffers[i]->data(), buffers[i]->bytes());
    else if (memcmp(buffers[i]->data(), c.buffers[i].contents.data(), buffers[i]->bytes()) != 0)
      fail("an input was written to");
  }
  return outputs;
}

bool runs_here() {
  const std::string isa = table.name;
#if defined(__x86_64__)
  if (isa == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == "avx512") return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
#endif
  return isa == "baseline";
}

}  // namespace

int main(int argc, char**) {
  if (argc > 1) return runs_here() ? 0 : 3;
  std::ios::sync_with_stdio(false);
  const Case c = read_case(std::cin);
  std::string first;
  for (size_t i = 0; i < c.runs.size(); ++i) {
    std::string outputs = run_once(c, c.runs[i]);
    if (i == 0) first = std::move(outputs);
    if (i > 0 && outputs != first) {
      fprintf(stderr, "cpu: items in another order give other outputs\n");
      return 1;
    }
  }
  fwrite(first.data(), 1, first.size(), stdout);
  fputs("{}", stdout);
  return 0;
}
