#include "fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#ifdef SIMT_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef SIMT_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace simt {
namespace {

constexpr size_t page = 4096;
#if defined(SIMT_ASAN) || defined(SIMT_TSAN)
constexpr size_t stack_bytes = 256 << 10;  // red zones make frames large
#else
constexpr size_t stack_bytes = 64 << 10;
#endif

// What outlives a launch: to make stacks, and TSan's records of fibers, costs more than most kernels.
std::vector<Context> idle;

char* new_stack() {
  void* map =
      mmap(nullptr, page + stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED || mprotect(map, page, PROT_NONE) != 0) {
    perror("simt: no memory for a fiber's stack");
    exit(2);
  }
  return static_cast<char*>(map) + page;
}

}  // namespace

#ifdef __x86_64__
extern "C" void simt_switch(void** save, void* resume);
asm(R"(
.text
.globl simt_switch
.type simt_switch,@function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch,.-simt_switch
)");
#endif

void adopt_thread(Context& context) {
  pthread_attr_t attributes;
  void* stack;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &stack, &context.stack_size);
  pthread_attr_destroy(&attributes);
  context.stack = stack;
#ifdef SIMT_TSAN
  context.tsan_fiber = __tsan_get_current_fiber();
#endif
}

void create_fiber(Context& context) {
  if (!idle.empty()) {
    context = idle.back();
    idle.pop_back();
    return;
  }
  context.stack = new_stack();
  context.stack_size = stack_bytes;
#ifdef SIMT_TSAN
  context.tsan_fiber = __tsan_create_fiber(0);
#endif
}

void release_fiber(Context& context) { idle.push_back(context); }

void prepare_fiber(Context& context, void (*entry)()) {
#ifdef __x86_64__
  char* end = static_cast<char*>(const_cast<void*>(context.stack)) + context.stack_size;
  void** top = reinterpret_cast<void**>(end);
  *--top = nullptr;  // entry's return address: keeps the stack aligned, ends a backtrace
  *--top = reinterpret_cast<void*>(entry);
  for (int saved_register = 0; saved_register < 6; ++saved_register) *--top = nullptr;
  context.stack_pointer = top;
#else
  getcontext(&context.registers);
  context.registers.uc_stack.ss_sp = const_cast<void*>(context.stack);
  context.registers.uc_stack.ss_size = context.stack_size;
  context.registers.uc_link = nullptr;
  makecontext(&context.registers, entry, 0);
#endif
}

void enter_fiber() {
#ifdef SIMT_ASAN
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

void switch_context(Context& from, Context& to, [[maybe_unused]] bool ends) {
#ifdef SIMT_ASAN
  __sanitizer_start_switch_fiber(ends ? nullptr : &from.asan_stack, to.stack, to.stack_size);
#endif
#ifdef SIMT_TSAN
  __tsan_switch_to_fiber(to.tsan_fiber, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef __x86_64__
  simt_switch(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.registers, &to.registers);
#endif
#ifdef SIMT_ASAN
  __sanitizer_finish_switch_fiber(from.asan_stack, nullptr, nullptr);
#endif
}

}  // namespace simt
