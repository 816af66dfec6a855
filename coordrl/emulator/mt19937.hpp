// The Mersenne Twister, the source of all randomness in an environment.
//
// M. Matsumoto, T. Nishimura, "Mersenne Twister: a 623-dimensionally equidistributed uniform
// pseudo-random number generator", ACM TOMACS 8(1), 1998; the same numbers as std::mt19937. The
// 624 words are regenerated one at a time, each when its turn comes, so that every draw costs the
// same: four memory accesses, on a GPU as well.
#pragma once

#include "types.hpp"

namespace coordrl {

struct Mt19937 {
  u32 words[624];
  i32 next;  // index of the word that the next draw regenerates
};

COORDRL_HD inline void seed(Mt19937& generator, u32 seed) {
  generator.words[0] = seed;
  for (u32 i = 1; i < 624; ++i) {
    const u32 last = generator.words[i - 1];
    generator.words[i] = 1812433253u * (last ^ (last >> 30)) + i;
  }
  generator.next = 0;
}

/// 32 uniform bits.
COORDRL_HD inline u32 draw(Mt19937& generator) {
  u32* const words = generator.words;
  const i32 i = generator.next;
  const i32 after = i == 623 ? 0 : i + 1;
  const i32 far = i < 227 ? i + 397 : i - 227;
  const u32 joined = (words[i] & 0x80000000u) | (words[after] & 0x7FFFFFFFu);
  u32 bits = words[far] ^ (joined >> 1) ^ (joined & 1 ? 0x9908B0DFu : 0u);
  words[i] = bits;
  generator.next = after;
  bits ^= bits >> 11;
  bits ^= (bits << 7) & 0x9D2C5680u;
  bits ^= (bits << 15) & 0xEFC60000u;
  return bits ^ (bits >> 18);
}

/// A uniform integer in [0, bound), drawn like libstdc++'s uniform_int_distribution: Lemire's
/// multiplication with rejection. `bound` is at least 1; a bound of 1 draws nothing.
COORDRL_HD inline u32 draw_below(Mt19937& generator, u32 bound) {
  if (bound <= 1) return 0;
  u64 product = u64(draw(generator)) * bound;
  if (u32(product) < bound) {
    const u32 threshold = (0u - bound) % bound;  // 2^32 mod bound
    while (u32(product) < threshold) product = u64(draw(generator)) * bound;
  }
  return u32(product >> 32);
}

}  // namespace coordrl
