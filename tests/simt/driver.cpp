// Runs one case: reads it from stdin, launches, writes the outputs and the counts to stdout. See driver.py for the
// format.
//
// A process of its own, so that a fault ends the case and not the test run, and sanitizers need no preloading.
#include "driver.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <iterator>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "counters.h"
#include "memory.h"
#include "runtime.h"

namespace {

struct BufferSpec {
  std::string name;
  bool output;
  size_t bytes, offset;
  std::string contents;  // of an input
};

struct Pointer {
  size_t field, buffer;  // byte offset in the params struct, which buffer
};

struct Address {
  size_t field, value;
};

struct Run {
  simt::Order order;
  uint64_t seed;
};

struct Case {
  const simt::Operation* operation = nullptr;
  std::string params;
  std::vector<BufferSpec> buffers;
  std::vector<Pointer> pointers;
  std::vector<Address> addresses;
  std::vector<Run> runs;
};

[[noreturn]] void fail(const std::string& why) {
  fprintf(stderr, "simt: bad case: %s\n", why.c_str());
  exit(2);
}

std::string read_bytes(std::istream& in, size_t bytes) {
  std::string data(bytes, '\0');
  in.ignore(1);  // the newline
  if (!in.read(data.data(), static_cast<std::streamsize>(bytes))) fail("it ends early");
  return data;
}

Case read_case(std::istream& in) {
  Case c;
  for (std::string word; in >> word;) {
    if (word == "operation") {
      in >> word;
      for (const simt::Operation* o = simt::operations; o->name; ++o)
        if (word == o->name) c.operation = o;
      if (!c.operation) fail("no operation " + word);
    } else if (word == "params") {
      size_t bytes;
      in >> bytes;
      c.params = read_bytes(in, bytes);
    } else if (word == "input" || word == "output") {
      BufferSpec& b = c.buffers.emplace_back();
      b.output = word == "output";
      in >> b.name >> b.bytes >> b.offset;
      if (!b.output) b.contents = read_bytes(in, b.bytes);
    } else if (word == "pointer") {
      Pointer& p = c.pointers.emplace_back();
      in >> p.field >> p.buffer;
    } else if (word == "address") {
      Address& a = c.addresses.emplace_back();
      in >> a.field >> a.value;
    } else if (word == "dry") {
      simt::settings.dry = true;
    } else if (word == "run") {
      Run& r = c.runs.emplace_back();
      in >> word >> r.seed;
      r.order = word == "forward"   ? simt::Order::forward
                : word == "reverse" ? simt::Order::reverse
                                    : simt::Order::random;
    } else if (word == "shared_limit") {
      in >> simt::settings.shared_limit;
    } else if (word == "multiprocessors") {
      in >> simt::settings.multiprocessors;
    } else if (word == "blocks_at_once") {
      in >> simt::settings.blocks_at_once;
    } else {
      fail("what is " + word + "?");
    }
  }
  if (!c.operation || c.params.size() != c.operation->params_bytes) fail("the params struct has another size here");
  return c;
}

// Runs the case on fresh buffers; the outputs, one after the other.
std::string run_once(const Case& c, const Run& run) {
  simt::settings.order = run.order;
  simt::settings.seed = run.seed;
  static char stream;
  simt::settings.stream = &stream;

  std::vector<std::unique_ptr<simt::Buffer>> buffers;
  for (const BufferSpec& b : c.buffers) {
    buffers.push_back(std::make_unique<simt::Buffer>(b.name, b.bytes, b.offset));
    memcpy(buffers.back()->data(), b.contents.data(), b.contents.size());
  }
  std::vector<char> params(c.params.begin(), c.params.end());
  for (const Pointer& p : c.pointers) {
    const void* address = buffers[p.buffer]->data();
    memcpy(&params[p.field], &address, sizeof address);
  }
  for (const Address& a : c.addresses) memcpy(&params[a.field], &a.value, sizeof a.value);
  const size_t scratch = c.operation->workspace(params.data());
  const simt::Buffer workspace("workspace", simt::settings.dry ? 0 : scratch, 0);

  const cudaError_t error = c.operation->run(params.data(), workspace.data(), reinterpret_cast<cudaStream_t>(&stream));
  if (error != cudaSuccess) simt::complain("the launcher returned error %d", static_cast<int>(error));

  workspace.check_guards();
  std::string outputs;
  for (size_t i = 0; i < buffers.size(); ++i) {
    buffers[i]->check_guards();
    if (c.buffers[i].output)
      outputs.append(buffers[i]->data(), buffers[i]->bytes());
    else if (memcmp(buffers[i]->data(), c.buffers[i].contents.data(), buffers[i]->bytes()) != 0)
      simt::complain("a write to the input %s", c.buffers[i].name.c_str());
  }
  return outputs;
}

}  // namespace

int main() {
  std::ios::sync_with_stdio(false);
  const Case c = read_case(std::cin);
  std::string first;
  for (size_t i = 0; i < c.runs.size(); ++i) {
    std::string outputs = run_once(c, c.runs[i]);
    if (i == 0)
      first = std::move(outputs);
    else if (outputs != first)
      simt::complain("schedule %zu gives other outputs than schedule 0", i);
  }
  fwrite(first.data(), 1, first.size(), stdout);
  simt::print_counts(stdout);
  fflush(stdout);
  return simt::complaints ? 1 : 0;
}
