// MOS 6532 RIOT: RAM, input/output, timer.
//
// The 128 bytes of RAM are the console's only RAM. Port A reads the sticks, port B the console
// switches. The timer counts down every 1, 8, 64 or 1024 CPU cycles until it has passed 0, then
// every cycle.
//
// Source: 6532 RAM, I/O, Interval Timer Array (Rockwell data sheet, 1984). After it has
// passed 0, the timer behaves as in the oracle (ale-py), which remembers the first read after that.
#pragma once

#include "types.hpp"

namespace coordrl {

/// RAM and registers of the RIOT. Cycles count from the scanline in which the frame began.
struct Riot {
  u8 ram[128];
  u8 timer;         // value last written to TIM1T, TIM8T, TIM64T or T1024T
  u8 shift;         // log2 of the cycles per count: 0, 3, 6 or 10
  u8 ddra;          // data direction of port A; only ever read back
  bool read_after_expiry;
  i32 timer_set;    // cycle of the last write to the timer
  i32 expiry_read;  // cycle of the first read of INTIM after the timer had passed 0
};

/// Resets the RIOT: the RAM is kept, the timer starts at a random value.
COORDRL_HD inline void reset(Riot& riot, u32 random) {
  riot.timer = u8(25 + random % 75);
  riot.shift = 6;
  riot.timer_set = 0;
  riot.expiry_read = 0;
  riot.read_after_expiry = false;
  riot.ddra = 0;
}

/// Moves the origin of time `cycles` later.
COORDRL_HD inline void rebase(Riot& riot, i32 cycles) {
  riot.timer_set = i32(u32(riot.timer_set) - u32(cycles));
  riot.expiry_read = i32(u32(riot.expiry_read) - u32(cycles));
}

/// Counts left until the timer passes 0, at `cycle`; negative afterwards.
COORDRL_HD COORDRL_INLINE i32 counts_left(const Riot& riot, i32 cycle) {
  const u32 elapsed = u32(cycle) - 1 - u32(riot.timer_set);
  return i32(riot.timer - (elapsed >> riot.shift) - 1);
}

/// How many reads, at `cycle` and every `round` cycles after it, find at least `floor` counts left.
COORDRL_HD inline i32 reads_above(const Riot& riot, i32 cycle, i32 round, i32 floor) {
  if (riot.timer <= floor) return 0;
  const u32 elapsed = u32(cycle) - 1 - u32(riot.timer_set);
  const u32 end = u32(riot.timer - floor) << riot.shift;
  return elapsed >= end ? 0 : i32((end - 1 - elapsed) / u32(round)) + 1;
}

/// INTIM, the timer's value.
COORDRL_HD inline u8 read_intim(Riot& riot, i32 cycle) {
  const i32 counts = counts_left(riot, cycle);
  if (likely(counts >= 0)) return u8(counts);
  const u32 elapsed = u32(cycle) - 1 - u32(riot.timer_set);
  const u32 period = u32(riot.timer) << riot.shift;
  const i32 since_expiry = i32(period - elapsed - 1);
  if (since_expiry <= -2 && !riot.read_after_expiry) {
    riot.read_after_expiry = true;
    riot.expiry_read = cycle;
  }
  if (!riot.read_after_expiry) return u8(since_expiry);
  const u32 until_read = u32(riot.expiry_read) - u32(riot.timer_set) - period;
  return u8(riot.timer - (elapsed >> riot.shift) - until_read);
}

/// INSTAT: bit 7 is set if the timer has passed 0 and has not been read since.
COORDRL_HD inline u8 read_instat(const Riot& riot, i32 cycle) {
  return counts_left(riot, cycle) >= 0 || riot.read_after_expiry ? 0 : 0x80;
}

/// Reads a register, given the levels at the pins of both ports.
COORDRL_HD inline u8 read_riot(Riot& riot, u16 address, i32 cycle, u8 swcha, u8 swchb) {
  switch (address & 7) {
    case 0: return swcha;
    case 1: return riot.ddra;
    case 2: return swchb;
    case 3: return 0;
    case 4:
    case 6: return read_intim(riot, cycle);
    default: return read_instat(riot, cycle);
  }
}

/// Writes a register. The ports drive nothing, so only DDRA and the timer keep the value.
COORDRL_HD inline void write_riot(Riot& riot, u16 address, u8 value, i32 cycle) {
  const u16 port = address & 7;
  if (port < 4) {
    if (port == 1) riot.ddra = value;
    return;
  }
  if ((address & 0x14) != 0x14) return;
  constexpr u32 kShifts = 0x0A060300;  // one byte for each of TIM1T, TIM8T, TIM64T, T1024T
  riot.timer = value;
  riot.shift = u8(kShifts >> (8 * (address & 3)));
  riot.timer_set = cycle;
  riot.read_after_expiry = false;
}

}  // namespace coordrl
