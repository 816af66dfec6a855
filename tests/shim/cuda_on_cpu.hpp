// A GPU for tests: blocks one after the other, the threads of a block as coroutines that take turns
// at barriers. As slow as it is simple, but a barrier that not all reach is found.
#pragma once

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#define __global__
#define __shared__ static
#define __launch_bounds__(threads, blocks)

namespace shim {

struct Index {
  unsigned x;
};

enum class State { kReady, kAtBlock, kAtWarp, kAsksWhoElse, kDone };

constexpr size_t kStack = 256 << 10;
constexpr unsigned kLanes = 32;

struct Thread {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStack);
  State state = State::kReady;
  unsigned mask = 0;  // whom it waits for, or who came along
  bool predicate = false;
};

struct Block {
  std::vector<Thread> threads;
  ucontext_t scheduler;
  std::function<void()> kernel;
  unsigned current = 0;
};

inline Block* block = nullptr;

inline Thread& current() { return block->threads[block->current]; }

inline void wait(State state) {
  current().state = state;
  swapcontext(&current().context, &block->scheduler);
}

inline void enter() {
  block->kernel();
  wait(State::kDone);
}

}  // namespace shim

inline shim::Index threadIdx{}, blockIdx{}, blockDim{};

inline void __syncthreads() { shim::wait(shim::State::kAtBlock); }

inline unsigned __activemask() {
  shim::wait(shim::State::kAsksWhoElse);
  return shim::current().mask;
}

inline int __any_sync(unsigned mask, int predicate) {
  shim::current().mask = mask;
  shim::current().predicate = predicate != 0;
  shim::wait(shim::State::kAtWarp);
  return shim::current().predicate;
}

inline void __syncwarp(unsigned mask) { __any_sync(mask, 0); }

namespace shim {

/// Lets threads go on whose barrier is complete; false if there are none.
inline bool release(std::vector<Thread>& threads) {
  unsigned done = 0, at_block = 0;
  for (const Thread& thread : threads) {
    done += thread.state == State::kDone;
    at_block += thread.state == State::kAtBlock;
  }
  if (at_block > 0 && done + at_block == threads.size()) {
    for (Thread& thread : threads) {
      if (thread.state == State::kAtBlock) thread.state = State::kReady;
    }
    return true;
  }
  for (size_t first = 0; first < threads.size(); first += kLanes) {
    const size_t lanes = std::min<size_t>(kLanes, threads.size() - first);
    const auto lane = [&](size_t i) -> Thread& { return threads[first + i]; };
    for (size_t i = 0; i < lanes; ++i) {
      if (lane(i).state != State::kAtWarp) continue;
      const unsigned mask = lane(i).mask;
      bool complete = true, any = false;
      for (size_t j = 0; j < lanes; ++j) {
        if (!(mask >> j & 1)) continue;
        complete = complete && lane(j).state == State::kAtWarp && lane(j).mask == mask;
        any = any || lane(j).predicate;
      }
      if (!complete) continue;
      for (size_t j = 0; j < lanes; ++j) {
        if (!(mask >> j & 1)) continue;
        lane(j).predicate = any;
        lane(j).state = State::kReady;
      }
      return true;
    }
  }
  for (size_t first = 0; first < threads.size(); first += kLanes) {
    unsigned mask = 0;
    for (size_t i = first; i < threads.size() && i < first + kLanes; ++i) {
      if (threads[i].state == State::kAsksWhoElse) mask |= 1u << (i - first);
    }
    for (size_t i = first; mask != 0 && i < threads.size() && i < first + kLanes; ++i) {
      if (!(mask >> (i - first) & 1)) continue;
      threads[i].mask = mask;
      threads[i].state = State::kReady;
    }
    if (mask != 0) return true;
  }
  return false;
}

/// Launches a kernel and waits for its end.
inline void launch(unsigned blocks, unsigned threads, std::function<void()> kernel) {
  Block here;
  here.threads = std::vector<Thread>(threads);
  here.kernel = std::move(kernel);
  block = &here;
  blockDim = {threads};
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    for (Thread& thread : here.threads) {
      thread.state = State::kReady;
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.data();
      thread.context.uc_stack.ss_size = thread.stack.size();
      thread.context.uc_link = nullptr;
      makecontext(&thread.context, enter, 0);
    }
    for (unsigned done = 0; done < threads;) {
      bool ran = false;
      done = 0;
      for (here.current = 0; here.current < threads; ++here.current) {
        if (current().state == State::kReady) {
          ran = true;
          threadIdx = {here.current};
          swapcontext(&here.scheduler, &current().context);
        }
        done += current().state == State::kDone;
      }
      if (!ran && done < threads && !release(here.threads)) {
        std::fprintf(stderr, "threads wait for each other at different barriers\n");
        std::abort();
      }
    }
  }
  block = nullptr;
}

}  // namespace shim
