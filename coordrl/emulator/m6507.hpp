// MOS 6507: a 6502 with 13 address pins and no interrupt pins.
//
//     M6507 cpu;
//     jump_to_reset_vector(cpu, low, high);          // the bytes at $FFFC and $FFFD
//     execute(cpu, bus);                             // until bus.limit is 0
//
// There are two versions of `execute`: for CPUs (threaded.hpp) and for GPUs (staged.hpp).
//
// `Bus` is the board that the chip is soldered to. It keeps the time and must provide
//
//     i32 cycle;                                     // CPU cycles, counted up by the chip
//     i32 limit;                                     // instructions left; 0 stops the chip
//     Index place(u16 pc);                           // location of code: pc less a multiple of 256
//     bool fetch(Index at, u16 pc, u32& code);       // three bytes at once, if that is exact
//     u8 read(u16 address, u8 floating);             // `floating`: what undriven data lines show
//     u8 read_zero_page(u8 address, u8 floating);
//     void write(u16 address, u8 value);
//     void write_zero_page(u8 address, u8 value);
//     void write_stack(u8 s, u8 value, bool first);  // first: no write in the cycle before
//     u8 read_stack(u8 s, u8 floating);
//     u8& ram(u8 address);                           // a zero-page byte in RAM; for GPUs
//     void jam();                                    // a JAM opcode was met
//     i32 rounds_of_timer(u16 address, i32 round, i32 floor, u8& value);  // see `branch`
//     static constexpr i32 kMeeting;                 // cycles; see staged.hpp
//
// The zero-page functions do the same as `read` and `write` below $100, the stack functions the
// same as those from $100 to $1FF. They exist because they are shorter: fewer chips can answer.
//
// An instruction takes effect in its last cycle: the clock advances by its whole duration, then it
// reads and writes. That is the oracle's timing (ale-py), not the chip's, and everything that
// depends on the clock (TIA, RIOT) relies on it. For the same reason the dummy accesses of the real
// chip are left out, except those of BRK, RTS, RTI, PLA and PLP.
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
  u8 data_bus;  // last byte read by a jump; the first fetch from undriven addresses returns it
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

/// A sum or difference as the ALU leaves it.
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

/// A + operand + C in decimal mode. The oracle sets N, Z and V from the decimal result, whereas the
/// chip takes them from stages of the binary addition.
COORDRL_HD inline Arithmetic add_decimal(u8 a, u8 operand, bool carry) {
  const i32 sum = from_bcd(a) + from_bcd(operand) + carry;
  const u8 result = to_bcd(sum & 0xFF);
  return {result, sum > 99, signs_overflow(a, operand, result)};
}

/// A - operand - (1 - C) in decimal mode.
///
/// With nibbles above 9 the difference can be below 0 even after adding 100; the oracle then reads
/// before the start of its digit table, where the table of `from_bcd` happens to be.
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

/// Operations on a byte, in memory or in a register.
enum Operation : u8 {
  kAsl, kLsr, kRol, kRor, kInc, kDec,
  kSlo, kRla, kSre, kRra, kDcp, kIsb,  // undocumented
};

constexpr i32 kNoWait = -1;  // for a branch that timer loops do not use

/// The running chip: registers unpacked, so that the compiler keeps them in machine registers.
///
/// Flags are packed only on demand: N and Z are kept as the byte that they describe, C and V as
/// booleans.
template <typename Bus>
struct Processor {
  Bus bus;
  u32 code = 0;      // opcode and operand, lowest byte first
  u32 nz = 0;        // Z: bits 0-7 are all 0; N: bit 7 or bit 8 is set
  Index at = 0;      // the program counter as a `place` of the bus ...
  Index origin = 0;  // ... and what to add to it for PC
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

  /// Fetches byte by byte if bytes can't be fetched at once: outside ROM, or next to hot spots.
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

  // Addressing modes. Each advances PC and clock. -------------------------------------------------

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

  /// A pointer in the zero page; $FF wraps around to $00.
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

  // Operands to read. Crossing a page by indexing costs one more cycle. ---------------------------

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

  // Operations on operands. -----------------------------------------------------------------------

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

  /// Shifts, increments and decrements, and the undocumented operations that do one of them in
  /// memory and then use the result on the accumulator.
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

  /// Read-modify-write, all in the same cycle.
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
  /// TXS is the only transfer that does not change the flags.
  COORDRL_HD COORDRL_INLINE void txs() {
    step(1, 2);
    s = x;
  }

  /// Undocumented SHA, SHX, SHY and SHS store the value ANDed with the address's high byte plus 1.
  COORDRL_HD COORDRL_INLINE void store_and_page(u16 address, u8 value) {
    bus.write(address, u8(value & ((address >> 8) + 1)));
  }

  COORDRL_HD COORDRL_INLINE void shs(u16 address) {
    s = a & x;
    store_and_page(address, s);
  }

  // Other undocumented opcodes. ANE and LXA mix the accumulator with a constant that varies from
  // chip to chip; the oracle's is $EE.
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
  /// Reads the byte at S before S changes: a dummy access.
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

  /// A taken branch costs one more cycle, and another one if it goes to another page.
  ///
  /// Many games wait for the end of the vertical blank in a loop of two instructions, "read the
  /// timer, branch back". A branch back by five bytes asks the bus how many rounds of that loop
  /// read a value of `floor` or more, and runs them at once.
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
    // There is no carry into the high byte: the byte after $xxFF is read from $xx00.
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

/// Fetches an instruction where a plain ROM access is not exact.
template <typename Bus>
COORDRL_HD COORDRL_INLINE void fetch_elsewhere(Processor<Bus>& cpu) {
  cpu.go_to(cpu.pc());  // the program may have run from one mirror into the next
  if (cpu.bus.fetch(cpu.at, cpu.pc(), cpu.code)) return;
  // By value: a variable whose address is taken is not kept in a register.
  Bus bus = cpu.bus;
  u8 data_bus = cpu.data_bus;
  cpu.code = Processor<Bus>::fetch_slowly(bus, cpu.pc(), data_bus);
  cpu.data_bus = data_bus;
  cpu.bus = bus;
}

}  // namespace coordrl
