// Cooperative contexts: what one OS thread needs to hold many CUDA threads.
//
// A switch saves the callee-saved registers only (x86-64) or goes through ucontext (elsewhere), and tells ASan and TSan
// about the new stack. TSan is told that a switch orders nothing: only barriers and fences of the kernel do.
#pragma once

#include <cstddef>
#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace simt {

struct Context {
#ifdef __x86_64__
  void* stack_pointer = nullptr;
#else
  ucontext_t registers;
#endif
  const void* stack = nullptr;  // lowest address
  size_t stack_size = 0;
  void* asan_stack = nullptr;  // ASan's fake stack while the context sleeps
  void* tsan_fiber = nullptr;
};

// The context of the calling OS thread.
void adopt_thread(Context& context);

// A stack (its lowest page is a guard) and what TSan calls a fiber, from a pool. On the launching thread only.
void create_fiber(Context& context);
void release_fiber(Context& context);

// Makes the next switch to the context call entry() on a fresh stack. entry must not return.
void prepare_fiber(Context& context, void (*entry)());

// The first thing that entry() must call.
void enter_fiber();

// `ends`: `from` will never be switched to again without prepare_fiber.
void switch_context(Context& from, Context& to, bool ends = false);

}  // namespace simt
