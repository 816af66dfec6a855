// The part of NVIDIA's driver that nvrtc.py calls, beneath the real cuda.bindings. Any module that is
// loaded is kernels.cu, as tests/shim runs it.
#include <dlfcn.h>

#include <cstdint>

#include "kernels_on_cpu.cpp"

namespace {

enum Status {
  kSuccess,
  kInvalidValue,
  kInvalidContext = 201,
  kNotFound = 500,
  kIllegalAddress = 700
};
enum Attribute { kMaxDynamicSharedSizeBytes = 8 };
constexpr unsigned kMostSharedBytes = 227 << 10;  // of a block, on an H100
constexpr unsigned kSharedBytesUnasked = 48 << 10;
constexpr unsigned kEnoughToShow = 3;  // as many threads as there are share a picture

struct Kernel {
  const char* name;
  unsigned shared_bytes;
};
Kernel kernels[] = {{"play_environments", kSharedBytesUnasked},
                    {"show_observations", kSharedBytesUnasked}};
bool (*may_run)(const char* name, std::uint64_t stream, void** arguments) = nullptr;
long launches_until_spoiled = 0;

}  // namespace

extern "C" {

/// Has a function told of each launch, which says whether its memory is there.
void note_launches(bool (*note)(const char*, std::uint64_t, void**)) { may_run = note; }

/// Flips a bit of RAM in the first environment behind as many launches that play.
void spoil_launch(long number) { launches_until_spoiled = number; }

int cuInit(unsigned) { return kSuccess; }

int cuDriverGetVersion(int* version) {
  *version = 99000;  // newer than any compiler
  return kSuccess;
}

/// Of a thread. One that has called nothing of CUDA has none.
thread_local void* context = nullptr;

int cuCtxGetCurrent(void** current) {
  *current = kernels;  // behind torch's initialization
  return kSuccess;
}

int cuCtxSetCurrent(void* current) {
  context = current;
  return kSuccess;
}

int cuModuleLoadData(void** module, const void*) {
  *module = kernels;
  return kSuccess;
}

int cuModuleGetFunction(void** function, void*, const char* name) {
  for (Kernel& kernel : kernels) {
    if (std::strcmp(name, kernel.name) != 0) continue;
    *function = &kernel;
    return kSuccess;
  }
  return kNotFound;
}

int cuFuncSetAttribute(void* function, int attribute, int value) {
  if (attribute != kMaxDynamicSharedSizeBytes || unsigned(value) > kMostSharedBytes)
    return kInvalidValue;
  static_cast<Kernel*>(function)->shared_bytes = unsigned(value);
  return kSuccess;
}

int cuLaunchKernel(void* function, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned,
                   unsigned, unsigned shared_bytes, void* stream, void** arguments, void**) {
  const Kernel& kernel = *static_cast<Kernel*>(function);
  if (blocks == 0 || threads == 0 || shared_bytes > kernel.shared_bytes)
    return kInvalidValue;
  if (context == nullptr) return kInvalidContext;
  if (!may_run(kernel.name, std::uint64_t(stream), arguments)) return kIllegalAddress;
  const bool plays = &kernel == kernels;
  const int status =
      launch_kernel(kernel.name, blocks, plays ? threads : kEnoughToShow, arguments);
  if (plays && --launches_until_spoiled == 0) {
    static_cast<coordrl::Batch*>(arguments[0])->environments->play.console.riot.ram[0] ^= 1;
  }
  return status;
}

/// By which cuda.bindings finds all others.
int cuGetProcAddress_v2(const char* name, void** found, int, std::uint64_t, int*) {
  Dl_info here;
  dladdr(reinterpret_cast<void*>(cuGetProcAddress_v2), &here);
  *found = dlsym(dlopen(here.dli_fname, RTLD_NOW), name);
  return *found ? kSuccess : kNotFound;
}

int cuGetProcAddress(const char* name, void** found, int version, std::uint64_t flags) {
  return cuGetProcAddress_v2(name, found, version, flags, nullptr);
}

}  // extern "C"
