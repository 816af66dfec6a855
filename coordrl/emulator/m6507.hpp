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
//     static constexpr i32 kMeeting;                 // cycles; see the `execute` of a GPU
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

/// What is done to a byte in memory.
enum Operation : u8 {
  kAsl, kLsr, kRol, kRor, kInc, kDec,
  kSlo, kRla, kSre, kRra, kDcp, kIsb,  // undocumented
};

constexpr i32 kNoWait = -1;  // of a branch that no loop around the timer uses

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
  COORDRL_HD COORDRL_INLINE void lda(u8 value) { load(a, value); }
  COORDRL_HD COORDRL_INLINE void ldx(u8 value) { load(x, value); }
  COORDRL_HD COORDRL_INLINE void ldy(u8 value) { load(y, value); }
  COORDRL_HD COORDRL_INLINE void and_(u8 value) { load(a, a & value); }
  COORDRL_HD COORDRL_INLINE void ora(u8 value) { load(a, a | value); }
  COORDRL_HD COORDRL_INLINE void eor(u8 value) { load(a, a ^ value); }

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
  COORDRL_HD COORDRL_INLINE void cmp(u8 value) { compare(a, value); }
  COORDRL_HD COORDRL_INLINE void cpx(u8 value) { compare(x, value); }
  COORDRL_HD COORDRL_INLINE void cpy(u8 value) { compare(y, value); }
  COORDRL_HD COORDRL_INLINE void bit(u8 value) {
    overflow = value & 0x40;
    nz = ((a & value) != 0) | (u32(value & 0x80) << 1);
  }

  COORDRL_HD COORDRL_INLINE u8 shift_or_count(Operation operation, u8 value) {
    switch (operation) {
      case kAsl:
        carry = value & 0x80;
        nz = value = u8(value << 1);
        return value;
      case kLsr:
        carry = value & 1;
        nz = value = u8(value >> 1);
        return value;
      case kRol: {
        const u8 rotated = u8(value << 1 | carry);
        carry = value & 0x80;
        nz = rotated;
        return rotated;
      }
      case kRor: {
        const u8 rotated = u8(value >> 1 | carry << 7);
        carry = value & 1;
        nz = rotated;
        return rotated;
      }
      case kInc:
        nz = ++value;
        return value;
      default:  // kDec
        nz = --value;
        return value;
    }
  }

  /// Shifts, counts, and the undocumented operations that do one of them in memory and go on with
  /// the accumulator.
  COORDRL_HD COORDRL_INLINE u8 apply(Operation operation, u8 value) {
    switch (operation) {
      case kSlo:
        value = shift_or_count(kAsl, value);
        ora(value);
        return value;
      case kRla:
        value = shift_or_count(kRol, value);
        and_(value);
        return value;
      case kSre:
        value = shift_or_count(kLsr, value);
        eor(value);
        return value;
      case kRra:
        value = shift_or_count(kRor, value);
        adc(value);
        return value;
      case kDcp:
        cmp(--value);
        return value;
      case kIsb:
        sbc(++value);
        return value;
      default: return shift_or_count(operation, value);
    }
  }

  /// Read, change, write, at one moment.
  COORDRL_HD COORDRL_INLINE void modify_zero_page(Operation operation, u8 address) {
    bus.write_zero_page(address, apply(operation, bus.read_zero_page(address, operand())));
  }
  COORDRL_HD COORDRL_INLINE void modify(Operation operation, u16 address, u8 floating) {
    bus.write(address, apply(operation, bus.read(address, floating)));
  }
  COORDRL_HD COORDRL_INLINE void modify(Operation operation, u16 address) {
    modify(operation, address, operand_high());
  }
  COORDRL_HD COORDRL_INLINE void modify_indexed_indirect(Operation operation) {
    const u16 address = indexed_indirect(8);
    modify(operation, address, u8(address >> 8));
  }
  COORDRL_HD COORDRL_INLINE void modify_indirect_indexed(Operation operation) {
    const u16 address = indirect_indexed(8);
    modify(operation, address, u8(u16(address - y) >> 8));
  }
  COORDRL_HD COORDRL_INLINE void shift_a(Operation operation) {
    step(1, 2);
    a = apply(operation, a);
  }
  COORDRL_HD COORDRL_INLINE void count(u8& reg, Operation operation) {
    step(1, 2);
    reg = apply(operation, reg);
  }

  COORDRL_HD COORDRL_INLINE void store_zero_page(u8 address, u8 value) {
    bus.write_zero_page(address, value);
  }
  COORDRL_HD COORDRL_INLINE void store(u16 address, u8 value) { bus.write(address, value); }

  COORDRL_HD COORDRL_INLINE void nop() { step(1, 2); }
  COORDRL_HD COORDRL_INLINE void flag(bool& flag, bool value) {
    step(1, 2);
    flag = value;
  }
  COORDRL_HD COORDRL_INLINE void transfer(u8 from, u8& to) {
    step(1, 2);
    load(to, from);
  }
  /// TXS is the one transfer that leaves the flags alone.
  COORDRL_HD COORDRL_INLINE void txs() {
    step(1, 2);
    s = x;
  }

  /// Undocumented stores of SHA, SHX, SHY and SHS: the value and one more than the address's page.
  COORDRL_HD COORDRL_INLINE void store_and_page(u16 address, u8 value) {
    bus.write(address, u8(value & ((address >> 8) + 1)));
  }

  COORDRL_HD COORDRL_INLINE void shs(u16 address) {
    s = a & x;
    store_and_page(address, s);
  }

  // Other undocumented ones. ANE and LXA mix the accumulator with a constant that varies from chip
  // to chip; the oracle's is $EE.
  COORDRL_HD COORDRL_INLINE void lax(u8 value) { load(a, x = value); }
  COORDRL_HD COORDRL_INLINE void las(u8 value) { lax(s = s & value); }
  COORDRL_HD COORDRL_INLINE void ane(u8 value) { load(a, (a | 0xEE) & x & value); }
  COORDRL_HD COORDRL_INLINE void lxa(u8 value) { lax((a | 0xEE) & value); }
  COORDRL_HD COORDRL_INLINE void anc(u8 value) {
    and_(value);
    carry = negative();
  }
  COORDRL_HD COORDRL_INLINE void asr(u8 value) { a = apply(kLsr, a & value); }
  COORDRL_HD COORDRL_INLINE void sbx(u8 value) {
    const u8 both = a & x;
    compare(both, value);
    x = u8(both - value);
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
  COORDRL_HD COORDRL_INLINE void jam() { bus.jam(); }

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

  COORDRL_HD COORDRL_INLINE void pha() {
    step(1, 3);
    push(a, true);
  }
  COORDRL_HD COORDRL_INLINE void php() {
    step(1, 3);
    push(status(), true);
  }
  COORDRL_HD COORDRL_INLINE void pla() {
    step(1, 4);
    lda(pull(peek_stack()));
  }
  COORDRL_HD COORDRL_INLINE void plp() {
    step(1, 4);
    set_status(pull(peek_stack()));
  }

  /// Branches cost a cycle when taken, and another one into another page.
  ///
  /// Many games wait for the end of the vertical blank in a loop of two instructions, "read the
  /// timer, branch back". A branch that goes back by five bytes asks the bus how many rounds of
  /// that loop read a value of `floor` or more, and takes them at once.
  COORDRL_HD COORDRL_INLINE void branch(bool taken, i32 floor) {
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
  COORDRL_HD COORDRL_INLINE void jmp() {
    bus.cycle += 3;
    jump(operand(), operand_high());
  }
  COORDRL_HD COORDRL_INLINE void jmp_indirect() {
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
};

// The opcodes in their order. An address in parentheses advances PC and clock; `zero_page(5)` is the
// zero-page address of an instruction of 5 cycles. OFTEN has the opcodes that are each half a percent
// or more of what games execute, and after each the three that follow it most often, as counted in
// 1,700 million instructions of 57 games.
#define COORDRL_OPCODES(OFTEN, OP)                                                           \
  OP(0x00, cpu.brk())                                                                        \
  OP(0x01, cpu.ora(cpu.indx()))                                                              \
  OP(0x02, cpu.jam())                                                                        \
  OP(0x03, cpu.modify_indexed_indirect(kSlo))                                                \
  OP(0x04, cpu.zp())                                                                         \
  OP(0x05, cpu.ora(cpu.zp()))                                                                \
  OP(0x06, cpu.modify_zero_page(kAsl, cpu.zero_page(5)))                                     \
  OP(0x07, cpu.modify_zero_page(kSlo, cpu.zero_page(5)))                                     \
  OP(0x08, cpu.php())                                                                        \
  OP(0x09, cpu.ora(cpu.imm()))                                                               \
  OFTEN(0x0A, cpu.shift_a(kAsl), 0x0A, 0x85, 0x49)                                           \
  OP(0x0B, cpu.anc(cpu.imm()))                                                               \
  OP(0x0C, cpu.abs())                                                                        \
  OP(0x0D, cpu.ora(cpu.abs()))                                                               \
  OP(0x0E, cpu.modify(kAsl, cpu.absolute(6)))                                                \
  OP(0x0F, cpu.modify(kSlo, cpu.absolute(6)))                                                \
  OFTEN(0x10, cpu.branch(!cpu.negative(), 0), 0x85, 0x88, 0xCA)                              \
  OP(0x11, cpu.ora(cpu.indy()))                                                              \
  OP(0x12, cpu.jam())                                                                        \
  OP(0x13, cpu.modify_indirect_indexed(kSlo))                                                \
  OP(0x14, cpu.zpx())                                                                        \
  OP(0x15, cpu.ora(cpu.zpx()))                                                               \
  OP(0x16, cpu.modify_zero_page(kAsl, cpu.zero_page_indexed(cpu.x, 6)))                      \
  OP(0x17, cpu.modify_zero_page(kSlo, cpu.zero_page_indexed(cpu.x, 6)))                      \
  OFTEN(0x18, cpu.flag(cpu.carry, false), 0x65, 0x69, 0xA5)                                  \
  OP(0x19, cpu.ora(cpu.absy()))                                                              \
  OP(0x1A, cpu.nop())                                                                        \
  OP(0x1B, cpu.modify(kSlo, cpu.absolute_indexed(cpu.y, 7)))                                 \
  OP(0x1C, cpu.absx())                                                                       \
  OP(0x1D, cpu.ora(cpu.absx()))                                                              \
  OP(0x1E, cpu.modify(kAsl, cpu.absolute_indexed(cpu.x, 7)))                                 \
  OP(0x1F, cpu.modify(kSlo, cpu.absolute_indexed(cpu.x, 7)))                                 \
  OFTEN(0x20, cpu.jsr(), 0x85, 0xA5, 0x60)                                                   \
  OP(0x21, cpu.and_(cpu.indx()))                                                             \
  OP(0x22, cpu.jam())                                                                        \
  OP(0x23, cpu.modify_indexed_indirect(kRla))                                                \
  OP(0x24, cpu.bit(cpu.zp()))                                                                \
  OFTEN(0x25, cpu.and_(cpu.zp()), 0x85, 0xF0, 0x08)                                          \
  OP(0x26, cpu.modify_zero_page(kRol, cpu.zero_page(5)))                                     \
  OP(0x27, cpu.modify_zero_page(kRla, cpu.zero_page(5)))                                     \
  OP(0x28, cpu.plp())                                                                        \
  OFTEN(0x29, cpu.and_(cpu.imm()), 0x85, 0xD0, 0x08)                                         \
  OP(0x2A, cpu.shift_a(kRol))                                                                \
  OP(0x2B, cpu.anc(cpu.imm()))                                                               \
  OP(0x2C, cpu.bit(cpu.abs()))                                                               \
  OP(0x2D, cpu.and_(cpu.abs()))                                                              \
  OP(0x2E, cpu.modify(kRol, cpu.absolute(6)))                                                \
  OP(0x2F, cpu.modify(kRla, cpu.absolute(6)))                                                \
  OFTEN(0x30, cpu.branch(cpu.negative(), 128), 0xA5, 0x85, 0x4C)                             \
  OP(0x31, cpu.and_(cpu.indy()))                                                             \
  OP(0x32, cpu.jam())                                                                        \
  OP(0x33, cpu.modify_indirect_indexed(kRla))                                                \
  OP(0x34, cpu.zpx())                                                                        \
  OP(0x35, cpu.and_(cpu.zpx()))                                                              \
  OP(0x36, cpu.modify_zero_page(kRol, cpu.zero_page_indexed(cpu.x, 6)))                      \
  OP(0x37, cpu.modify_zero_page(kRla, cpu.zero_page_indexed(cpu.x, 6)))                      \
  OFTEN(0x38, cpu.flag(cpu.carry, true), 0xE5, 0xE9, 0x8A)                                   \
  OP(0x39, cpu.and_(cpu.absy()))                                                             \
  OP(0x3A, cpu.nop())                                                                        \
  OP(0x3B, cpu.modify(kRla, cpu.absolute_indexed(cpu.y, 7)))                                 \
  OP(0x3C, cpu.absx())                                                                       \
  OP(0x3D, cpu.and_(cpu.absx()))                                                             \
  OP(0x3E, cpu.modify(kRol, cpu.absolute_indexed(cpu.x, 7)))                                 \
  OP(0x3F, cpu.modify(kRla, cpu.absolute_indexed(cpu.x, 7)))                                 \
  OP(0x40, cpu.rti())                                                                        \
  OP(0x41, cpu.eor(cpu.indx()))                                                              \
  OP(0x42, cpu.jam())                                                                        \
  OP(0x43, cpu.modify_indexed_indirect(kSre))                                                \
  OP(0x44, cpu.zp())                                                                         \
  OP(0x45, cpu.eor(cpu.zp()))                                                                \
  OP(0x46, cpu.modify_zero_page(kLsr, cpu.zero_page(5)))                                     \
  OP(0x47, cpu.modify_zero_page(kSre, cpu.zero_page(5)))                                     \
  OP(0x48, cpu.pha())                                                                        \
  OP(0x49, cpu.eor(cpu.imm()))                                                               \
  OFTEN(0x4A, cpu.shift_a(kLsr), 0x4A, 0xA8, 0x85)                                           \
  OP(0x4B, cpu.asr(cpu.imm()))                                                               \
  OFTEN(0x4C, cpu.jmp(), 0x85, 0xA5, 0xA2)                                                   \
  OP(0x4D, cpu.eor(cpu.abs()))                                                               \
  OP(0x4E, cpu.modify(kLsr, cpu.absolute(6)))                                                \
  OP(0x4F, cpu.modify(kSre, cpu.absolute(6)))                                                \
  OP(0x50, cpu.branch(!cpu.overflow, kNoWait))                                               \
  OP(0x51, cpu.eor(cpu.indy()))                                                              \
  OP(0x52, cpu.jam())                                                                        \
  OP(0x53, cpu.modify_indirect_indexed(kSre))                                                \
  OP(0x54, cpu.zpx())                                                                        \
  OP(0x55, cpu.eor(cpu.zpx()))                                                               \
  OP(0x56, cpu.modify_zero_page(kLsr, cpu.zero_page_indexed(cpu.x, 6)))                      \
  OP(0x57, cpu.modify_zero_page(kSre, cpu.zero_page_indexed(cpu.x, 6)))                      \
  OP(0x58, cpu.flag(cpu.interrupt, false))                                                   \
  OP(0x59, cpu.eor(cpu.absy()))                                                              \
  OP(0x5A, cpu.nop())                                                                        \
  OP(0x5B, cpu.modify(kSre, cpu.absolute_indexed(cpu.y, 7)))                                 \
  OP(0x5C, cpu.absx())                                                                       \
  OP(0x5D, cpu.eor(cpu.absx()))                                                              \
  OP(0x5E, cpu.modify(kLsr, cpu.absolute_indexed(cpu.x, 7)))                                 \
  OP(0x5F, cpu.modify(kSre, cpu.absolute_indexed(cpu.x, 7)))                                 \
  OFTEN(0x60, cpu.rts(), 0x85, 0xA5, 0x20)                                                   \
  OP(0x61, cpu.adc(cpu.indx()))                                                              \
  OP(0x62, cpu.jam())                                                                        \
  OP(0x63, cpu.modify_indexed_indirect(kRra))                                                \
  OP(0x64, cpu.zp())                                                                         \
  OP(0x65, cpu.adc(cpu.zp()))                                                                \
  OP(0x66, cpu.modify_zero_page(kRor, cpu.zero_page(5)))                                     \
  OP(0x67, cpu.modify_zero_page(kRra, cpu.zero_page(5)))                                     \
  OP(0x68, cpu.pla())                                                                        \
  OP(0x69, cpu.adc(cpu.imm()))                                                               \
  OP(0x6A, cpu.shift_a(kRor))                                                                \
  OP(0x6B, cpu.arr(cpu.imm()))                                                               \
  OP(0x6C, cpu.jmp_indirect())                                                               \
  OP(0x6D, cpu.adc(cpu.abs()))                                                               \
  OP(0x6E, cpu.modify(kRor, cpu.absolute(6)))                                                \
  OP(0x6F, cpu.modify(kRra, cpu.absolute(6)))                                                \
  OP(0x70, cpu.branch(cpu.overflow, kNoWait))                                                \
  OP(0x71, cpu.adc(cpu.indy()))                                                              \
  OP(0x72, cpu.jam())                                                                        \
  OP(0x73, cpu.modify_indirect_indexed(kRra))                                                \
  OP(0x74, cpu.zpx())                                                                        \
  OP(0x75, cpu.adc(cpu.zpx()))                                                               \
  OP(0x76, cpu.modify_zero_page(kRor, cpu.zero_page_indexed(cpu.x, 6)))                      \
  OP(0x77, cpu.modify_zero_page(kRra, cpu.zero_page_indexed(cpu.x, 6)))                      \
  OP(0x78, cpu.flag(cpu.interrupt, true))                                                    \
  OP(0x79, cpu.adc(cpu.absy()))                                                              \
  OP(0x7A, cpu.nop())                                                                        \
  OP(0x7B, cpu.modify(kRra, cpu.absolute_indexed(cpu.y, 7)))                                 \
  OP(0x7C, cpu.absx())                                                                       \
  OP(0x7D, cpu.adc(cpu.absx()))                                                              \
  OP(0x7E, cpu.modify(kRor, cpu.absolute_indexed(cpu.x, 7)))                                 \
  OP(0x7F, cpu.modify(kRra, cpu.absolute_indexed(cpu.x, 7)))                                 \
  OP(0x80, cpu.imm())                                                                        \
  OP(0x81, cpu.store(cpu.indexed_indirect(6), cpu.a))                                        \
  OP(0x82, cpu.imm())                                                                        \
  OP(0x83, cpu.store(cpu.indexed_indirect(6), cpu.a & cpu.x))                                \
  OFTEN(0x84, cpu.store_zero_page(cpu.zero_page(3), cpu.y), 0x85, 0x84, 0x8A)                \
  OFTEN(0x85, cpu.store_zero_page(cpu.zero_page(3), cpu.a), 0x85, 0xB1, 0xA5)                \
  OFTEN(0x86, cpu.store_zero_page(cpu.zero_page(3), cpu.x), 0x86, 0x85, 0x84)                \
  OP(0x87, cpu.store_zero_page(cpu.zero_page(3), cpu.a & cpu.x))                             \
  OFTEN(0x88, cpu.count(cpu.y, kDec), 0x10, 0xD0, 0xC4)                                      \
  OP(0x89, cpu.imm())                                                                        \
  OFTEN(0x8A, cpu.transfer(cpu.x, cpu.a), 0x38, 0xE5, 0xA8)                                  \
  OP(0x8B, cpu.ane(cpu.imm()))                                                               \
  OP(0x8C, cpu.store(cpu.absolute(4), cpu.y))                                                \
  OP(0x8D, cpu.store(cpu.absolute(4), cpu.a))                                                \
  OP(0x8E, cpu.store(cpu.absolute(4), cpu.x))                                                \
  OP(0x8F, cpu.store(cpu.absolute(4), cpu.a & cpu.x))                                        \
  OFTEN(0x90, cpu.branch(!cpu.carry, kNoWait), 0x85, 0x88, 0xA9)                             \
  OP(0x91, cpu.store(cpu.indirect_indexed(6), cpu.a))                                        \
  OP(0x92, cpu.jam())                                                                        \
  OP(0x93, cpu.store_and_page(cpu.indirect_indexed(6), cpu.a & cpu.x))                       \
  OP(0x94, cpu.store_zero_page(cpu.zero_page_indexed(cpu.x, 4), cpu.y))                      \
  OFTEN(0x95, cpu.store_zero_page(cpu.zero_page_indexed(cpu.x, 4), cpu.a), 0xCA, 0x88, 0x85) \
  OP(0x96, cpu.store_zero_page(cpu.zero_page_indexed(cpu.y, 4), cpu.x))                      \
  OP(0x97, cpu.store_zero_page(cpu.zero_page_indexed(cpu.y, 4), cpu.a & cpu.x))              \
  OFTEN(0x98, cpu.transfer(cpu.y, cpu.a), 0x4A, 0xE5, 0xD5)                                  \
  OP(0x99, cpu.store(cpu.absolute_indexed(cpu.y, 5), cpu.a))                                 \
  OP(0x9A, cpu.txs())                                                                        \
  OP(0x9B, cpu.shs(cpu.absolute_indexed(cpu.y, 5)))                                          \
  OP(0x9C, cpu.store_and_page(cpu.absolute_indexed(cpu.x, 5), cpu.y))                        \
  OP(0x9D, cpu.store(cpu.absolute_indexed(cpu.x, 5), cpu.a))                                 \
  OP(0x9E, cpu.store_and_page(cpu.absolute_indexed(cpu.y, 5), cpu.x))                        \
  OP(0x9F, cpu.store_and_page(cpu.absolute_indexed(cpu.y, 5), cpu.a & cpu.x))                \
  OFTEN(0xA0, cpu.ldy(cpu.imm()), 0x84, 0x8A, 0x38)                                          \
  OP(0xA1, cpu.lda(cpu.indx()))                                                              \
  OFTEN(0xA2, cpu.ldx(cpu.imm()), 0x86, 0x9A, 0xA1)                                          \
  OP(0xA3, cpu.lax(cpu.indx()))                                                              \
  OFTEN(0xA4, cpu.ldy(cpu.zp()), 0xB9, 0xB1, 0x85)                                           \
  OFTEN(0xA5, cpu.lda(cpu.zp()), 0x85, 0x29, 0xC9)                                           \
  OFTEN(0xA6, cpu.ldx(cpu.zp()), 0xBD, 0xB5, 0x86)                                           \
  OP(0xA7, cpu.lax(cpu.zp()))                                                                \
  OFTEN(0xA8, cpu.transfer(cpu.a, cpu.y), 0xB1, 0xB9, 0x29)                                  \
  OFTEN(0xA9, cpu.lda(cpu.imm()), 0x85, 0xF0, 0xA4)                                          \
  OFTEN(0xAA, cpu.transfer(cpu.a, cpu.x), 0xB1, 0xBD, 0xB9)                                  \
  OP(0xAB, cpu.lxa(cpu.imm()))                                                               \
  OP(0xAC, cpu.ldy(cpu.abs()))                                                               \
  OP(0xAD, cpu.lda(cpu.abs()))                                                               \
  OP(0xAE, cpu.ldx(cpu.abs()))                                                               \
  OP(0xAF, cpu.lax(cpu.abs()))                                                               \
  OFTEN(0xB0, cpu.branch(cpu.carry, kNoWait), 0x85, 0xA9, 0xEA)                              \
  OFTEN(0xB1, cpu.lda(cpu.indy()), 0x85, 0xAA, 0xA4)                                         \
  OP(0xB2, cpu.jam())                                                                        \
  OP(0xB3, cpu.lax(cpu.indy()))                                                              \
  OP(0xB4, cpu.ldy(cpu.zpx()))                                                               \
  OFTEN(0xB5, cpu.lda(cpu.zpx()), 0x85, 0x29, 0x0A)                                          \
  OP(0xB6, cpu.ldx(cpu.zpy()))                                                               \
  OP(0xB7, cpu.lax(cpu.zpy()))                                                               \
  OP(0xB8, cpu.flag(cpu.overflow, false))                                                    \
  OFTEN(0xB9, cpu.lda(cpu.absy()), 0x85, 0x30, 0x29)                                         \
  OP(0xBA, cpu.transfer(cpu.s, cpu.x))                                                       \
  OP(0xBB, cpu.las(cpu.absy()))                                                              \
  OP(0xBC, cpu.ldy(cpu.absx()))                                                              \
  OFTEN(0xBD, cpu.lda(cpu.absx()), 0x85, 0x8D, 0x45)                                         \
  OP(0xBE, cpu.ldx(cpu.absy()))                                                              \
  OP(0xBF, cpu.lax(cpu.absy()))                                                              \
  OFTEN(0xC0, cpu.cpy(cpu.imm()), 0xB0, 0xD0, 0x90)                                          \
  OP(0xC1, cpu.cmp(cpu.indx()))                                                              \
  OP(0xC2, cpu.imm())                                                                        \
  OP(0xC3, cpu.modify_indexed_indirect(kDcp))                                                \
  OFTEN(0xC4, cpu.cpy(cpu.zp()), 0xD0, 0xB0, 0x90)                                           \
  OP(0xC5, cpu.cmp(cpu.zp()))                                                                \
  OFTEN(0xC6, cpu.modify_zero_page(kDec, cpu.zero_page(5)), 0x10, 0xD0, 0xA4)                \
  OP(0xC7, cpu.modify_zero_page(kDcp, cpu.zero_page(5)))                                     \
  OFTEN(0xC8, cpu.count(cpu.y, kInc), 0xC0, 0xE9, 0x30)                                      \
  OFTEN(0xC9, cpu.cmp(cpu.imm()), 0xF0, 0xB0, 0x90)                                          \
  OFTEN(0xCA, cpu.count(cpu.x, kDec), 0x10, 0xD0, 0x30)                                      \
  OP(0xCB, cpu.sbx(cpu.imm()))                                                               \
  OP(0xCC, cpu.cpy(cpu.abs()))                                                               \
  OP(0xCD, cpu.cmp(cpu.abs()))                                                               \
  OP(0xCE, cpu.modify(kDec, cpu.absolute(6)))                                                \
  OP(0xCF, cpu.modify(kDcp, cpu.absolute(6)))                                                \
  OFTEN(0xD0, cpu.branch(!cpu.zero(), 1), 0x85, 0xA9, 0xA5)                                  \
  OP(0xD1, cpu.cmp(cpu.indy()))                                                              \
  OP(0xD2, cpu.jam())                                                                        \
  OP(0xD3, cpu.modify_indirect_indexed(kDcp))                                                \
  OP(0xD4, cpu.zpx())                                                                        \
  OP(0xD5, cpu.cmp(cpu.zpx()))                                                               \
  OP(0xD6, cpu.modify_zero_page(kDec, cpu.zero_page_indexed(cpu.x, 6)))                      \
  OP(0xD7, cpu.modify_zero_page(kDcp, cpu.zero_page_indexed(cpu.x, 6)))                      \
  OP(0xD8, cpu.flag(cpu.decimal, false))                                                     \
  OP(0xD9, cpu.cmp(cpu.absy()))                                                              \
  OP(0xDA, cpu.nop())                                                                        \
  OP(0xDB, cpu.modify(kDcp, cpu.absolute_indexed(cpu.y, 7)))                                 \
  OP(0xDC, cpu.absx())                                                                       \
  OP(0xDD, cpu.cmp(cpu.absx()))                                                              \
  OP(0xDE, cpu.modify(kDec, cpu.absolute_indexed(cpu.x, 7)))                                 \
  OP(0xDF, cpu.modify(kDcp, cpu.absolute_indexed(cpu.x, 7)))                                 \
  OFTEN(0xE0, cpu.cpx(cpu.imm()), 0xD0, 0xB0, 0x90)                                          \
  OP(0xE1, cpu.sbc(cpu.indx()))                                                              \
  OP(0xE2, cpu.imm())                                                                        \
  OP(0xE3, cpu.modify_indexed_indirect(kIsb))                                                \
  OFTEN(0xE4, cpu.cpx(cpu.zp()), 0xD0, 0x85, 0x90)                                           \
  OFTEN(0xE5, cpu.sbc(cpu.zp()), 0xC9, 0x25, 0xA8)                                           \
  OP(0xE6, cpu.modify_zero_page(kInc, cpu.zero_page(5)))                                     \
  OP(0xE7, cpu.modify_zero_page(kIsb, cpu.zero_page(5)))                                     \
  OFTEN(0xE8, cpu.count(cpu.x, kInc), 0x86, 0xE8, 0xE5)                                      \
  OFTEN(0xE9, cpu.sbc(cpu.imm()), 0xB0, 0x85, 0xC8)                                          \
  OFTEN(0xEA, cpu.nop(), 0xEA, 0xA5, 0x4C)                                                   \
  OP(0xEB, cpu.sbc(cpu.imm()))                                                               \
  OP(0xEC, cpu.cpx(cpu.abs()))                                                               \
  OP(0xED, cpu.sbc(cpu.abs()))                                                               \
  OP(0xEE, cpu.modify(kInc, cpu.absolute(6)))                                                \
  OP(0xEF, cpu.modify(kIsb, cpu.absolute(6)))                                                \
  OFTEN(0xF0, cpu.branch(cpu.zero(), kNoWait), 0x85, 0xA9, 0xC9)                             \
  OP(0xF1, cpu.sbc(cpu.indy()))                                                              \
  OP(0xF2, cpu.jam())                                                                        \
  OP(0xF3, cpu.modify_indirect_indexed(kIsb))                                                \
  OP(0xF4, cpu.zpx())                                                                        \
  OP(0xF5, cpu.sbc(cpu.zpx()))                                                               \
  OP(0xF6, cpu.modify_zero_page(kInc, cpu.zero_page_indexed(cpu.x, 6)))                      \
  OP(0xF7, cpu.modify_zero_page(kIsb, cpu.zero_page_indexed(cpu.x, 6)))                      \
  OP(0xF8, cpu.flag(cpu.decimal, true))                                                      \
  OP(0xF9, cpu.sbc(cpu.absy()))                                                              \
  OP(0xFA, cpu.nop())                                                                        \
  OP(0xFB, cpu.modify(kIsb, cpu.absolute_indexed(cpu.y, 7)))                                 \
  OP(0xFC, cpu.absx())                                                                       \
  OP(0xFD, cpu.sbc(cpu.absx()))                                                              \
  OP(0xFE, cpu.modify(kInc, cpu.absolute_indexed(cpu.x, 7)))                                 \
  OP(0xFF, cpu.modify(kIsb, cpu.absolute_indexed(cpu.x, 7)))

/// Fetches an instruction where a plain look into the ROM is not exact.
template <typename Bus>
COORDRL_HD COORDRL_INLINE void fetch_elsewhere(Processor<Bus>& cpu) {
  cpu.go_to(cpu.pc());  // the program ran from one mirror image into the next
  if (cpu.bus.fetch(cpu.at, cpu.pc(), cpu.code)) return;
  // By value: what has an address is not kept in a register.
  Bus bus = cpu.bus;
  u8 data_bus = cpu.data_bus;
  cpu.code = Processor<Bus>::fetch_slowly(bus, cpu.pc(), data_bus);
  cpu.data_bus = data_bus;
  cpu.bus = bus;
}

#if defined(__GNUC__) && !defined(COORDRL_GPU)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"

/// Runs instructions until the bus's `limit` is used up or set to 0.
///
/// Every opcode ends with a jump of its own to the next one, which the processor learns to foresee
/// far better than one jump that they all share. The language extension that this takes, labels
/// as values, exists in GCC and Clang. Still there are more jumps in the code of a game than a
/// processor has room for to remember their targets. It remembers many more branches, and so the
/// three opcodes that follow a frequent one most often, nearly half of all that games execute, are
/// asked for one by one before the jump.
template <typename Bus>
COORDRL_NOINLINE void execute(M6507& state, Bus& bus) {
#define COORDRL_LABEL(opcode, ...) &&op_##opcode,
  static const void* const kLabels[256] = {COORDRL_OPCODES(COORDRL_LABEL, COORDRL_LABEL)};
#undef COORDRL_LABEL
  Processor<Bus> cpu{bus};
  cpu.unpack(state);

#define COORDRL_FETCH                           \
  if (unlikely(--cpu.bus.limit < 0)) goto stop; \
  if (unlikely(!cpu.bus.fetch(cpu.at, cpu.pc(), cpu.code))) goto elsewhere;
#define COORDRL_ASK(opcode) \
  if (u8(cpu.code) == opcode) goto op_##opcode;
#define COORDRL_JUMP goto* kLabels[u8(cpu.code)];
// What a handler makes of `code` is worked out in it, not before every jump that may lead there.
#define COORDRL_HANDLER(opcode, action)   \
  op_##opcode : asm("" : "+r"(cpu.code)); \
  action;                                 \
  COORDRL_FETCH
#define COORDRL_OFTEN(opcode, action, first, second, third) \
  COORDRL_HANDLER(opcode, action)                           \
  COORDRL_ASK(first) COORDRL_ASK(second) COORDRL_ASK(third) COORDRL_JUMP
#define COORDRL_SELDOM(opcode, action) COORDRL_HANDLER(opcode, action) COORDRL_JUMP

  COORDRL_FETCH
  COORDRL_JUMP
elsewhere:
  fetch_elsewhere(cpu);
  goto* kLabels[u8(cpu.code)];
  COORDRL_OPCODES(COORDRL_OFTEN, COORDRL_SELDOM)
#undef COORDRL_SELDOM
#undef COORDRL_OFTEN
#undef COORDRL_HANDLER
#undef COORDRL_JUMP
#undef COORDRL_ASK
#undef COORDRL_FETCH

stop:
  cpu.pack(state);
  bus = cpu.bus;
}

#pragma GCC diagnostic pop
#else

/// Runs instructions until the bus's `limit` is used up or set to 0.
///
/// The lanes of a warp that come here together wait for each other after every `Bus::kMeeting` cycles
/// of their own time. Programs follow the beam: where lanes are on the same scanline, they are in the
/// same loops, and most of the time at the same opcode. Nothing that is computed depends on it.
template <typename Bus>
COORDRL_HD COORDRL_INLINE void execute(M6507& state, Bus& bus) {
  Processor<Bus> cpu{bus};
  cpu.unpack(state);
  const u32 lanes = __activemask();
  i32 meeting = (cpu.bus.cycle / Bus::kMeeting + 1) * Bus::kMeeting;
  bool running = true;
  do {
    while (running && cpu.bus.cycle < meeting) {
      running = --cpu.bus.limit >= 0;
      if (!running) break;
      if (unlikely(!cpu.bus.fetch(cpu.at, cpu.pc(), cpu.code))) fetch_elsewhere(cpu);
      switch (u8(cpu.code)) {
#define COORDRL_CASE(opcode, action, ...) \
  case opcode: action; break;
        COORDRL_OPCODES(COORDRL_CASE, COORDRL_CASE)
#undef COORDRL_CASE
      }
    }
    meeting += Bus::kMeeting;
  } while (__any_sync(lanes, running));
  cpu.pack(state);
  bus = cpu.bus;
}

#endif
#undef COORDRL_OPCODES

}  // namespace coordrl
