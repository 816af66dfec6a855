// MOS 6507: a 6502 with 13 address pins and no interrupt pins.
//
//     M6507 cpu;
//     jump_to_reset_vector(cpu, low, high);          // the bytes at $FFFC and $FFFD
//     execute(cpu, bus);                             // until bus.limit is 0
//
// `Bus` is what the chip is soldered to. It carries the time and must provide
//
//     i32 cycle;                                     // CPU cycles, counted up by the chip
//     i32 limit;                                     // instructions left; 0 stops the chip
//     Index place(u16 pc);                           // where code is; a multiple of 256 below pc
//     bool fetch(Index at, u16 pc, u32& code);       // three bytes at once, where that is exact
//     u8 read(u16 address, u8 floating);             // `floating`: what undriven data lines show
//     u8 read_zero_page(u8 address, u8 floating);
//     void write(u16 address, u8 value);
//     void write_zero_page(u8 address, u8 value);
//     void write_stack(u8 s, u8 value, bool first);  // first: no write in the cycle before
//     u8 read_stack(u8 s, u8 floating);
//     void jam();                                    // a JAM opcode was met
//     i32 rounds_of_timer(u16 address, i32 round, i32 floor, u8& value);  // see `branch`
//
// An instruction takes effect at its last cycle: the clock is advanced by its whole length, then
// it reads and writes. That is the oracle's view of time (ale-py), not the chip's, and everything
// that watches the clock (TIA, RIOT) depends on it. For the same reason the dummy accesses of the
// real chip are left out, except those of BRK, JSR, RTS, RTI, PLA and PLP.
//
// Sources: MCS6500 Microcomputer Family Programming Manual (MOS Technology, 1976); for the
// undocumented opcodes, "64doc" (J. West, M. Makela, 1994).
#pragma once

#include "types.hpp"

namespace coordrl {

/// Registers of the MOS 6507.
struct M6507 {
  u8 a, x, y;
  u8 s;         // low byte of the stack address; the high byte is always 1
  u8 p;         // flags NV1BDIZC, bit 7 to bit 0; bits 5 and 4 always read 1
  bool jammed;  // a JAM opcode stopped the clock generator; only a reset starts it again
  u16 pc;
  u8 data_bus;  // last byte seen by a jump; what a first fetch from open address lines returns
};

/// Flags of the status register.
enum Flag : u8 {
  kCarry = 0x01,
  kZero = 0x02,
  kInterrupt = 0x04,
  kDecimal = 0x08,
  kBreak = 0x10,
  kAlwaysOne = 0x20,
  kOverflow = 0x40,
  kNegative = 0x80,
};

/// RES pin: clears the registers and jumps through the vector at $FFFC.
COORDRL_HD inline void jump_to_reset_vector(M6507& cpu, u8 low, u8 high) {
  cpu = M6507{};
  cpu.s = 0xFF;
  cpu.p = kAlwaysOne | kBreak;
  cpu.pc = u16(low | high << 8);
  cpu.data_bus = high;
}

/// Sum or difference as the arithmetic unit leaves it.
struct Arithmetic {
  u8 result;
  bool carry;
  bool overflow;  // the signed result does not fit
};

COORDRL_HD COORDRL_INLINE bool signs_overflow(u32 a, u32 operand, u32 result) {
  return ((a ^ result) & (operand ^ result) & 0x80) != 0;
}

/// A + operand + C in two's complement.
COORDRL_HD COORDRL_INLINE Arithmetic add_binary(u8 a, u8 operand, bool carry) {
  const u32 sum = u32(a) + operand + carry;
  return {u8(sum), sum > 0xFF, signs_overflow(a, operand, sum)};
}

/// Two decimal digits in a byte as a number. A nibble above 9 counts with its value.
COORDRL_HD COORDRL_INLINE i32 from_bcd(u8 byte) { return (byte >> 4) * 10 + (byte & 15); }

/// The last two digits of a number, one in each nibble.
COORDRL_HD COORDRL_INLINE u8 to_bcd(i32 number) {
  return u8((number / 10 % 10) << 4 | number % 10);
}

/// A + operand + C in decimal mode. The oracle sets N, Z and V from the decimal result, where the
/// chip takes them from stages of the binary one.
COORDRL_HD inline Arithmetic add_decimal(u8 a, u8 operand, bool carry) {
  const i32 sum = from_bcd(a) + from_bcd(operand) + carry;
  const u8 result = to_bcd(sum & 0xFF);
  return {result, sum > 99, signs_overflow(a, operand, result)};
}

/// A - operand - (1 - C) in decimal mode.
///
/// With nibbles above 9 the difference can stay below 0 after the borrow of 100; the oracle then
/// reads its digit table before the beginning, where the table of `from_bcd` happens to lie.
COORDRL_HD inline Arithmetic subtract_decimal(u8 a, u8 operand, bool carry) {
  const i32 borrow = !carry;
  i32 difference = from_bcd(a) - from_bcd(operand) - borrow;
  if (difference < 0) difference += 100;
  const u8 result = difference < 0 ? u8(from_bcd(u8(256 + difference))) : to_bcd(difference);
  return {result, a >= operand + borrow, ((a ^ result) & (result ^ operand) & 0x80) != 0};
}

/// Bytes of an instruction, opcode included. BRK skips the byte that follows it.
COORDRL_HD inline i32 instruction_length(u8 opcode) {
  const bool odd_row = opcode & 0x10;
  switch (opcode & 0x0F) {
    case 0x00:
      if (opcode == 0x20) return 3;
      return opcode == 0x40 || opcode == 0x60 ? 1 : 2;
    case 0x02: return opcode >= 0x80 && !odd_row ? 2 : 1;
    case 0x08:
    case 0x0A: return 1;
    case 0x09:
    case 0x0B: return odd_row ? 3 : 2;
    case 0x0C:
    case 0x0D:
    case 0x0E:
    case 0x0F: return 3;
    default: return 2;
  }
}

constexpr i32 kNoWait = -1;

/// The chip while it runs: registers unpacked, so that the compiler keeps them in its own.
///
/// The flags wait until they are asked for: N and Z as the byte that they describe, C and V as
/// truth values.
template <typename Bus>
struct Processor {
  Bus bus;
  u32 code = 0;      // opcode and operand, lowest byte first
  u32 nz = 0;        // Z: bits 0-7 are all 0; N: bit 7 or bit 8 is set
  Index at = 0;      // the program counter as the bus counts ...
  Index origin = 0;  // ... and what is missing to PC
  u8 a = 0, x = 0, y = 0, s = 0;
  bool carry = false, overflow = false, decimal = false, interrupt = false;
  u8 data_bus = 0;

  COORDRL_HD COORDRL_INLINE void unpack(const M6507& cpu) {
    go_to(cpu.pc);
    a = cpu.a;
    x = cpu.x;
    y = cpu.y;
    s = cpu.s;
    data_bus = cpu.data_bus;
    set_status(cpu.p);
  }

  COORDRL_HD COORDRL_INLINE void pack(M6507& cpu) const {
    cpu.pc = pc();
    cpu.a = a;
    cpu.x = x;
    cpu.y = y;
    cpu.s = s;
    cpu.data_bus = data_bus;
    cpu.p = status();
  }

  COORDRL_HD COORDRL_INLINE u8 status() const {
    return u8((negative() ? kNegative : 0) | (overflow ? kOverflow : 0) | kAlwaysOne | kBreak |
              (decimal ? kDecimal : 0) | (interrupt ? kInterrupt : 0) | (zero() ? kZero : 0) |
              (carry ? kCarry : 0));
  }

  COORDRL_HD COORDRL_INLINE void set_status(u8 p) {
    nz = (p & kZero ? 0 : 1) | (p & kNegative ? 0x100 : 0);
    overflow = p & kOverflow;
    decimal = p & kDecimal;
    interrupt = p & kInterrupt;
    carry = p & kCarry;
  }

  COORDRL_HD COORDRL_INLINE bool negative() const { return nz & 0x180; }
  COORDRL_HD COORDRL_INLINE bool zero() const { return u8(nz) == 0; }

  COORDRL_HD COORDRL_INLINE u16 pc() const { return u16(origin + at); }

  COORDRL_HD COORDRL_INLINE void go_to(u16 pc) {
    at = bus.place(pc);
    origin = pc - at;
  }

  // The bytes after the opcode. ------------------------------------------------------------------

  COORDRL_HD COORDRL_INLINE u8 operand() const { return u8(code >> 8); }
  COORDRL_HD COORDRL_INLINE u16 operand16() const { return u16(code >> 8); }
  COORDRL_HD COORDRL_INLINE u8 operand_high() const { return u8(code >> 16); }

  /// Fetches byte by byte what can't be fetched at once: bytes outside ROM, or next to hot spots.
  COORDRL_HD COORDRL_NOINLINE static u32 fetch_slowly(Bus& bus, u16 pc, u8& data_bus) {
    data_bus = bus.read(pc, data_bus);
    u32 code = data_bus;
    const i32 length = instruction_length(u8(code));
    for (i32 i = 1; i < length; ++i) {
      data_bus = bus.read(u16(pc + i), data_bus);
      code |= u32(data_bus) << (8 * i);
    }
    return code;
  }

  // Where the operand is. Each advances PC and clock. ---------------------------------------------

  COORDRL_HD COORDRL_INLINE void step(i32 length, i32 cycles) {
    at += Index(length);
    bus.cycle += cycles;
  }

  COORDRL_HD COORDRL_INLINE u8 zero_page(i32 cycles) {
    step(2, cycles);
    return operand();
  }
  COORDRL_HD COORDRL_INLINE u8 zero_page_indexed(u8 index, i32 cycles) {
    step(2, cycles);
    return u8(operand() + index);
  }
  COORDRL_HD COORDRL_INLINE u16 absolute(i32 cycles) {
    step(3, cycles);
    return operand16();
  }
  COORDRL_HD COORDRL_INLINE u16 absolute_indexed(u8 index, i32 cycles) {
    step(3, cycles);
    return u16(operand16() + index);
  }

  /// Two bytes of the zero page; the one after $FF is $00.
  COORDRL_HD COORDRL_INLINE u16 pointer(u8 address) {
    const u8 low = bus.read_zero_page(address, operand());
    return u16(low | bus.read_zero_page(u8(address + 1), low) << 8);
  }
  COORDRL_HD COORDRL_INLINE u16 indexed_indirect(i32 cycles) {
    step(2, cycles);
    return pointer(u8(operand() + x));
  }
  COORDRL_HD COORDRL_INLINE u16 indirect_indexed(i32 cycles) {
    step(2, cycles);
    return u16(pointer(operand()) + y);
  }

  // Operands that are read. An index that carries into the high byte costs a cycle more. ----------

  COORDRL_HD COORDRL_INLINE u8 imm() {
    step(2, 2);
    return operand();
  }
  COORDRL_HD COORDRL_INLINE u8 zp() { return bus.read_zero_page(zero_page(3), operand()); }
  COORDRL_HD COORDRL_INLINE u8 zpx() {
    return bus.read_zero_page(zero_page_indexed(x, 4), operand());
  }
  COORDRL_HD COORDRL_INLINE u8 zpy() {
    return bus.read_zero_page(zero_page_indexed(y, 4), operand());
  }
  COORDRL_HD COORDRL_INLINE u8 abs() { return bus.read(absolute(4), operand_high()); }
  COORDRL_HD COORDRL_INLINE u8 abs_indexed(u8 index) {
    const u16 address = absolute_indexed(index, 4);
    bus.cycle += (address ^ operand16()) > 0xFF;
    return bus.read(address, operand_high());
  }
  COORDRL_HD COORDRL_INLINE u8 absx() { return abs_indexed(x); }
  COORDRL_HD COORDRL_INLINE u8 absy() { return abs_indexed(y); }
  COORDRL_HD COORDRL_INLINE u8 indx() {
    const u16 address = indexed_indirect(6);
    return bus.read(address, u8(address >> 8));
  }
  COORDRL_HD COORDRL_INLINE u8 indy() {
    step(2, 5);
    const u16 base = pointer(operand());
    const u16 address = u16(base + y);
    bus.cycle += (address ^ base) > 0xFF;
    return bus.read(address, u8(base >> 8));
  }

  // What is done with it. -------------------------------------------------------------------------

  COORDRL_HD COORDRL_INLINE void load(u8& reg, u8 value) { nz = reg = value; }

  COORDRL_HD COORDRL_INLINE void finish(const Arithmetic& sum) {
    nz = a = sum.result;
    carry = sum.carry;
    overflow = sum.overflow;
  }
  COORDRL_HD COORDRL_INLINE void adc(u8 value) {
    finish(unlikely(decimal) ? add_decimal(a, value, carry) : add_binary(a, value, carry));
  }
  COORDRL_HD COORDRL_INLINE void sbc(u8 value) {
    finish(unlikely(decimal) ? subtract_decimal(a, value, carry)
                             : add_binary(a, u8(~value), carry));
  }
  COORDRL_HD COORDRL_INLINE void compare(u8 reg, u8 value) {
    carry = reg >= value;
    nz = u8(reg - value);
  }
  COORDRL_HD COORDRL_INLINE void bit(u8 value) {
    overflow = value & 0x40;
    nz = ((a & value) != 0) | (u32(value & 0x80) << 1);
  }

  COORDRL_HD COORDRL_INLINE u8 asl(u8 value) {
    carry = value & 0x80;
    nz = u8(value << 1);
    return u8(nz);
  }
  COORDRL_HD COORDRL_INLINE u8 lsr(u8 value) {
    carry = value & 1;
    nz = u8(value >> 1);
    return u8(nz);
  }
  COORDRL_HD COORDRL_INLINE u8 rol(u8 value) {
    nz = u8(value << 1 | carry);
    carry = value & 0x80;
    return u8(nz);
  }
  COORDRL_HD COORDRL_INLINE u8 ror(u8 value) {
    nz = u8(value >> 1 | carry << 7);
    carry = value & 1;
    return u8(nz);
  }
  COORDRL_HD COORDRL_INLINE u8 inc(u8 value) {
    nz = u8(value + 1);
    return u8(nz);
  }
  COORDRL_HD COORDRL_INLINE u8 dec(u8 value) {
    nz = u8(value - 1);
    return u8(nz);
  }

  // Undocumented: a shift or count in memory, then an operation of the accumulator with it.
  COORDRL_HD COORDRL_INLINE u8 slo(u8 value) {
    value = asl(value);
    nz = a |= value;
    return value;
  }
  COORDRL_HD COORDRL_INLINE u8 rla(u8 value) {
    value = rol(value);
    nz = a &= value;
    return value;
  }
  COORDRL_HD COORDRL_INLINE u8 sre(u8 value) {
    value = lsr(value);
    nz = a ^= value;
    return value;
  }
  COORDRL_HD COORDRL_INLINE u8 rra(u8 value) {
    value = ror(value);
    adc(value);
    return value;
  }
  COORDRL_HD COORDRL_INLINE u8 dcp(u8 value) {
    compare(a, --value);
    return value;
  }
  COORDRL_HD COORDRL_INLINE u8 isb(u8 value) {
    sbc(++value);
    return value;
  }

  /// Read, change, write, at one moment.
  template <u8 (Processor::*operation)(u8)>
  COORDRL_HD COORDRL_INLINE void modify_zero_page(u8 address) {
    bus.write_zero_page(address, (this->*operation)(bus.read_zero_page(address, operand())));
  }
  template <u8 (Processor::*operation)(u8)>
  COORDRL_HD COORDRL_INLINE void modify(u16 address, u8 floating) {
    bus.write(address, (this->*operation)(bus.read(address, floating)));
  }
  template <u8 (Processor::*operation)(u8)>
  COORDRL_HD COORDRL_INLINE void modify_indexed_indirect() {
    const u16 address = indexed_indirect(8);
    modify<operation>(address, u8(address >> 8));
  }
  template <u8 (Processor::*operation)(u8)>
  COORDRL_HD COORDRL_INLINE void modify_indirect_indexed() {
    const u16 address = indirect_indexed(8);
    modify<operation>(address, u8(u16(address - y) >> 8));
  }

  /// Undocumented stores of SHA, SHX, SHY and SHS: the value and one more than the address's page.
  COORDRL_HD COORDRL_INLINE void store_and_page(u16 address, u8 value) {
    bus.write(address, u8(value & ((address >> 8) + 1)));
  }

  /// Undocumented ANC and ARR.
  COORDRL_HD COORDRL_INLINE void anc(u8 value) {
    nz = a &= value;
    carry = negative();
  }
  COORDRL_HD inline void arr(u8 value) {
    const u8 both = a & value;
    a = u8(both >> 1 | carry << 7);
    if (!decimal) {
      nz = a;
      carry = a & 0x40;
      overflow = (a ^ a << 1) & 0x40;
      return;
    }
    nz = (a != 0) | (u32(carry) << 8);
    overflow = (both ^ a) & 0x40;
    if ((both & 0x0F) + (both & 0x01) > 0x05) a = u8((a & 0xF0) | ((a + 0x06) & 0x0F));
    carry = both + (both & 0x10) >= 0x60;
    if (carry) a = u8(a + 0x60);
  }

  // Stack and jumps. ------------------------------------------------------------------------------

  COORDRL_HD COORDRL_INLINE void push(u8 value, bool first) {
    bus.write_stack(s, value, first);
    s = u8(s - 1);
  }
  /// The byte at S, before S moves: a dummy access.
  COORDRL_HD COORDRL_INLINE u8 peek_stack() { return bus.read_stack(s, u8(code)); }
  COORDRL_HD COORDRL_INLINE u8 pull(u8 floating) {
    s = u8(s + 1);
    return bus.read_stack(s, floating);
  }

  /// Branches cost a cycle when taken, and another one into another page.
  ///
  /// Many games wait for the end of the vertical blank in a loop of two instructions, "read the
  /// timer, branch back". A branch that goes back by five bytes asks the bus how many rounds of
  /// that loop read a value of `floor` or more, and takes them at once.
  template <i32 floor = kNoWait>
  COORDRL_HD COORDRL_INLINE void branch(bool taken) {
    step(2, 2);
    if (!taken) return;
    const Index target = at + Index(i64(i8(operand())));
    const i32 cycles = (target ^ at) > 0xFF ? 2 : 1;
    bus.cycle += cycles;
    at = target;
    if (floor != kNoWait && unlikely(operand() == 0xFB)) wait_for_timer(floor, cycles + 6);
  }
  COORDRL_HD COORDRL_INLINE void wait_for_timer(i32 floor, i32 round) {
    u32 loop;
    if (!bus.fetch(at, pc(), loop)) return;
    const u8 opcode = u8(loop);
    const bool loads = opcode == 0xAD || opcode == 0xAE || opcode == 0xAC;
    const bool tests = opcode == 0x2C && floor != 1;  // BIT's Z depends on the accumulator, too
    if (!loads && !tests) return;
    u8 value;
    const i32 rounds = bus.rounds_of_timer(u16(loop >> 8), round, floor, value);
    if (rounds == 0) return;
    bus.cycle += rounds * round;
    bus.limit -= 2 * rounds;
    switch (opcode) {
      case 0xAD: load(a, value); break;
      case 0xAE: load(x, value); break;
      case 0xAC: load(y, value); break;
      default: bit(value); break;
    }
  }
  COORDRL_HD COORDRL_INLINE void jump(u8 low, u8 high) {
    data_bus = high;
    go_to(u16(low | high << 8));
  }
  COORDRL_HD COORDRL_INLINE void jump_indirect() {
    const u16 address = absolute(5);
    const u8 low = bus.read(address, operand_high());
    // The page is not carried into: the byte after $xxFF is read from $xx00.
    jump(low, bus.read(u16((address & 0xFF00) | u8(address + 1)), low));
  }
  COORDRL_HD COORDRL_INLINE void jsr() {
    step(2, 6);  // the address pushed is that of the operand's high byte
    push(u8(pc() >> 8), true);
    push(u8(pc()), false);
    jump(operand(), operand_high());
  }
  COORDRL_HD COORDRL_INLINE void rts() {
    bus.cycle += 6;
    const u8 low = pull(peek_stack());
    const u8 high = pull(low);
    const u16 last = u16(low | high << 8);
    data_bus = bus.read(last, high);
    go_to(u16(last + 1));
  }
  COORDRL_HD COORDRL_INLINE void rti() {
    bus.cycle += 6;
    const u8 p = pull(peek_stack());
    set_status(p);
    const u8 low = pull(p);
    jump(low, pull(low));
  }
  COORDRL_HD COORDRL_INLINE void brk() {
    step(2, 7);
    push(u8(pc() >> 8), true);
    push(u8(pc()), false);
    push(status(), false);
    interrupt = true;
    const u8 low = bus.read(0xFFFE, 0);
    jump(low, bus.read(0xFFFF, 0));
  }

  /// Runs one instruction, already fetched into `code`.
  COORDRL_HD COORDRL_INLINE void decode() {
    // The columns of the opcode table, documented instructions first in each row.
    switch (u8(code)) {
      // Loads and stores.
      case 0xA9: load(a, imm()); break;
      case 0xA5: load(a, zp()); break;
      case 0xB5: load(a, zpx()); break;
      case 0xAD: load(a, abs()); break;
      case 0xBD: load(a, absx()); break;
      case 0xB9: load(a, absy()); break;
      case 0xA1: load(a, indx()); break;
      case 0xB1: load(a, indy()); break;
      case 0xA2: load(x, imm()); break;
      case 0xA6: load(x, zp()); break;
      case 0xB6: load(x, zpy()); break;
      case 0xAE: load(x, abs()); break;
      case 0xBE: load(x, absy()); break;
      case 0xA0: load(y, imm()); break;
      case 0xA4: load(y, zp()); break;
      case 0xB4: load(y, zpx()); break;
      case 0xAC: load(y, abs()); break;
      case 0xBC: load(y, absx()); break;
      case 0x85: bus.write_zero_page(zero_page(3), a); break;
      case 0x95: bus.write_zero_page(zero_page_indexed(x, 4), a); break;
      case 0x8D: bus.write(absolute(4), a); break;
      case 0x9D: bus.write(absolute_indexed(x, 5), a); break;
      case 0x99: bus.write(absolute_indexed(y, 5), a); break;
      case 0x81: bus.write(indexed_indirect(6), a); break;
      case 0x91: bus.write(indirect_indexed(6), a); break;
      case 0x86: bus.write_zero_page(zero_page(3), x); break;
      case 0x96: bus.write_zero_page(zero_page_indexed(y, 4), x); break;
      case 0x8E: bus.write(absolute(4), x); break;
      case 0x84: bus.write_zero_page(zero_page(3), y); break;
      case 0x94: bus.write_zero_page(zero_page_indexed(x, 4), y); break;
      case 0x8C: bus.write(absolute(4), y); break;

      // Arithmetic and logic.
      case 0x69: adc(imm()); break;
      case 0x65: adc(zp()); break;
      case 0x75: adc(zpx()); break;
      case 0x6D: adc(abs()); break;
      case 0x7D: adc(absx()); break;
      case 0x79: adc(absy()); break;
      case 0x61: adc(indx()); break;
      case 0x71: adc(indy()); break;
      case 0xE9:
      case 0xEB: sbc(imm()); break;
      case 0xE5: sbc(zp()); break;
      case 0xF5: sbc(zpx()); break;
      case 0xED: sbc(abs()); break;
      case 0xFD: sbc(absx()); break;
      case 0xF9: sbc(absy()); break;
      case 0xE1: sbc(indx()); break;
      case 0xF1: sbc(indy()); break;
      case 0x29: load(a, a & imm()); break;
      case 0x25: load(a, a & zp()); break;
      case 0x35: load(a, a & zpx()); break;
      case 0x2D: load(a, a & abs()); break;
      case 0x3D: load(a, a & absx()); break;
      case 0x39: load(a, a & absy()); break;
      case 0x21: load(a, a & indx()); break;
      case 0x31: load(a, a & indy()); break;
      case 0x09: load(a, a | imm()); break;
      case 0x05: load(a, a | zp()); break;
      case 0x15: load(a, a | zpx()); break;
      case 0x0D: load(a, a | abs()); break;
      case 0x1D: load(a, a | absx()); break;
      case 0x19: load(a, a | absy()); break;
      case 0x01: load(a, a | indx()); break;
      case 0x11: load(a, a | indy()); break;
      case 0x49: load(a, a ^ imm()); break;
      case 0x45: load(a, a ^ zp()); break;
      case 0x55: load(a, a ^ zpx()); break;
      case 0x4D: load(a, a ^ abs()); break;
      case 0x5D: load(a, a ^ absx()); break;
      case 0x59: load(a, a ^ absy()); break;
      case 0x41: load(a, a ^ indx()); break;
      case 0x51: load(a, a ^ indy()); break;
      case 0xC9: compare(a, imm()); break;
      case 0xC5: compare(a, zp()); break;
      case 0xD5: compare(a, zpx()); break;
      case 0xCD: compare(a, abs()); break;
      case 0xDD: compare(a, absx()); break;
      case 0xD9: compare(a, absy()); break;
      case 0xC1: compare(a, indx()); break;
      case 0xD1: compare(a, indy()); break;
      case 0xE0: compare(x, imm()); break;
      case 0xE4: compare(x, zp()); break;
      case 0xEC: compare(x, abs()); break;
      case 0xC0: compare(y, imm()); break;
      case 0xC4: compare(y, zp()); break;
      case 0xCC: compare(y, abs()); break;
      case 0x24: bit(zp()); break;
      case 0x2C: bit(abs()); break;

      // Shifts and counts.
      case 0x0A: step(1, 2); a = asl(a); break;
      case 0x06: modify_zero_page<&Processor::asl>(zero_page(5)); break;
      case 0x16: modify_zero_page<&Processor::asl>(zero_page_indexed(x, 6)); break;
      case 0x0E: modify<&Processor::asl>(absolute(6), operand_high()); break;
      case 0x1E: modify<&Processor::asl>(absolute_indexed(x, 7), operand_high()); break;
      case 0x4A: step(1, 2); a = lsr(a); break;
      case 0x46: modify_zero_page<&Processor::lsr>(zero_page(5)); break;
      case 0x56: modify_zero_page<&Processor::lsr>(zero_page_indexed(x, 6)); break;
      case 0x4E: modify<&Processor::lsr>(absolute(6), operand_high()); break;
      case 0x5E: modify<&Processor::lsr>(absolute_indexed(x, 7), operand_high()); break;
      case 0x2A: step(1, 2); a = rol(a); break;
      case 0x26: modify_zero_page<&Processor::rol>(zero_page(5)); break;
      case 0x36: modify_zero_page<&Processor::rol>(zero_page_indexed(x, 6)); break;
      case 0x2E: modify<&Processor::rol>(absolute(6), operand_high()); break;
      case 0x3E: modify<&Processor::rol>(absolute_indexed(x, 7), operand_high()); break;
      case 0x6A: step(1, 2); a = ror(a); break;
      case 0x66: modify_zero_page<&Processor::ror>(zero_page(5)); break;
      case 0x76: modify_zero_page<&Processor::ror>(zero_page_indexed(x, 6)); break;
      case 0x6E: modify<&Processor::ror>(absolute(6), operand_high()); break;
      case 0x7E: modify<&Processor::ror>(absolute_indexed(x, 7), operand_high()); break;
      case 0xE6: modify_zero_page<&Processor::inc>(zero_page(5)); break;
      case 0xF6: modify_zero_page<&Processor::inc>(zero_page_indexed(x, 6)); break;
      case 0xEE: modify<&Processor::inc>(absolute(6), operand_high()); break;
      case 0xFE: modify<&Processor::inc>(absolute_indexed(x, 7), operand_high()); break;
      case 0xC6: modify_zero_page<&Processor::dec>(zero_page(5)); break;
      case 0xD6: modify_zero_page<&Processor::dec>(zero_page_indexed(x, 6)); break;
      case 0xCE: modify<&Processor::dec>(absolute(6), operand_high()); break;
      case 0xDE: modify<&Processor::dec>(absolute_indexed(x, 7), operand_high()); break;
      case 0xE8: step(1, 2); x = inc(x); break;
      case 0xC8: step(1, 2); y = inc(y); break;
      case 0xCA: step(1, 2); x = dec(x); break;
      case 0x88: step(1, 2); y = dec(y); break;

      // Between registers; flags.
      case 0xAA: step(1, 2); load(x, a); break;
      case 0xA8: step(1, 2); load(y, a); break;
      case 0x8A: step(1, 2); load(a, x); break;
      case 0x98: step(1, 2); load(a, y); break;
      case 0xBA: step(1, 2); load(x, s); break;
      case 0x9A: step(1, 2); s = x; break;
      case 0x18: step(1, 2); carry = false; break;
      case 0x38: step(1, 2); carry = true; break;
      case 0x58: step(1, 2); interrupt = false; break;
      case 0x78: step(1, 2); interrupt = true; break;
      case 0xB8: step(1, 2); overflow = false; break;
      case 0xD8: step(1, 2); decimal = false; break;
      case 0xF8: step(1, 2); decimal = true; break;

      // Branches, jumps, stack.
      case 0x10: branch<0>(!negative()); break;
      case 0x30: branch<128>(negative()); break;
      case 0x50: branch(!overflow); break;
      case 0x70: branch(overflow); break;
      case 0x90: branch(!carry); break;
      case 0xB0: branch(carry); break;
      case 0xD0: branch<1>(!zero()); break;
      case 0xF0: branch(zero()); break;
      case 0x4C: bus.cycle += 3; jump(operand(), operand_high()); break;
      case 0x6C: jump_indirect(); break;
      case 0x20: jsr(); break;
      case 0x60: rts(); break;
      case 0x40: rti(); break;
      case 0x00: brk(); break;
      case 0x48: step(1, 3); push(a, true); break;
      case 0x08: step(1, 3); push(status(), true); break;
      case 0x68: step(1, 4); load(a, pull(peek_stack())); break;
      case 0x28: step(1, 4); set_status(pull(peek_stack())); break;

      // No operation. The undocumented ones read their operand and forget it.
      case 0xEA:
      case 0x1A:
      case 0x3A:
      case 0x5A:
      case 0x7A:
      case 0xDA:
      case 0xFA: step(1, 2); break;
      case 0x80:
      case 0x82:
      case 0x89:
      case 0xC2:
      case 0xE2: imm(); break;
      case 0x04:
      case 0x44:
      case 0x64: zp(); break;
      case 0x14:
      case 0x34:
      case 0x54:
      case 0x74:
      case 0xD4:
      case 0xF4: zpx(); break;
      case 0x0C: abs(); break;
      case 0x1C:
      case 0x3C:
      case 0x5C:
      case 0x7C:
      case 0xDC:
      case 0xFC: absx(); break;

      // Undocumented.
      case 0xA7: load(a, x = zp()); break;
      case 0xB7: load(a, x = zpy()); break;
      case 0xAF: load(a, x = abs()); break;
      case 0xBF: load(a, x = absy()); break;
      case 0xA3: load(a, x = indx()); break;
      case 0xB3: load(a, x = indy()); break;
      case 0x87: bus.write_zero_page(zero_page(3), a & x); break;
      case 0x97: bus.write_zero_page(zero_page_indexed(y, 4), a & x); break;
      case 0x8F: bus.write(absolute(4), a & x); break;
      case 0x83: bus.write(indexed_indirect(6), a & x); break;
      case 0x07: modify_zero_page<&Processor::slo>(zero_page(5)); break;
      case 0x17: modify_zero_page<&Processor::slo>(zero_page_indexed(x, 6)); break;
      case 0x0F: modify<&Processor::slo>(absolute(6), operand_high()); break;
      case 0x1F: modify<&Processor::slo>(absolute_indexed(x, 7), operand_high()); break;
      case 0x1B: modify<&Processor::slo>(absolute_indexed(y, 7), operand_high()); break;
      case 0x03: modify_indexed_indirect<&Processor::slo>(); break;
      case 0x13: modify_indirect_indexed<&Processor::slo>(); break;
      case 0x27: modify_zero_page<&Processor::rla>(zero_page(5)); break;
      case 0x37: modify_zero_page<&Processor::rla>(zero_page_indexed(x, 6)); break;
      case 0x2F: modify<&Processor::rla>(absolute(6), operand_high()); break;
      case 0x3F: modify<&Processor::rla>(absolute_indexed(x, 7), operand_high()); break;
      case 0x3B: modify<&Processor::rla>(absolute_indexed(y, 7), operand_high()); break;
      case 0x23: modify_indexed_indirect<&Processor::rla>(); break;
      case 0x33: modify_indirect_indexed<&Processor::rla>(); break;
      case 0x47: modify_zero_page<&Processor::sre>(zero_page(5)); break;
      case 0x57: modify_zero_page<&Processor::sre>(zero_page_indexed(x, 6)); break;
      case 0x4F: modify<&Processor::sre>(absolute(6), operand_high()); break;
      case 0x5F: modify<&Processor::sre>(absolute_indexed(x, 7), operand_high()); break;
      case 0x5B: modify<&Processor::sre>(absolute_indexed(y, 7), operand_high()); break;
      case 0x43: modify_indexed_indirect<&Processor::sre>(); break;
      case 0x53: modify_indirect_indexed<&Processor::sre>(); break;
      case 0x67: modify_zero_page<&Processor::rra>(zero_page(5)); break;
      case 0x77: modify_zero_page<&Processor::rra>(zero_page_indexed(x, 6)); break;
      case 0x6F: modify<&Processor::rra>(absolute(6), operand_high()); break;
      case 0x7F: modify<&Processor::rra>(absolute_indexed(x, 7), operand_high()); break;
      case 0x7B: modify<&Processor::rra>(absolute_indexed(y, 7), operand_high()); break;
      case 0x63: modify_indexed_indirect<&Processor::rra>(); break;
      case 0x73: modify_indirect_indexed<&Processor::rra>(); break;
      case 0xC7: modify_zero_page<&Processor::dcp>(zero_page(5)); break;
      case 0xD7: modify_zero_page<&Processor::dcp>(zero_page_indexed(x, 6)); break;
      case 0xCF: modify<&Processor::dcp>(absolute(6), operand_high()); break;
      case 0xDF: modify<&Processor::dcp>(absolute_indexed(x, 7), operand_high()); break;
      case 0xDB: modify<&Processor::dcp>(absolute_indexed(y, 7), operand_high()); break;
      case 0xC3: modify_indexed_indirect<&Processor::dcp>(); break;
      case 0xD3: modify_indirect_indexed<&Processor::dcp>(); break;
      case 0xE7: modify_zero_page<&Processor::isb>(zero_page(5)); break;
      case 0xF7: modify_zero_page<&Processor::isb>(zero_page_indexed(x, 6)); break;
      case 0xEF: modify<&Processor::isb>(absolute(6), operand_high()); break;
      case 0xFF: modify<&Processor::isb>(absolute_indexed(x, 7), operand_high()); break;
      case 0xFB: modify<&Processor::isb>(absolute_indexed(y, 7), operand_high()); break;
      case 0xE3: modify_indexed_indirect<&Processor::isb>(); break;
      case 0xF3: modify_indirect_indexed<&Processor::isb>(); break;
      case 0x0B:
      case 0x2B: anc(imm()); break;
      case 0x4B: a = lsr(a & imm()); break;
      case 0x6B: arr(imm()); break;
      // ANE and LXA mix the accumulator with a constant that varies from chip to chip.
      case 0x8B: load(a, (a | 0xEE) & x & imm()); break;
      case 0xAB: load(a, x = u8((a | 0xEE) & imm())); break;
      case 0xCB: {
        const u8 value = imm();
        const u8 both = a & x;
        compare(both, value);
        x = u8(nz);
        break;
      }
      case 0xBB: load(a, x = s = s & absy()); break;
      case 0x9F: store_and_page(absolute_indexed(y, 5), a & x); break;
      case 0x93: store_and_page(indirect_indexed(6), a & x); break;
      case 0x9E: store_and_page(absolute_indexed(y, 5), x); break;
      case 0x9C: store_and_page(absolute_indexed(x, 5), y); break;
      case 0x9B: s = a & x; store_and_page(absolute_indexed(y, 5), s); break;

      default: bus.jam(); break;  // $x2: the clock generator stops
    }
  }
};

/// Runs instructions until the bus's `limit` is used up or set to 0.
template <typename Bus>
COORDRL_HD COORDRL_INLINE void execute(M6507& cpu, Bus& bus) {
  Processor<Bus> processor{bus};
  processor.unpack(cpu);
  while (--processor.bus.limit >= 0) {
    if (unlikely(!processor.bus.fetch(processor.at, processor.pc(), processor.code))) {
      processor.go_to(processor.pc());  // the program ran from one mirror image into the next
      if (!processor.bus.fetch(processor.at, processor.pc(), processor.code)) {
        // By value: what has an address is not kept in a register.
        Bus slow = processor.bus;
        u8 data_bus = processor.data_bus;
        processor.code = Processor<Bus>::fetch_slowly(slow, processor.pc(), data_bus);
        processor.data_bus = data_bus;
        processor.bus = slow;
      }
    }
    processor.decode();
  }
  processor.pack(cpu);
  bus = processor.bus;
}

}  // namespace coordrl
