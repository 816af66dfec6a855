// Basic definitions: integers of known width, and macros that say where a function may run.
//
// The headers of this folder are compiled twice: by the C++ compiler into the Python extension
// (host/) and by NVRTC into the CUDA kernels (kernels.cu). NVRTC has no standard headers,
// so nothing is included here and the integer types are defined anew.
#pragma once

#ifdef __CUDACC__
#define COORDRL_HD __host__ __device__
#define COORDRL_INLINE __forceinline__
#define COORDRL_NOINLINE __noinline__
#else
#define COORDRL_HD
#ifndef COORDRL_INLINE  // `make sanitize` sets its own: it cannot take one huge function
#define COORDRL_INLINE inline __attribute__((always_inline))
#endif
#define COORDRL_NOINLINE __attribute__((noinline))
#endif

namespace coordrl {

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i8 = signed char;
using i16 = short;
using i32 = int;
using i64 = long long;
using f32 = float;
using f64 = double;

/// An index. On a CPU it is as wide as an address, 64 bits, so that it need not be widened; on a
/// GPU, whose registers have 32 bits, it is no wider than needed.
#ifdef __CUDACC__
using Index = u32;
#else
using Index = u64;
#endif

static_assert(sizeof(u16) == 2 && sizeof(u32) == 4 && sizeof(u64) == 8, "integers as named");
static_assert(sizeof(f32) == 4 && sizeof(f64) == 8, "IEEE 754 single and double");

/// Tells the compiler which way a branch nearly always goes.
COORDRL_HD COORDRL_INLINE bool likely(bool condition) {
#ifdef __CUDA_ARCH__
  return condition;
#else
  return __builtin_expect(condition, true);
#endif
}

COORDRL_HD COORDRL_INLINE bool unlikely(bool condition) { return !likely(!condition); }

/// Index of the lowest set bit; at least one bit must be set.
COORDRL_HD COORDRL_INLINE i32 lowest_bit(u64 bits) {
#ifdef __CUDA_ARCH__
  return __ffsll(static_cast<long long>(bits)) - 1;
#else
  return __builtin_ctzll(bits);
#endif
}

/// Loads eight bytes as one word, the first byte lowest. The address must be a multiple of 8.
COORDRL_HD COORDRL_INLINE u64 load8(const u8* bytes) {
#ifdef __CUDA_ARCH__
  return *reinterpret_cast<const u64*>(bytes);
#else
  u64 word;
  __builtin_memcpy(&word, bytes, 8);
  return word;
#endif
}

/// Copies a large object. By itself, a GPU compiler would load all of it before storing any of it.
template <class T>
COORDRL_HD inline void assign(T& to, const T& from) {
#ifdef __CUDA_ARCH__
  static_assert(sizeof(T) % 4 == 0 && alignof(T) >= 4, "copied by words");
  u32* const target = reinterpret_cast<u32*>(&to);
  const u32* const source = reinterpret_cast<const u32*>(&from);
#pragma unroll 8
  for (u32 i = 0; i < sizeof(T) / 4; ++i) target[i] = source[i];
#else
  to = from;
#endif
}

// Each memory space of a GPU has its own instructions, shorter than the generic ones. A compiler
// loses track of the memory space when a pointer goes to a function that is not inlined, or into a
// struct. The next two functions state it, unchecked: if it is false, the wrong memory is read.

/// States that `thing` is in a block's shared memory.
template <class T>
COORDRL_HD COORDRL_INLINE T& in_shared(T& thing) {
#ifdef __CUDA_ARCH__
  __builtin_assume(__isShared(&thing));
#endif
  return thing;
}

/// States that `thing` is in a thread's local memory.
///
/// Compilers before CUDA 13.2 fail on such a statement ("Broken function found"). Without it they
/// generate longer code.
template <class T>
COORDRL_HD COORDRL_INLINE T& in_local(T& thing) {
#if defined(__CUDA_ARCH__) && __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1302
  __builtin_assume(__isLocal(&thing));
#endif
  return thing;
}

/// A pointer that is computed once, not at each use as GPU compilers prefer.
template <class T>
COORDRL_HD COORDRL_INLINE T* worked_out(T* pointer) {
#ifdef __CUDA_ARCH__
  asm("" : "+l"(pointer));
#endif
  return pointer;
}

/// Loads a value that nothing writes while the program runs.
template <class T>
COORDRL_HD COORDRL_INLINE T read_only(const T* place) {
#ifdef __CUDA_ARCH__
  return __ldg(place);
#else
  return *place;
#endif
}

/// Stores a word as eight bytes, lowest first. The address must be a multiple of 8.
COORDRL_HD COORDRL_INLINE void store8(u8* bytes, u64 word) {
#ifdef __CUDA_ARCH__
  *reinterpret_cast<u64*>(bytes) = word;
#else
  __builtin_memcpy(bytes, &word, 8);
#endif
}

}  // namespace coordrl
