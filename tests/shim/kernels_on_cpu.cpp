// kernels.cu for the tests, which load it with ctypes and launch it like the driver does: by name,
// with the addresses of its arguments.
#include <algorithm>
#include <cstring>

#include "cuda_on_cpu.hpp"
#include "kernels.cu"

extern "C" int launch_kernel(const char* name, unsigned blocks, unsigned threads,
                             void** arguments) {
  using namespace coordrl;
  const auto& batch = *static_cast<const Batch*>(arguments[0]);
  if (std::strcmp(name, "show_observations") == 0) {
    shim::launch(blocks, threads, [&] { show_observations(batch); });
  } else if (std::strcmp(name, "play_environments") == 0) {
    const i64* actions = *static_cast<const i64**>(arguments[1]);
    const i64* seeds = *static_cast<const i64**>(arguments[2]);
    const bool* mask = *static_cast<const bool**>(arguments[3]);
    shim::launch(blocks, threads, [&] { play_environments(batch, actions, seeds, mask); });
  } else {
    return 1;
  }
  return 0;
}
