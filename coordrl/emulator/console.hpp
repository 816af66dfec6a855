// The Atari 2600 as one value: copy it to save, restore or move a machine.
//
//     Console console{};
//     console.inputs = ...;                          // the switches at power-on
//     power_on(console, machine);
//     system_reset(console, machine);
//     console.inputs = ...;                          // stick and buttons of this frame
//     run_frame<true>(console, machine, pixels);
//
// Three chips share 13 address lines: the cartridge answers if A12 is high; if it is low, A7
// selects the TIA or the RIOT, and A9 the RIOT's RAM or its registers.
//
// It is the machine that ale-py 0.12.1 emulates, bit for bit: memory, picture and quirks.
// `system_random` must hold at least 387 numbers before a call of `power_on`, which sets `draws` to
// 0 first, and at least `draws` + 129 before a call of `system_reset`.
#pragma once

#include "cartridge.hpp"
#include "m6507.hpp"
#include "riot.hpp"
#include "tia.hpp"
#include "types.hpp"
#ifdef COORDRL_GPU
#include "staged.hpp"
#else
#include "threaded.hpp"
#endif

namespace coordrl {

/// Levels at the console's pins. Controllers are already assigned to ports: `paddle[i]` is at the
/// pin of INPTi, and a paddle's button is in SWCHA.
struct Inputs {
  u8 swcha;      // sticks, 0 = pressed: right, left, down, up of the left port, then of the right
  u8 swchb;      // bit 0 reset, bit 1 select (0 = pressed), bit 3 color, bits 6, 7 difficulty A
  u8 fire;       // bit 0 left, bit 1 right; 1 = pressed
  i32 paddle[4]; // resistance of the potentiometer in ohms
};

/// The whole machine, except for what all consoles of a game share.
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

#ifdef COORDRL_GPU

/// Location of a cartridge byte: computed for each access, by a kernel that knows the board.
struct Pages {
  COORDRL_HD COORDRL_INLINE void turn(const Machine&, const Cartridge&) {}
  COORDRL_HD COORDRL_INLINE const u8* byte(const u8* rom, Bank bank, const Cartridge& cartridge,
                                           u16 address) const {
    return rom + rom_offset(bank, cartridge, address);
  }
};

#else

/// Location of each KiB of the cartridge in the selected banks, by address bits 13 to 10.
struct Pages {
  const u8* kib[16] = {};

  COORDRL_NOINLINE void turn(const Machine& machine, const Cartridge& cartridge) {
    for (u32 page = 0; page < 16; ++page) {
      if (!(page & 4)) continue;  // address line 12 selects the cartridge
      kib[page] = machine.rom + rom_offset(bank_of(machine), cartridge, u16(page << 10));
    }
  }
  COORDRL_INLINE const u8* byte(const u8*, Bank, const Cartridge&, u16 address) const {
    return kib[address >> 10 & 15] + (address & 0x3FF);
  }
};

#endif

/// The running machine, in one struct so that a single pointer reaches all of it.
struct Running {
  Beam beam;
  Riot riot;
  Cartridge cartridge;
  Inputs inputs;
  const Machine* machine;
  PlainRom plain;
  Index end_of_code;  // instructions at a `place` below it are plain ROM
  bool jammed;
  bool over;  // the frame has ended
  Pages pages{};  // for a board that is not flat
};

/// Whether the paddle at INPTi has charged its capacitor.
///
/// The time is roughly R C ln 2; in the oracle 1.6 R times 10 nF, at 1.19 MHz, in doubles. The
/// oracle compares cycles as unsigned numbers: a charge that was complete in an earlier frame, at a
/// negative cycle, counts as not reached.
COORDRL_HD COORDRL_NOINLINE inline bool charged(const Tia& tia, i32 resistance, i32 cycle) {
  if (resistance == 0) return true;
  if (tia.dump) return false;
  const f64 seconds = 1.6 * resistance * 0.01e-6;
  const u32 needed = u32(tia.dump_release) + u32(i32(seconds * 1.19e6));
  return u32(cycle - tia.start_cycle) > needed;
}

/// The TIA drives bits 7 and 6 only; the others keep what was on the bus.
COORDRL_HD COORDRL_NOINLINE inline u8 read_tia(Running& running, u8 address, u8 floating,
                                               i32 cycle) {
  const u8 reg = address & 0x0F;
  floating &= 0x3F;
  in_local(running);
  running.beam.last_cycle = cycle;
  running.beam.last_reg = kRead;
  if (reg < 8) return u8(read_collisions(running.beam, reg, cycle) | floating);
  if (reg < 12) {
    const i32 pin = reg - 8;
    const Machine& machine = *running.machine;
    const bool paddle = pin < 2 ? machine.left_paddles : machine.right_paddles;
    const bool high = paddle && charged(running.beam.tia, running.inputs.paddle[pin], cycle);
    return u8((high ? 0x80 : 0) | floating);
  }
  if (reg < 14) {
    const bool pressed = running.inputs.fire >> (reg - 12) & 1;
    return u8((pressed ? 0 : 0x80) | floating);
  }
  return floating;
}

#ifdef COORDRL_GPU

constexpr i32 kLanes = 32;
constexpr i32 kMaxLanes = 64;  // of a block that runs consoles

/// The RAM while instructions run: in a block's shared memory, word by word interleaved with the
/// other lanes' RAM, so that each lane has its own bank, whatever address it accesses.
struct WorkingRam {
  u8* first;

  COORDRL_HD COORDRL_INLINE u8& at(const Riot&, u32 address) const {
    return in_shared(first[(address & 0x7C) * kLanes + (address & 3)]);
  }
  COORDRL_HD void leave(Riot& riot) const {
    for (u32 i = 0; i < 128; ++i) riot.ram[i] = at(riot, i);
  }
};

COORDRL_HD inline WorkingRam working_ram(const Riot& riot) {
  __shared__ u32 words[kMaxLanes * 32];
  const u32 lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const WorkingRam working{reinterpret_cast<u8*>(words + warp * kLanes * 32 + lane)};
  for (u32 i = 0; i < 128; ++i) working.at(riot, i) = riot.ram[i];
  return working;
}

#else

/// The RAM while instructions run: in its usual place.
struct WorkingRam {
  COORDRL_INLINE u8& at(Riot& riot, u32 address) const { return riot.ram[address]; }
  void leave(Riot&) const {}
};

inline WorkingRam working_ram(const Riot&) { return {}; }

#endif

/// The board: what the 6507 is soldered to.
///
/// kFlat: the cartridge shows one 4 KiB bank at a time, all of it ROM (2K, 4K, F8, F6).
template <bool kFlat>
struct Board : WorkingRam {  // WorkingRam is empty on a CPU, and takes no space as a base
  static constexpr i32 kMeeting = kLineCycles;

  Running* running;
  const u8* rom;  // flat: the bank that is switched in
  i32 cycle;
  i32 limit;

  COORDRL_HD COORDRL_INLINE Running& state() const { return in_local(*running); }

  COORDRL_HD COORDRL_INLINE i32 frame_cycle() const {
    return cycle - state().beam.tia.start_cycle;
  }

  /// Constants if the program is compiled for one bank-switching scheme.
  COORDRL_HD COORDRL_INLINE PlainRom plain() const {
#ifdef COORDRL_BANK
    return plain_rom(Bank::COORDRL_BANK);
#else
    return state().plain;
#endif
  }
  COORDRL_HD COORDRL_INLINE Index end_of_code() const {
#ifdef COORDRL_BANK
    return coordrl::end_of_code(plain());
#else
    return state().end_of_code;
#endif
  }

  /// An address as an offset from the cartridge's first one, without mirroring.
  COORDRL_HD COORDRL_INLINE Index place(u16 address) const {
    return (address & plain().mask) - 0x1000;
  }

  COORDRL_HD COORDRL_INLINE bool is_plain(Index at) const {
    return at - (kFlat ? 0 : plain().first) < plain().count;
  }

  COORDRL_HD COORDRL_INLINE const u8* rom_byte(Index at, u16 address) const {
    if (kFlat) return rom + at;
    return state().pages.byte(rom, bank_of(*state().machine), state().cartridge, address);
  }

  COORDRL_HD COORDRL_INLINE void refresh_rom() {
    rom = state().machine->rom;
    if (kFlat) {
      rom += rom_offset(bank_of(*state().machine), state().cartridge, 0);
    } else {
      state().pages.turn(*state().machine, state().cartridge);
    }
  }

  /// Fetches three bytes if they are plain ROM in one bank. Four are loaded.
  COORDRL_HD COORDRL_INLINE bool fetch(Index at, u16 pc, u32& code) const {
    if (at >= end_of_code()) return false;
    if (!kFlat && (at < plain().first || (pc & 0x3FF) > 0x3FC)) return false;  // slice's end
    const u8* bytes = rom_byte(at, pc);
#ifdef COORDRL_GPU
    // Two aligned words; the ROM image is padded with a few bytes.
    const u64 address = reinterpret_cast<u64>(bytes);
    const u32* const words = reinterpret_cast<const u32*>(address & ~u64{3});
    code = u32((u64{read_only(words + 1)} << 32 | read_only(words)) >> (8 * (address & 3)));
#else
    __builtin_memcpy(&code, bytes, 4);
#endif
    return true;
  }

  COORDRL_HD COORDRL_INLINE u8& ram(u8 address) const {
    return WorkingRam::at(state().riot, address & 0x7F);
  }

  COORDRL_HD COORDRL_INLINE u8 read(u16 address, u8 floating) {
    const Index at = place(address);
    if (likely(is_plain(at))) return read_only(rom_byte(at, address));
    if ((address & 0x1280) == 0x0080) return ram(u8(address));
    if (address & 0x1000) {
      const u8 value =
          read_cartridge(state().cartridge, *state().machine, address, frame_cycle());
      if (may_switch(address)) refresh_rom();
      return value;
    }
    if (address & 0x0080) {
      return read_riot(state().riot, address, cycle, state().inputs.swcha,
                       state().inputs.swchb);
    }
    return read_tia(state(), u8(address), floating, cycle);
  }

  COORDRL_HD COORDRL_INLINE u8 read_zero_page(u8 address, u8 floating) {
    if (likely(address & 0x80)) return ram(address);
    return read_tia(state(), address, floating, cycle);
  }

  COORDRL_HD COORDRL_INLINE u8 read_stack(u8 s, u8 floating) { return read_zero_page(s, floating); }

  /// `first`: not directly after another write. Only then does WSYNC halt the CPU.
  COORDRL_HD COORDRL_INLINE void write_to_tia(u8 address, u8 value, bool first) {
    const u8 reg = address & 0x3F;
    Beam& beam = state().beam;
    if (unlikely(!first)) advance(beam, last_effect(beam));  // two writes in one cycle
    beam.last_cycle = cycle;
    beam.last_reg = reg;
    if (reg == kWsync) {
      if (cycle >= beam.limit) end_frame();
      // "Halts microprocessor by clearing RDY latch to zero. RDY is set true again by the leading
      // edge of horizontal blank."
      if (first) cycle = i32(u32(cycle + kLineCycles - 1) / kLineCycles * kLineCycles);
      return;
    }
    if (beam.settled[reg] == value && likely(cycle < beam.limit)) return;
    if (unlikely(write_tia(beam, reg, value, cycle))) end_frame();
  }

  COORDRL_HD COORDRL_INLINE void write_zero_page(u8 address, u8 value) {
    if (address & 0x80) {
      ram(address) = value;
    } else {
      write_to_tia(address, value, true);
    }
  }

  COORDRL_HD COORDRL_INLINE void write_stack(u8 s, u8 value, bool first) {
    if (likely(s & 0x80)) {
      ram(s) = value;
    } else {
      write_to_tia(s, value, first);
    }
  }

  COORDRL_HD COORDRL_INLINE void write(u16 address, u8 value) {
    if (address & 0x1000) {
      if (is_plain(place(address))) return;
      write_cartridge(state().cartridge, *state().machine, address, value);
      if (may_switch(address)) refresh_rom();
    } else if (!(address & 0x0080)) {
      write_to_tia(u8(address), value, true);
    } else if (address & 0x0200) {
      write_riot(state().riot, address, value, cycle);
    } else {
      ram(u8(address)) = value;
    }
  }

  /// How many rounds of a loop read at least `floor` from the timer at `address`, and the value
  /// that the last one reads. The loop reads in its fourth cycle.
  COORDRL_HD COORDRL_NOINLINE static i32 timer_rounds(const Riot& riot, u16 address, i32 cycle,
                                                      i32 round, i32 floor, i32 limit, u8& value) {
    const bool instat = address & 1;
    if ((address & 0x1284) != 0x0284 || (instat && floor != 0)) return 0;
    i32 rounds = reads_above(riot, cycle + 4, round, floor);
    if (rounds > limit / 2) rounds = limit / 2;
    value = instat || rounds == 0 ? 0 : u8(counts_left(riot, cycle + 4 + (rounds - 1) * round));
    return rounds;
  }
  COORDRL_HD COORDRL_INLINE i32 rounds_of_timer(u16 address, i32 round, i32 floor,
                                                u8& value) const {
    return timer_rounds(state().riot, address, cycle, round, floor, limit, value);
  }

  COORDRL_HD COORDRL_INLINE void end_frame() {
    state().over = true;
    limit = 0;
  }

  COORDRL_HD COORDRL_INLINE void jam() {
    state().jammed = true;
    limit = 0;
  }
};

constexpr i32 kMaxInstructions = 25000;  // per call; a longer frame continues in the next one

template <bool kFlat>
COORDRL_HD COORDRL_NOINLINE void run_instructions(M6507& cpu, Running& running, i32& cycle) {
  in_local(running);
  Board<kFlat> board{working_ram(running.riot), &running, nullptr, cycle, kMaxInstructions};
  board.refresh_rom();
  execute(cpu, board);
  board.leave(running.riot);
  cycle = board.cycle;
}

/// RES: resets everything but the RAM and the inputs. This clears the pictures, too: the caller
/// must fill both of its frame buffers with 0.
COORDRL_HD inline void system_reset(Console& console, const Machine& machine) {
  console.cycle = 0;
  reset(console.riot, machine.system_random[console.draws++]);
  reset(console.tia);
  reset(console.cartridge, machine, console.draws);
  u8 vector[2] = {};
  for (u16 i = 0; i < 2; ++i) {
    const u16 address = u16(0xFFFC + i);
    vector[i] = machine.rom[rom_offset(bank_of(machine), console.cartridge, address)];
    // Both bytes lie in the page that clocks the DPC's shift register.
    if (bank_of(machine) == Bank::kDPC) step_random(console.cartridge.dpc);
  }
  jump_to_reset_vector(console.cpu, vector[0], vector[1]);
}

/// Runs the machine to the end of a frame, or for 25,000 instructions if it does not end by then.
///
/// With kDraw, `frame` is the older of two buffers of height * 160 color indices (the palette's
/// even entries; odd if a PAL picture has lost its color), 8-byte aligned, used alternately: pixels
/// that the beam does not reach keep their colors of two frames ago. If the last call left a frame
/// unfinished (`console.tia.partial` before the call), it continues in the same buffer. Without
/// kDraw, `frame` is not touched.
///
/// With `shade`, the picture is drawn directly in shades of gray: shade[index] instead of each of
/// the 256 color indices, and 0 for black. Unfinished frames are grayed by a rule for indices, so a
/// picture in shades is valid only if the frame is finished.
///
/// Afterwards, `console.tia.incomplete` is true if the picture was not drawn to its end. It then
/// depends on the frames before, which must have been drawn, too.
template <bool kDraw>
COORDRL_HD inline void run_frame(Console& console, const Machine& machine, u8* frame,
                                 const u8* shade = nullptr) {
  const Window window{machine.first_line, machine.height, machine.pal, machine.hmove_blanks};
  if (!console.tia.partial) {
    const i32 lines = console.cycle / kLineCycles * kLineCycles;
    rebase(console.riot, lines);
    rebase(console.cartridge, console.cycle - console.tia.start_cycle);
    begin_frame(console.tia, window, console.cycle);
    console.cycle -= lines;
  }
  if (!console.cpu.jammed) {
    Running running{Beam{console.tia, window, kDraw ? frame : nullptr, shade},
                    console.riot,
                    console.cartridge,
                    console.inputs,
                    &machine,
                    plain_rom(bank_of(machine)),
                    0,
                    false,
                    false};
    running.end_of_code = end_of_code(running.plain);
    sweep(running.beam);
    if (is_flat(bank_of(machine))) {
      run_instructions<true>(console.cpu, running, console.cycle);
    } else {
      run_instructions<false>(console.cpu, running, console.cycle);
    }
    rest(running.beam);
    console.tia = running.beam.tia;
    console.riot = running.riot;
    console.cartridge = running.cartridge;
    console.cpu.jammed = running.jammed;
    console.tia.partial = !running.over;
  }
  if (console.tia.partial) {
    gray_rest(console.tia, window, console.cycle, kDraw ? frame : nullptr);
  } else {
    console.tia.last_lines = u16(console.cycle / kLineCycles);
  }
}

/// Inserts the cartridge and switches on, as the oracle does when it loads a game.
///
/// RAM is filled with random numbers. Sixty frames are run, from which the oracle detects PAL games
/// (`machine.pal` already says so, but until then the console is an American one). A reset follows.
/// The caller's inputs are kept.
COORDRL_HD inline void power_on(Console& console, const Machine& machine) {
  const Inputs inputs = console.inputs;
  console = Console{};
  console.inputs = inputs;
  for (u8& byte : console.riot.ram) byte = u8(machine.system_random[console.draws++]);
  ++console.draws;  // the timer's first value, which is never seen
  console.cartridge.dpc.random = 1;

  Machine american = machine;
  american.pal = false;
  if (machine.pal) american.height = 210;
  system_reset(console, american);
  for (i32 i = 0; i < 60; ++i) run_frame<false>(console, american, nullptr);
  system_reset(console, machine);
}

}  // namespace coordrl
