// The opcodes of the 6507 split into stages: where each takes a byte from, what it does with it,
// and where it puts it.
//
// This is not written by hand: the table of opcodes (opcodes.hpp) is run on a processor that
// records the operations it is asked for.
#pragma once

#include "m6507.hpp"
#include "opcodes.hpp"

namespace coordrl {

/// What an instruction's address is made of, besides its operand and an index.
enum class Find : u8 {
  kOperand,  // nothing else
  kPointer,  // in the zero page
  kPush,
  kPull,
  kCall,      // this and the next two only if both bytes are in RAM, as nearly always; ...
  kReturn,
  kIndirect,
  kWhole,     // ... otherwise executed as a whole, like opcodes too rare to be split
};

/// Registers, as a set of bits. Several source registers are ANDed, as in undocumented opcodes.
struct Registers {
  u32 set;

  constexpr Registers operator&(Registers other) const { return {set | other.set}; }
};

constexpr u32 kA = 1, kX = 2, kY = 4, kS = 8;

/// What is done with the byte, read or from a register, apart from what needs no branch: combining
/// it with the accumulator and setting N and Z.
enum class Work : u8 {
  kNothing, kAdd, kSubtract, kCompare, kTestBits, kStoreAndPage, kSetFlag, kGetStatus, kSetStatus,
  kBranch, kJump, kReturn,
  kOperation,  // this and all above: an Operation
};

/// How the byte is combined with the accumulator.
enum class Logic : u8 { kNone, kOr, kAnd, kEor };

/// A flag, and whether it should be set.
struct Condition {
  Flag flag;
  bool set;

  constexpr Condition operator!() const { return {flag, !set}; }
};

/// A bit field of a plan.
struct Field {
  u32 first, width;

  constexpr Field after(u32 wide) const { return {first + width, wide}; }
};

/// An opcode, split into stages.
struct Plan {
  u32 bits;

  COORDRL_HD COORDRL_INLINE constexpr u32 operator[](Field field) const {
    return bits >> field.first & ((1u << field.width) - 1);
  }
  constexpr void set(Field field, u32 value) {
    bits = (bits & ~(((1u << field.width) - 1) << field.first)) | value << field.first;
  }
};

constexpr Field kReads{0, 1};
constexpr Field kWrites = kReads.after(1);
constexpr Field kImmediate = kWrites.after(1);   // the operand is the byte itself
constexpr Field kWide = kImmediate.after(1);     // the address has 16 bits
constexpr Field kByX = kWide.after(1);           // the index is X
constexpr Field kByY = kByX.after(1);
constexpr Field kCrosses = kByY.after(1);        // one more cycle if the index carries
constexpr Field kTells = kCrosses.after(1);      // the result sets N and Z
constexpr Field kLogic = kTells.after(2);        // Logic
constexpr Field kLength = kLogic.after(2);       // bytes that PC advances by
constexpr Field kCycles = kLength.after(4);
constexpr Field kFind = kCycles.after(3);        // Find
constexpr Field kFrom = kFind.after(4);          // Registers
constexpr Field kTo = kFrom.after(4);            // Registers that get the result
constexpr Field kWork = kTo.after(5);            // Work; the last, see `any_work`
static_assert(kWork.first + kWork.width <= 32, "one word");
static_assert(u32(Find::kWhole) < 1u << kFind.width, "every Find has its number");
static_assert(u32(Work::kOperation) + kIsb < 1u << kWork.width, "and so has all Work");

// Instead of registers, an instruction about a flag has the flag's bit and whether it should be
// set; in a branch, a code for its `floor` follows.
constexpr Field kFlag = kFrom;
constexpr Field kSet{kTo.first, 1};
constexpr Field kWait = kSet.after(2);

/// The `floor` of a branch (m6507.hpp).
constexpr i32 floor_of(u32 wait) { return wait == 0 ? kNoWait : wait == 3 ? 128 : i32(wait) - 1; }

/// Takes the place of the processor in the table of opcodes and records the operations.
struct Recorder {
  struct Address {};
  struct Byte {};

  Plan plan{};
  Registers a{kA}, x{kX}, y{kY}, s{kS};
  Condition carry{kCarry, true}, overflow{kOverflow, true};
  Condition decimal{kDecimal, true}, interrupt{kInterrupt, true};

  constexpr Condition negative() const { return {kNegative, true}; }
  constexpr Condition zero() const { return {kZero, true}; }

  constexpr void step(u32 length, u32 cycles) {
    plan.set(kLength, length);
    plan.set(kCycles, cycles);
  }
  constexpr void index(Registers by) {
    plan.set(kByX, by.set == kX);
    plan.set(kByY, by.set == kY);
  }
  constexpr void find(Find place) { plan.set(kFind, u32(place)); }
  constexpr void from(Registers source) { plan.set(kFrom, source.set); }
  constexpr void to(Registers target) { plan.set(kTo, target.set); }
  constexpr void work(Work task) { plan.set(kWork, u32(task)); }
  constexpr void work(Operation operation) { plan.set(kWork, u32(Work::kOperation) + operation); }
  constexpr void whole() { find(Find::kWhole); }

  constexpr Address zero_page(u32 cycles) {
    step(2, cycles);
    return {};
  }
  constexpr Address zero_page_indexed(Registers by, u32 cycles) {
    index(by);
    return zero_page(cycles);
  }
  constexpr Address absolute(u32 cycles) {
    step(3, cycles);
    plan.set(kWide, 1);
    return {};
  }
  constexpr Address absolute_indexed(Registers by, u32 cycles) {
    index(by);
    return absolute(cycles);
  }
  constexpr Address indexed_indirect(u32 cycles) {
    find(Find::kPointer);
    plan.set(kWide, 1);
    return zero_page_indexed(x, cycles);
  }
  constexpr Address indirect_indexed(u32 cycles) {
    find(Find::kPointer);
    plan.set(kWide, 1);
    return zero_page_indexed(y, cycles);
  }

  constexpr Byte read(Address) {
    plan.set(kReads, 1);
    return {};
  }
  constexpr Byte read_crossing(Address address) {
    plan.set(kCrosses, 1);
    return read(address);
  }
  constexpr Byte imm() {
    step(2, 2);
    plan.set(kImmediate, 1);
    return {};
  }
  constexpr Byte zp() { return read(zero_page(3)); }
  constexpr Byte zpx() { return read(zero_page_indexed(x, 4)); }
  constexpr Byte zpy() { return read(zero_page_indexed(y, 4)); }
  constexpr Byte abs() { return read(absolute(4)); }
  constexpr Byte absx() { return read_crossing(absolute_indexed(x, 4)); }
  constexpr Byte absy() { return read_crossing(absolute_indexed(y, 4)); }
  constexpr Byte indx() { return read(indexed_indirect(6)); }
  constexpr Byte indy() { return read_crossing(indirect_indexed(5)); }

  constexpr void load(Registers target) {
    to(target);
    plan.set(kTells, 1);
  }
  constexpr void combine(Logic logic) {
    load(a);
    plan.set(kLogic, u32(logic));
  }
  constexpr void lda(Byte) { load(a); }
  constexpr void ldx(Byte) { load(x); }
  constexpr void ldy(Byte) { load(y); }
  constexpr void lax(Byte) { load(a & x); }
  constexpr void ora(Byte) { combine(Logic::kOr); }
  constexpr void and_(Byte) { combine(Logic::kAnd); }
  constexpr void eor(Byte) { combine(Logic::kEor); }
  constexpr void adc(Byte) { work(Work::kAdd); }
  constexpr void sbc(Byte) { work(Work::kSubtract); }
  constexpr void bit(Byte) { work(Work::kTestBits); }
  constexpr void compare(Registers with) {
    work(Work::kCompare);
    from(with);
  }
  constexpr void cmp(Byte) { compare(a); }
  constexpr void cpx(Byte) { compare(x); }
  constexpr void cpy(Byte) { compare(y); }

  constexpr void modify(Operation operation, Address address) {
    read(address);
    work(operation);
    plan.set(kWrites, 1);
  }
  constexpr void modify_zero_page(Operation operation, Address at) { modify(operation, at); }
  constexpr void modify_indexed_indirect(Operation operation) {
    modify(operation, indexed_indirect(8));
  }
  constexpr void modify_indirect_indexed(Operation operation) {
    modify(operation, indirect_indexed(8));
  }
  constexpr void count(Registers at, Operation operation) {
    step(1, 2);
    from(at);
    to(at);
    work(operation);
  }
  constexpr void shift_a(Operation operation) { count(a, operation); }

  constexpr void store(Address, Registers source) {
    from(source);
    plan.set(kWrites, 1);
  }
  constexpr void store_zero_page(Address address, Registers source) { store(address, source); }
  constexpr void store_and_page(Address address, Registers source) {
    store(address, source);
    work(Work::kStoreAndPage);
  }

  constexpr void nop() { step(1, 2); }
  constexpr void transfer(Registers source, Registers target) {
    step(1, 2);
    from(source);
    load(target);
  }
  constexpr void txs() {
    step(1, 2);
    from(x);
    to(s);
  }
  constexpr void flag(Condition which, bool set) {
    step(1, 2);
    work(Work::kSetFlag);
    name({which.flag, set});
  }

  constexpr void push(Registers source) {
    step(1, 3);
    find(Find::kPush);
    store({}, source);
  }
  constexpr void pha() { push(a); }
  constexpr void php() {
    push({});
    work(Work::kGetStatus);
  }
  constexpr void pull() {
    step(1, 4);
    find(Find::kPull);
    plan.set(kReads, 1);
  }
  constexpr void pla() {
    pull();
    load(a);
  }
  constexpr void plp() {
    pull();
    work(Work::kSetStatus);
  }

  constexpr void branch(Condition taken, i32 floor) {
    work(Work::kBranch);
    name(taken);
    while (floor_of(plan[kWait]) != floor) plan.set(kWait, plan[kWait] + 1);
  }
  constexpr void jump(Find place) {
    find(place);
    plan.set(kWide, 1);
    work(Work::kJump);
  }
  constexpr void jmp() {
    step(0, 3);
    jump(Find::kOperand);
  }
  constexpr void jmp_indirect() {
    step(0, 5);
    jump(Find::kIndirect);
  }
  constexpr void jsr() {
    step(2, 6);
    jump(Find::kCall);
  }
  constexpr void rts() {
    step(0, 6);
    find(Find::kReturn);
    plan.set(kWide, 1);
    plan.set(kReads, 1);
    work(Work::kReturn);
  }

  constexpr void name(Condition condition) {
    u32 bit = 0;
    while (condition.flag >> bit != 1) ++bit;
    plan.set(kFlag, bit);
    plan.set(kSet, condition.set);
  }

  constexpr void brk() { whole(); }
  constexpr void rti() { whole(); }
  constexpr void jam() { whole(); }
  constexpr void shs(Address) { whole(); }
  constexpr void las(Byte) { whole(); }
  constexpr void ane(Byte) { whole(); }
  constexpr void lxa(Byte) { whole(); }
  constexpr void anc(Byte) { whole(); }
  constexpr void asr(Byte) { whole(); }
  constexpr void sbx(Byte) { whole(); }
  constexpr void arr(Byte) { whole(); }
};

/// The plan of an opcode, from the table.
constexpr Plan plan_of(u32 opcode) {
  Recorder cpu{};
  switch (opcode) {
#define COORDRL_CASE(opcode, action, ...) \
  case opcode: action; break;
    COORDRL_OPCODES(COORDRL_CASE, COORDRL_CASE)
#undef COORDRL_CASE
    default: break;
  }
  return cpu.plan;
}

struct PlanTable {
  Plan of[256];

  COORDRL_HD constexpr PlanTable() : of{} {
    for (u32 opcode = 0; opcode < 256; ++opcode) of[opcode] = plan_of(opcode);
  }
};

}  // namespace coordrl
