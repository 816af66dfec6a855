// Random numbers: the sequence that all consoles share, and helpers for generators.
#pragma once

#include <cstring>
#include <vector>

#include "mt19937.hpp"

namespace coordrl::host {

constexpr u32 kSystemSeed = 4753849;  // ale-py's default

/// The random numbers that all consoles share: the contents of RAM at power-on, and the start
/// values of timers. The sequence can be extended.
class SystemRandom {
 public:
  SystemRandom() { seed(generator_, kSystemSeed); }

  /// Makes sure that numbers 0 .. count - 1 exist.
  void extend(size_t count) {
    while (numbers_.size() < count) numbers_.push_back(draw(generator_));
  }

  const std::vector<u32>& numbers() const { return numbers_; }

 private:
  Mt19937 generator_;
  std::vector<u32> numbers_;
};

/// Replaces bytes, each by another value in each of 256 turns.
inline void scramble(u8* bytes, i32 count, i32 turn) {
  Mt19937 random{};
  seed(random, 0);
  for (i32 i = 0; i < count; ++i) {
    const u32 bits = draw(random);
    bytes[i] = u8((bits >> 8) + (bits | 1) * u32(turn));  // an odd number has no factor of 256
  }
}

template <class T>
bool same_bytes(const T& a, const T& b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

/// The number of draws between two states of a generator.
inline u32 draws_between(Mt19937 before, const Mt19937& after) {
  u32 draws = 0;
  for (; !same_bytes(before, after); ++draws) draw(before);
  return draws;
}

inline Mt19937 seeded(u32 value) {
  Mt19937 generator{};
  seed(generator, value);
  return generator;
}

}  // namespace coordrl::host
