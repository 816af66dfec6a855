// The words the machine is written in: integers of known width, and where a function may run.
//
// The headers of this folder are compiled twice: by the C++ compiler into the Python extension
// (host/) and by NVRTC into the CUDA kernels (kernels.cu). NVRTC finds no standard headers,
// so nothing is included here and the integer types are named anew.
#pragma once

#ifdef __CUDACC__
#define COORDRL_HD __host__ __device__
#define COORDRL_INLINE __forceinline__
#define COORDRL_NOINLINE __noinline__
#else
#define COORDRL_HD
#ifndef COORDRL_INLINE  // `make sanitize`, which cannot swallow the processor in one piece, has its own
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

/// An index as wide as an address, so that the processor need not widen it: 64 bits on a CPU; on a
/// GPU, whose registers have 32, no wider than needed.
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

/// Index of the lowest bit that is set; one must be.
COORDRL_HD COORDRL_INLINE i32 lowest_bit(u64 bits) {
#ifdef __CUDA_ARCH__
  return __ffsll(static_cast<long long>(bits)) - 1;
#else
  return __builtin_ctzll(bits);
#endif
}

/// Eight bytes as one word, the first byte lowest. Their address is a multiple of 8.
COORDRL_HD COORDRL_INLINE u64 load8(const u8* bytes) {
#ifdef __CUDA_ARCH__
  return *reinterpret_cast<const u64*>(bytes);
#else
  u64 word;
  __builtin_memcpy(&word, bytes, 8);
  return word;
#endif
}

/// A copy of something large. A compiler for GPUs would load all of it before it stores any.
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

// A GPU's memories have instructions of their own, which are shorter than those for any memory. A
// compiler loses track of what lies where when a function of its own, or a struct, gets a pointer.
// The next two tell it. Nothing checks what they are told: where it is false, wrong memory is read.

/// Something that lies in the shared memory of a block.
template <class T>
COORDRL_HD COORDRL_INLINE T& in_shared(T& thing) {
#ifdef __CUDA_ARCH__
  __builtin_assume(__isShared(&thing));
#endif
  return thing;
}

/// Something that lies in a thread's own memory.
///
/// Compilers before CUDA 13.2 break where they are told so ("Broken function found"). Without it
/// they write longer code.
template <class T>
COORDRL_HD COORDRL_INLINE T& in_local(T& thing) {
#if defined(__CUDA_ARCH__) && __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1302
  __builtin_assume(__isLocal(&thing));
#endif
  return thing;
}

/// A pointer that is worked out once, not at each use as a compiler for GPUs prefers.
template <class T>
COORDRL_HD COORDRL_INLINE T* worked_out(T* pointer) {
#ifdef __CUDA_ARCH__
  asm("" : "+l"(pointer));
#endif
  return pointer;
}

/// A value in memory that nobody writes while the program runs.
template <class T>
COORDRL_HD COORDRL_INLINE T read_only(const T* place) {
#ifdef __CUDA_ARCH__
  return __ldg(place);
#else
  return *place;
#endif
}

/// Writes a word as eight bytes, lowest first, to an address that is a multiple of 8.
COORDRL_HD COORDRL_INLINE void store8(u8* bytes, u64 word) {
#ifdef __CUDA_ARCH__
  *reinterpret_cast<u64*>(bytes) = word;
#else
  __builtin_memcpy(bytes, &word, 8);
#endif
}

}  // namespace coordrl
