// Cartridges: up to 16 KiB of ROM, seen through the console's 4 KiB window $1000-$1FFF, and the
// extra hardware in some of them.
//
// A cartridge sees every CPU access but has no read/write line, so banks are switched by "hot
// spots": any access to such an address selects a bank. The access itself already reads from the
// new bank.
//
//     u8 byte = read_cartridge(cartridge, machine, address, frame_cycle);
//     write_cartridge(cartridge, machine, address, value);
//
// Sources: K. Horton, "Cart Information" (size and banking of each scheme); US patent 4,644,495
// (DPC).
#pragma once

#include "types.hpp"

namespace coordrl {

/// Bank-switching schemes, by the names that collectors use.
enum class Bank : u8 { k2K, k4K, kF8, kF6, kF8SC, kF6SC, kE0, kFE, kDPC };

/// The constant part of a machine, shared by all consoles of a game.
struct Machine {
  const u8* rom;
  i32 rom_size;        // bytes: 2048, 4096, 8192 or 16384 as the bank scheme says; DPC >= 10240
  Bank bank;
  bool pal;
  i32 first_line;      // scanline of the picture's first row
  i32 height;          // rows of the picture
  bool hmove_blanks;   // an early HMOVE blackens the left border
  bool swap_ports;     // player A's stick is in the right port
  bool swap_paddles;   // player A's paddle is the second of its pair
  bool left_paddles;   // controllers: a pair of paddles rather than a stick
  bool right_paddles;
  const u32* system_random;  // outputs of mt19937(4753849), indexed by Console.draws
  i32 system_random_size;
};

/// The machine's bank-switching scheme. In a program for one game it is a compile-time constant.
COORDRL_HD COORDRL_INLINE Bank bank_of(const Machine& machine) {
#ifdef COORDRL_BANK
  (void)machine;
  return Bank::COORDRL_BANK;
#else
  return machine.bank;
#endif
}

/// Display Processor Chip of Pitfall II: 2 KiB of picture data, read through eight address
/// counters, three of which can run on their own to play music.
struct Dpc {
  u8 top[8], bottom[8];  // a counter's flag is set at top and cleared at bottom
  u16 counter[8];        // 11 bits
  u8 flag[8];            // 0x00 or 0xFF
  bool music[3];         // counters 5 to 7 are driven by the oscillator
  u8 random;             // shift register
  i32 music_cycle;       // frame cycle up to which the music counters have counted
  f64 music_fraction;    // and the fraction of an oscillator tick left over
};

/// The variable part of a cartridge.
struct Cartridge {
  u8 bank;
  u8 slice[4];   // E0: 1 KiB banks at $1000, $1400, $1800 and $1C00
  u8 ram[128];   // SC
  Dpc dpc;
};

/// Whether the cartridge shows one 4 KiB bank at a time, all of it ROM.
COORDRL_HD COORDRL_INLINE constexpr bool is_flat(Bank bank) {
  return bank == Bank::k2K || bank == Bank::k4K || bank == Bank::kF8 || bank == Bank::kF6;
}

COORDRL_HD COORDRL_INLINE bool has_ram(Bank bank) {
  return bank == Bank::kF8SC || bank == Bank::kF6SC;
}

/// Addresses that are only ROM: after masking with `mask`, `count` of them from $1000 + `first` on.
struct PlainRom {
  u32 mask, first, count;
};

COORDRL_HD COORDRL_INLINE constexpr PlainRom plain_rom(Bank bank) {
  switch (bank) {
    case Bank::k2K: return {0x17FF, 0x000, 0x800};
    case Bank::kF8: return {0x1FFF, 0x000, 0xFF8};
    case Bank::kF6: return {0x1FFF, 0x000, 0xFF6};
    case Bank::kF8SC: return {0x1FFF, 0x100, 0xEF8};  // RAM below
    case Bank::kF6SC: return {0x1FFF, 0x100, 0xEF6};
    case Bank::kE0: return {0x1FFF, 0x000, 0xFE0};
    case Bank::kDPC: return {0x1FFF, 0x080, 0xF40};  // registers below; $1FC0-$1FFF clock it
    default: return {0x1FFF, 0x000, 0x1000};
  }
}

/// The first offset from $1000 at which an instruction may not be all plain ROM: a fetch loads four
/// bytes.
COORDRL_HD COORDRL_INLINE constexpr u32 end_of_code(const PlainRom& plain) {
  return plain.first + plain.count - 3;
}

/// Offset in the ROM of an address, with the banks that are selected now.
COORDRL_HD COORDRL_INLINE u32 rom_offset(Bank bank, const Cartridge& cartridge, u16 address) {
  switch (bank) {
    case Bank::k2K: return address & 0x7FF;
    case Bank::kE0: return u32(cartridge.slice[address >> 10 & 3]) << 10 | (address & 0x3FF);
    case Bank::kFE: return (address & 0xFFF) + (address & 0x2000 ? 0 : 0x1000);
    default: return u32(cartridge.bank) << 12 | (address & 0xFFF);
  }
}

/// RES: bank switching returns to its initial state; SC fills its RAM with 128 of the system's
/// random numbers.
COORDRL_HD inline void reset(Cartridge& cartridge, const Machine& machine, u32& draws) {
  const Bank bank = bank_of(machine);
  cartridge.bank = bank == Bank::kF8 || bank == Bank::kF8SC || bank == Bank::kDPC ? 1 : 0;
  cartridge.slice[0] = 4;
  cartridge.slice[1] = 5;
  cartridge.slice[2] = 6;
  cartridge.slice[3] = 7;
  if (has_ram(bank)) {
    for (u8& byte : cartridge.ram) byte = u8(machine.system_random[draws++]);
  }
  cartridge.dpc.music_cycle = 0;
  cartridge.dpc.music_fraction = 0;
}

/// Moves the origin of time `cycles` later.
COORDRL_HD inline void rebase(Cartridge& cartridge, i32 cycles) {
  cartridge.dpc.music_cycle = i32(u32(cartridge.dpc.music_cycle) - u32(cycles));
}

/// Whether an address may be a hot spot, on any board.
COORDRL_HD COORDRL_INLINE constexpr bool may_switch(u16 address) {
  return (address & 0xFFF) >= 0xFE0;
}

/// Selects the bank of a hot spot, if the address is one.
COORDRL_HD inline void touch_hot_spot(Bank bank, Cartridge& cartridge, u16 address) {
  const i32 place = address & 0xFFF;
  switch (bank) {
    case Bank::kF8:
    case Bank::kF8SC:
    case Bank::kDPC:
      if (place == 0xFF8 || place == 0xFF9) cartridge.bank = u8(place - 0xFF8);
      break;
    case Bank::kF6:
    case Bank::kF6SC:
      if (place >= 0xFF6 && place <= 0xFF9) cartridge.bank = u8(place - 0xFF6);
      break;
    case Bank::kE0:
      if (place >= 0xFE0 && place <= 0xFF7) cartridge.slice[(place - 0xFE0) >> 3] = place & 7;
      break;
    default: break;
  }
}

// DPC. --------------------------------------------------------------------------------------------

/// Clocks the shift register: the new bit is 1 if bits 7, 5, 4 and 3 have even parity.
COORDRL_HD inline void step_random(Dpc& dpc) {
  const u8 r = dpc.random;
  const u8 parity = (r >> 7 ^ r >> 5 ^ r >> 4 ^ r >> 3) & 1;
  dpc.random = u8(r << 1 | (parity ^ 1));
}

/// Runs the music counters for the oscillator ticks since the last call.
COORDRL_HD inline void step_music(Dpc& dpc, i32 frame_cycle) {
  const i32 passed = i32(u32(frame_cycle) - u32(dpc.music_cycle));
  dpc.music_cycle = frame_cycle;
  const f64 clocks = 15750.0 * passed / 1193191.66666667 + dpc.music_fraction;
  const i32 ticks = i32(clocks);
  dpc.music_fraction = clocks - ticks;
  if (ticks <= 0) return;
  for (i32 i = 5; i < 8; ++i) {
    if (!dpc.music[i - 5]) continue;
    const i32 period = dpc.top[i] + 1;
    i32 low = dpc.counter[i] & 0xFF;
    low = dpc.top[i] == 0 ? 0 : low - ticks % period;
    if (low < 0) low += period;
    if (low <= dpc.bottom[i]) {
      dpc.flag[i] = 0x00;
    } else if (low <= dpc.top[i]) {
      dpc.flag[i] = 0xFF;
    }
    dpc.counter[i] = u16((dpc.counter[i] & 0x700) | (low & 0xFF));
  }
}

/// Amplitude of the three square waves together.
COORDRL_HD inline u8 music(Dpc& dpc, i32 frame_cycle) {
  constexpr u32 kAmplitudes = 0xFBA69540;  // 0, 4, 5, 9, 6, 10, 11, 15, lowest nibble first
  step_music(dpc, frame_cycle);
  u32 voices = 0;
  for (u32 i = 0; i < 3; ++i) {
    if (dpc.music[i] && dpc.flag[5 + i]) voices |= 1u << i;
  }
  return u8(kAmplitudes >> (4 * voices) & 15);
}

COORDRL_HD COORDRL_NOINLINE inline u8 read_dpc(Dpc& dpc, const u8* picture, u16 address,
                                               i32 frame_cycle) {
  const u32 index = address & 7;
  if ((dpc.counter[index] & 0xFF) == dpc.top[index]) {
    dpc.flag[index] = 0xFF;
  } else if ((dpc.counter[index] & 0xFF) == dpc.bottom[index]) {
    dpc.flag[index] = 0x00;
  }
  const u8 data = picture[2047 - dpc.counter[index]];
  u8 value = 0;
  switch (address >> 3 & 7) {
    case 0: value = index < 4 ? dpc.random : music(dpc, frame_cycle); break;
    case 1: value = data; break;
    case 2: value = data & dpc.flag[index]; break;
    case 7: value = dpc.flag[index]; break;
    default: break;
  }
  if (index < 5 || !dpc.music[index - 5]) {
    dpc.counter[index] = (dpc.counter[index] - 1) & 0x7FF;
  }
  return value;
}

COORDRL_HD COORDRL_NOINLINE inline void write_dpc(Dpc& dpc, u16 address, u8 value) {
  const u32 index = address & 7;
  const bool music = index >= 5 && dpc.music[index - 5];
  switch (address >> 3 & 7) {
    case 0:
      dpc.top[index] = value;
      dpc.flag[index] = 0x00;
      break;
    case 1: dpc.bottom[index] = value; break;
    case 2:
      // A music counter starts from its top, whatever is written.
      dpc.counter[index] = u16((dpc.counter[index] & 0x700) | (music ? dpc.top[index] : value));
      break;
    case 3:
      dpc.counter[index] = u16((value & 0x07) << 8 | (dpc.counter[index] & 0xFF));
      if (index >= 5) dpc.music[index - 5] = value & 0x10;
      break;
    case 6: dpc.random = 1; break;
    default: break;
  }
}

// Accesses with address line 12 high. -------------------------------------------------------------

/// Whether an access clocks the DPC: its registers, and the 64 bytes around the hot spots.
COORDRL_HD COORDRL_INLINE bool clocks_dpc(Bank bank, i32 place) {
  return bank == Bank::kDPC && (place < 0x80 || place >= 0xFC0);
}

COORDRL_HD COORDRL_NOINLINE inline u8 read_cartridge(Cartridge& cartridge, const Machine& machine,
                                                     u16 address, i32 frame_cycle) {
  const i32 place = address & 0xFFF;
  if (clocks_dpc(bank_of(machine), place)) {
    step_random(cartridge.dpc);
    if (place < 0x40) {
      return read_dpc(cartridge.dpc, machine.rom + 0x2000, address, frame_cycle);
    }
  }
  if (has_ram(bank_of(machine)) && place >= 0x80 && place < 0x100) return cartridge.ram[place & 0x7F];
  touch_hot_spot(bank_of(machine), cartridge, address);
  return machine.rom[rom_offset(bank_of(machine), cartridge, address)];
}

COORDRL_HD COORDRL_NOINLINE inline void write_cartridge(Cartridge& cartridge,
                                                        const Machine& machine, u16 address,
                                                        u8 value) {
  const i32 place = address & 0xFFF;
  if (clocks_dpc(bank_of(machine), place)) {
    step_random(cartridge.dpc);
    if (place >= 0x40 && place < 0x80) write_dpc(cartridge.dpc, address, value);
  }
  if (has_ram(bank_of(machine)) && place < 0x80) cartridge.ram[place] = value;
  touch_hot_spot(bank_of(machine), cartridge, address);
}

}  // namespace coordrl
