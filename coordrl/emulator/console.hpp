// The Atari 2600 as one value: copy it to save, restore or move a machine.
//
//     Console console{};
//     console.inputs = ...;                          // the switches as the cartridge is put in
//     power_on(console, machine);
//     system_reset(console, machine);
//     console.inputs = ...;                          // stick and buttons of this frame
//     run_frame<true>(console, machine, pixels);
//
// Three chips on 13 address lines: the cartridge answers while A12 is high; below, A7 chooses
// between the TIA and the RIOT, and A9 between the RIOT's RAM and its registers.
//
// It is the machine that ale-py 0.12.1 emulates, bit for bit: its memory, its picture, its
// peculiarities. `system_random` must hold at least `draws` + 300 numbers before a call of
// `power_on` (draws starts at 0) and `draws` + 129 before one of `system_reset`.
#pragma once

#include "cartridge.hpp"
#include "m6507.hpp"
#include "riot.hpp"
#include "tia.hpp"
#include "types.hpp"

namespace coordrl {

/// Levels at the console's pins. What is plugged in where is already resolved: `paddle[i]` is at the
/// pin of INPTi, and a paddle's button is in SWCHA.
struct Inputs {
  u8 swcha;      // sticks, 0 = pressed: right, left, down, up of the left port, then of the right
  u8 swchb;      // bit 0 reset, bit 1 select (0 = pressed), bit 3 color, bits 6, 7 difficulty A
  u8 fire;       // bit 0 left, bit 1 right; 1 = pressed
  i32 paddle[4]; // resistance of the potentiometer in ohms
};

/// The whole machine, without what the consoles of a game share.
struct Console {
  M6507 cpu;
  Riot riot;
  Tia tia;
  Cartridge cartridge;
  Inputs inputs;
  i32 cycle;  // CPU cycles since the start of the scanline in which the frame began
  u32 draws;  // numbers taken from Machine.system_random
};
static_assert(__is_trivially_copyable(Console), "machines move between devices as bytes");
static_assert(sizeof(Console) <= 700, "thousands of consoles fit into a cache");

/// The board: what the 6507 is soldered to.
template <Bank kBank>
struct Board {
  Console* console;
  const Machine* machine;
  Beam* beam;
  const u8* rom;  // the 4 KiB that are switched in; of E0 and FE, the whole ROM
  u8* ram;
  i32 cycle;
  i32 limit;

  COORDRL_HD COORDRL_INLINE i32 frame_cycle() const { return cycle - console->tia.start_cycle; }

  COORDRL_HD COORDRL_INLINE const u8* rom_pointer(u16 address) const {
    if (kBank == Bank::kE0 || kBank == Bank::kFE) {
      return rom + rom_offset<kBank>(console->cartridge, address);
    }
    return rom + (address & (kBank == Bank::k2K ? 0x7FF : 0xFFF));
  }

  COORDRL_HD COORDRL_INLINE void refresh_rom() {
    rom = machine->rom;
    if (kBank != Bank::kE0 && kBank != Bank::kFE) {
      rom += rom_offset<kBank>(console->cartridge, 0);
    }
  }

  /// Three bytes of plain ROM that lie in one bank. Four are loaded.
  COORDRL_HD COORDRL_INLINE bool fetch(u16 pc, u32& code) const {
    // A12 and, where the ROM is mirrored or sliced, the lines below that count a piece.
    constexpr u32 kPiece = kBank == Bank::k2K ? 0x17FF : kBank == Bank::kE0 ? 0x13FF : 0x1FFF;
    constexpr u32 kFirst = 0x1000 + first_rom_address(kBank);
    constexpr u32 kEnd = kBank == Bank::k2K   ? 0x1800
                         : kBank == Bank::kE0 ? 0x13E0
                                              : 0x1000 + end_of_plain_rom(kBank);
    if ((pc & kPiece) - kFirst > kEnd - kFirst - 4) return false;
    const u8* bytes = rom_pointer(pc);
#ifdef __CUDA_ARCH__
    code = bytes[0] | u32(bytes[1]) << 8 | u32(bytes[2]) << 16;
#else
    __builtin_memcpy(&code, bytes, 4);
#endif
    return true;
  }

  COORDRL_HD COORDRL_INLINE bool is_plain_rom(u16 address) const {
    constexpr u32 kFirst = 0x1000 + first_rom_address(kBank);
    constexpr u32 kEnd = 0x1000 + end_of_plain_rom(kBank);
    return (address & 0x1FFF) - kFirst < kEnd - kFirst;
  }

  COORDRL_HD COORDRL_INLINE u8 read(u16 address, u8 floating) {
    if (likely(is_plain_rom(address))) return *rom_pointer(address);
    if ((address & 0x1280) == 0x0080) return ram[address & 0x7F];
    if (address & 0x1000) {
      const u8 value =
          read_cartridge<kBank>(console->cartridge, *machine, address, frame_cycle());
      refresh_rom();
      return value;
    }
    if (address & 0x0080) {
      return read_riot(console->riot, address, cycle, console->inputs.swcha, console->inputs.swchb);
    }
    return read_tia(*console, *machine, *beam, u8(address), floating, cycle);
  }

  COORDRL_HD COORDRL_INLINE u8 read_zero_page(u8 address, u8 floating) {
    if (address & 0x80) return ram[address & 0x7F];
    return read_tia(*console, *machine, *beam, address, floating, cycle);
  }

  COORDRL_HD COORDRL_INLINE u8 read_stack(u8 s, u8 floating) { return read_zero_page(s, floating); }

  /// `first`: not right after another write. Only then the CPU waits for WSYNC.
  COORDRL_HD COORDRL_INLINE void write_to_tia(u8 address, u8 value, bool first) {
    const u8 reg = address & 0x3F;
    if (reg == kWsync) {
      beam->last_access = 3 * cycle;
      if (cycle >= beam->limit) end_frame();
      // "Halts microprocessor by clearing RDY latch to zero. RDY is set true again by the leading
      // edge of horizontal blank."
      if (first) cycle = (cycle + kLineCycles - 1) / kLineCycles * kLineCycles;
      return;
    }
    if (write_tia(*beam, reg, value, cycle)) end_frame();
  }

  COORDRL_HD COORDRL_INLINE void write_zero_page(u8 address, u8 value) {
    if (address & 0x80) {
      ram[address & 0x7F] = value;
    } else {
      write_to_tia(address, value, true);
    }
  }

  COORDRL_HD COORDRL_INLINE void write_stack(u8 s, u8 value, bool first) {
    if (s & 0x80) {
      ram[s & 0x7F] = value;
    } else {
      write_to_tia(s, value, first);
    }
  }

  COORDRL_HD COORDRL_INLINE void write(u16 address, u8 value) {
    if (address & 0x1000) {
      if (is_plain_rom(address)) return;
      write_cartridge<kBank>(console->cartridge, address, value);
      refresh_rom();
    } else if (!(address & 0x0080)) {
      write_to_tia(u8(address), value, true);
    } else if (address & 0x0200) {
      write_riot(console->riot, address, value, cycle);
    } else {
      ram[address & 0x7F] = value;
    }
  }

  COORDRL_HD COORDRL_INLINE void end_frame() {
    console->tia.partial = false;
    limit = 0;
  }

  COORDRL_HD COORDRL_INLINE void jam() {
    console->cpu.jammed = true;
    limit = 0;
  }

  /// Whether the paddle at INPTi has charged its capacitor.
  ///
  /// The time is R C ln 2 or so; in the oracle 1.6 R times 10 nF, at 1.19 MHz, in doubles. It
  /// compares cycles as unsigned numbers, so that a release in an earlier frame, which lies at a
  /// negative cycle, counts as not reached.
  COORDRL_HD COORDRL_NOINLINE static bool charged(const Tia& tia, i32 resistance, i32 cycle) {
    if (resistance == 0) return true;
    if (tia.dump) return false;
    const f64 seconds = 1.6 * resistance * 0.01e-6;
    const u32 needed = u32(tia.dump_release) + u32(i32(seconds * 1.19e6));
    return u32(cycle - tia.start_cycle) > needed;
  }

  /// The TIA drives bits 7 and 6 only; the others keep what was on the bus.
  COORDRL_HD COORDRL_NOINLINE static u8 read_tia(Console& console, const Machine& machine,
                                                 Beam& beam, u8 address, u8 floating, i32 cycle) {
    const u8 reg = address & 0x0F;
    floating &= 0x3F;
    beam.last_access = 3 * cycle;
    if (reg < 8) return u8(read_collisions(beam, reg, cycle) | floating);
    if (reg < 12) {
      const i32 pin = reg - 8;
      const bool paddle = pin < 2 ? machine.left_paddles : machine.right_paddles;
      const bool high = paddle && charged(console.tia, console.inputs.paddle[pin], cycle);
      return u8((high ? 0x80 : 0) | floating);
    }
    if (reg < 14) {
      const bool pressed = console.inputs.fire >> (reg - 12) & 1;
      return u8((pressed ? 0 : 0x80) | floating);
    }
    return floating;
  }
};

constexpr i32 kMaxInstructions = 25000;  // of one call; a frame that needs more goes on in the next

template <Bank kBank>
COORDRL_HD COORDRL_NOINLINE void run_instructions(Console& console, const Machine& machine,
                                                  Beam& beam) {
  Board<kBank> board{&console,         &machine,      &beam,           nullptr,
                     console.riot.ram, console.cycle, kMaxInstructions};
  board.refresh_rom();
  execute(console.cpu, board);
  console.cycle = board.cycle;
}

/// RES: everything but the RAM and the inputs starts anew. Clears the pictures: the caller fills
/// both of its frame buffers with 0.
COORDRL_HD inline void system_reset(Console& console, const Machine& machine) {
  console.cycle = 0;
  reset(console.riot, machine.system_random[console.draws++]);
  reset(console.tia);
  reset(console.cartridge, machine, console.draws);
  u8 vector[2] = {};
  for (u16 i = 0; i < 2; ++i) {
    const u16 address = u16(0xFFFC + i);
    u32 offset = 0;
    switch (machine.bank) {
      case Bank::k2K: offset = rom_offset<Bank::k2K>(console.cartridge, address); break;
      case Bank::kE0: offset = rom_offset<Bank::kE0>(console.cartridge, address); break;
      case Bank::kFE: offset = rom_offset<Bank::kFE>(console.cartridge, address); break;
      default: offset = rom_offset<Bank::k4K>(console.cartridge, address); break;
    }
    vector[i] = machine.rom[offset];
    // Both bytes lie in the page that clocks the DPC's shift register.
    if (machine.bank == Bank::kDPC) step_random(console.cartridge.dpc);
  }
  jump_to_reset_vector(console.cpu, vector[0], vector[1]);
}

/// Runs the machine up to the end of a frame, or for 25,000 instructions of one that does not end.
///
/// With kDraw, `frame` is the older of two buffers of height * 160 color indices (the palette's
/// even entries; odd where a PAL picture has lost its color), 8-byte aligned, used in turn: pixels
/// that are not reached keep what they showed two frames ago. If the last call left a frame
/// unfinished (`console.tia.partial` before the call), it goes on in the same buffer. Without
/// kDraw, `frame` is not touched.
///
/// `console.tia.incomplete` says afterwards that the picture was not drawn to its end. It depends
/// then on the frames before, which must have been drawn too.
template <bool kDraw>
COORDRL_HD inline void run_frame(Console& console, const Machine& machine, u8* frame) {
  Tia& tia = console.tia;
  const Window window{machine.first_line, machine.height, machine.pal, machine.hmove_blanks};
  if (!tia.partial) {
    const i32 passed = console.cycle - tia.start_cycle;
    const i32 lines = console.cycle / kLineCycles * kLineCycles;
    begin_frame(tia, window, console.cycle);
    rebase(console.riot, lines);
    console.cartridge.dpc.music_cycle -= passed;
    console.cycle -= lines;
  }
  tia.partial = true;
  Beam beam = sweep(tia, window, kDraw ? frame : nullptr);
  if (!console.cpu.jammed) {
    switch (machine.bank) {
      case Bank::k2K: run_instructions<Bank::k2K>(console, machine, beam); break;
      case Bank::k4K: run_instructions<Bank::k4K>(console, machine, beam); break;
      case Bank::kF8: run_instructions<Bank::kF8>(console, machine, beam); break;
      case Bank::kF6: run_instructions<Bank::kF6>(console, machine, beam); break;
      case Bank::kF8SC: run_instructions<Bank::kF8SC>(console, machine, beam); break;
      case Bank::kF6SC: run_instructions<Bank::kF6SC>(console, machine, beam); break;
      case Bank::kE0: run_instructions<Bank::kE0>(console, machine, beam); break;
      case Bank::kFE: run_instructions<Bank::kFE>(console, machine, beam); break;
      case Bank::kDPC: run_instructions<Bank::kDPC>(console, machine, beam); break;
    }
  }
  rest(beam);
  if (tia.partial) {
    gray_rest(tia, window, console.cycle, kDraw ? frame : nullptr);
  } else {
    tia.last_lines = u16(console.cycle / kLineCycles);
  }
}

/// Puts the cartridge in and switches on, as the oracle does when it loads a game.
///
/// RAM holds random numbers. Sixty frames are watched to find out whether the game is made for PAL
/// (it is, in `machine.pal`, but until that is known the console is an American one); then follows
/// a reset. The inputs are the caller's and stay.
COORDRL_HD inline void power_on(Console& console, const Machine& machine) {
  const Inputs inputs = console.inputs;
  console = Console{};
  console.inputs = inputs;
  for (u8& byte : console.riot.ram) byte = u8(machine.system_random[console.draws++]);
  ++console.draws;  // the timer's first value, which nobody sees
  console.cartridge.dpc.random = 1;

  Machine american = machine;
  american.pal = false;
  if (machine.pal) american.height = 210;
  system_reset(console, american);
  for (i32 i = 0; i < 60; ++i) run_frame<false>(console, american, nullptr);
  system_reset(console, machine);
}

}  // namespace coordrl
