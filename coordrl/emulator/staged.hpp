// Instructions executed in stages, which suits the lanes of a warp best.
//
// Lanes with different opcodes diverge and run one after the other. Split into stages, though, two
// opcodes have most in common: they find an address, read, operate on a byte and write. Lanes with
// the same stage execute it together, whatever the rest of their opcodes. Moreover, except in rare
// opcodes, the program has a single read and a single write: with a copy of them in each opcode, as
// in threaded.hpp, it would be too large for a GPU's caches. Therefore the bus's `read` and `write`
// must do, below address $100, what its functions for the zero page and the stack do.
#pragma once

#include "plans.hpp"

namespace coordrl {

/// The plans of all opcodes, in the shared memory of a block. Call `lay_out_plans` first.
COORDRL_HD COORDRL_INLINE Plan* shared_plans() {
  __shared__ Plan plans[256];
  return plans;
}

/// Copies the plans to shared memory. All threads of a block must call it.
COORDRL_HD inline void lay_out_plans() {
  static constexpr PlanTable kPlans{};
  for (u32 i = threadIdx.x; i < 256; i += blockDim.x) shared_plans()[i] = kPlans.of[i];
  __syncthreads();
}

/// Whether an opcode is ever executed as a whole, not in stages.
COORDRL_HD COORDRL_INLINE constexpr bool may_be_whole(Plan plan) {
  return Find(plan[kFind]) >= Find::kCall;
}

/// Executes an opcode as a whole, if it may be.
template <typename Bus>
COORDRL_HD COORDRL_NOINLINE void perform_whole(Processor<Bus>& cpu) {
  switch (u8(cpu.code)) {
#define COORDRL_CASE(opcode, action, ...)                    \
  case opcode:                                               \
    if constexpr (may_be_whole(plan_of(opcode))) { action; } \
    break;
    COORDRL_OPCODES(COORDRL_CASE, COORDRL_CASE)
#undef COORDRL_CASE
  }
}

/// The registers of a set, ANDed.
template <typename Bus>
COORDRL_HD COORDRL_INLINE u8 source_of(const Processor<Bus>& cpu, u32 from) {
  return (from & kA ? cpu.a : u8(0xFF)) & (from & kX ? cpu.x : u8(0xFF)) &
         (from & kY ? cpu.y : u8(0xFF)) & (from & kS ? cpu.s : u8(0xFF));
}

/// The flags that branches test, each at its bit.
template <typename Bus>
COORDRL_HD COORDRL_INLINE u32 asked_flags(const Processor<Bus>& cpu) {
  return (cpu.carry ? u32{kCarry} : 0) | (cpu.zero() ? u32{kZero} : 0) |
         (cpu.overflow ? u32{kOverflow} : 0) | (cpu.negative() ? u32{kNegative} : 0);
}

/// Sets the flag of a bit, or clears it: C, I, D or V.
template <typename Bus>
COORDRL_HD COORDRL_INLINE void set_flag(Processor<Bus>& cpu, u32 bit, bool value) {
  const Flag flag = Flag(1u << bit);
  if (flag == kCarry) cpu.carry = value;
  if (flag == kInterrupt) cpu.interrupt = value;
  if (flag == kDecimal) cpu.decimal = value;
  if (flag == kOverflow) cpu.overflow = value;
}

/// Whether the two bytes that a call, a return or an indirect jump needs are in RAM.
template <typename Bus>
COORDRL_HD COORDRL_INLINE bool is_in_ram(const Processor<Bus>& cpu, Find find) {
  switch (find) {
    case Find::kCall: return cpu.s & (cpu.s - 1) & 0x80;
    case Find::kReturn: return cpu.s & (cpu.s + 2) & 0x80;
    case Find::kIndirect:
      return (cpu.operand16() & 0x1280) == 0x0080 && (cpu.operand() + 1) & 0x80;
    default: return false;
  }
}

/// Whether there is Work. Compares the whole word, which a compiler doesn't merge with the switch.
COORDRL_HD COORDRL_INLINE bool any_work(Plan plan) { return plan.bits >= 1u << kWork.first; }

/// Executes an instruction that has been fetched.
template <typename Bus>
COORDRL_HD COORDRL_INLINE void perform(Processor<Bus>& cpu, Plan plan) {
  const Find find = Find(plan[kFind]);
  if (unlikely(may_be_whole(plan)) && !is_in_ram(cpu, find)) {
    Processor<Bus> copy = cpu;  // a variable whose address is taken is not kept in registers
    perform_whole(copy);
    cpu = copy;
    return;
  }
  cpu.step(i32(plan[kLength]), i32(plan[kCycles]));

  // The address. For the stack the page is irrelevant: RAM and TIA are mirrored in the zero page.
  u16 base = plan[kWide] ? cpu.operand16() : cpu.operand();
  u8 floating = cpu.operand();
  u8 index = plan[kByX] ? cpu.x : plan[kByY] ? cpu.y : u8(0);
  if (find != Find::kOperand) {
    if (find == Find::kPointer) {
      base = cpu.pointer(u8(cpu.operand() + (plan[kByX] ? index : 0)));
      if (plan[kByX]) index = 0;
    } else if (find == Find::kPush) {
      base = cpu.s;
      cpu.s = u8(cpu.s - 1);
    } else if (find == Find::kPull) {
      floating = cpu.peek_stack();
      cpu.s = u8(cpu.s + 1);
      base = cpu.s;
    } else if (find == Find::kCall) {
      const u16 last = cpu.pc();  // the address of the operand's high byte
      cpu.bus.ram(cpu.s) = u8(last >> 8);
      cpu.bus.ram(u8(cpu.s - 1)) = u8(last);
      cpu.s = u8(cpu.s - 2);
    } else {
      const u8 first = find == Find::kReturn ? u8(cpu.s + 1) : cpu.operand();
      base = u16(cpu.bus.ram(first) | cpu.bus.ram(u8(first + 1)) << 8);
      if (find == Find::kReturn) cpu.s = u8(cpu.s + 2);
    }
  }
  const u16 address = plan[kWide] ? u16(base + index) : u8(base + index);
  if (plan[kCrosses]) cpu.bus.cycle += (address ^ base) > 0xFF;

  // The byte.
  const u8 source = source_of(cpu, plan[kFrom]);
  u8 value = plan[kImmediate] ? cpu.operand() : source;
  if (plan[kReads]) value = cpu.bus.read(address, plan[kWide] ? u8(base >> 8) : floating);

  // The operation.
  const Logic logic = Logic(plan[kLogic]);
  value = u8(value & (logic == Logic::kAnd ? cpu.a : 0xFF));
  value = u8((value | (logic == Logic::kOr ? cpu.a : 0)) ^ (logic == Logic::kEor ? cpu.a : 0));
  if (plan[kTells]) cpu.nz = value;
  u32 to = plan[kTo];
  if (any_work(plan)) {
    switch (Work(plan[kWork])) {
      case Work::kAdd: cpu.adc(value); break;
      case Work::kSubtract: cpu.sbc(value); break;
      case Work::kCompare: cpu.compare(source, value); break;
      case Work::kTestBits: cpu.bit(value); break;
      case Work::kStoreAndPage: value = u8(value & ((address >> 8) + 1)); break;
      case Work::kGetStatus: value = cpu.status(); break;
      case Work::kSetStatus: cpu.set_status(value); break;
      case Work::kSetFlag:
        set_flag(cpu, plan[kFlag], plan[kSet]);
        to = 0;
        break;
      case Work::kBranch:
        cpu.branch((asked_flags(cpu) >> plan[kFlag] & 1) == plan[kSet], floor_of(plan[kWait]));
        to = 0;
        break;
      case Work::kJump: cpu.jump(u8(address), u8(address >> 8)); break;
      case Work::kReturn:
        cpu.data_bus = value;
        cpu.go_to(u16(address + 1));
        break;
      default:
        value = cpu.apply(Operation(plan[kWork] - u32(Work::kOperation)), value);
        break;
    }
  }
  if (to & kA) cpu.a = value;
  if (to & kX) cpu.x = value;
  if (to & kY) cpu.y = value;
  if (to & kS) cpu.s = value;
  if (plan[kWrites]) cpu.bus.write(address, value);
}

/// Runs instructions until the bus's `limit` is used up or set to 0.
///
/// The lanes of a warp that enter together wait for each other after every `Bus::kMeeting` cycles
/// of their own time. Programs follow the beam: lanes on the same scanline are in the same loops,
/// and most of the time at the same opcode. Results do not depend on it.
template <typename Bus>
COORDRL_HD COORDRL_INLINE void execute(M6507& state, Bus& bus) {
  Processor<Bus> cpu{bus};
  cpu.unpack(state);
  const Plan* const plans = worked_out(shared_plans());
  const u32 lanes = __activemask();
  i32 meeting = (cpu.bus.cycle / Bus::kMeeting + 1) * Bus::kMeeting;
  bool running = true;
  do {
    while (running && cpu.bus.cycle < meeting) {
      running = --cpu.bus.limit >= 0;
      if (!running) break;
      if (unlikely(!cpu.bus.fetch(cpu.at, cpu.pc(), cpu.code))) fetch_elsewhere(cpu);
      perform(cpu, in_shared(plans[u8(cpu.code)]));
    }
    meeting += Bus::kMeeting;
  } while (__any_sync(lanes, running));
  cpu.pack(state);
  bus = cpu.bus;
}

}  // namespace coordrl
